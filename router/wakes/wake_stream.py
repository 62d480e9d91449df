"""One caller that takes agents as they become usable.

A state waits here until its caller has done with those before it, and that caller may save meanwhile. So what was
acknowledged since the stream began is held against each state when its turn comes: one that is older is read again and
takes its turn later; after the deadline its older fragments are TIMEOUT, as everywhere.

Apart from `wake_batch`, which is compiled: an asynchronous generator cannot be.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from itertools import islice
from typing import Final, Protocol

from ...wire.errors import ClusterUnavailable
from ..dispatch.judgement import Judgement
from .agent_state import AgentState
from .fetch_operation import Fetching
from .fetch_results import Group

__all__ = ["WakeStream"]

_LOOK_AHEAD: Final = 256
"""States looked at for what is older than acknowledged when the next one is: they are read again in one fetch."""

_log = logging.getLogger(__name__)


class _Fetch(Protocol):
    """Makes the fetch of some agents, not sent yet."""

    def __call__(
        self,
        ids: Sequence[str],
        agents: Sequence[bytes],
        deadline: float,
        handle_groups: Callable[[list[Group]], None],
    ) -> Fetching:
        """Return it."""
        ...


class WakeStream:
    """One caller that takes states as they become usable."""

    def __init__(
        self,
        fetch: _Fetch,
        ids: Sequence[str],
        agents: Sequence[bytes],
        stores: Sequence[str],
        clock: Callable[[], float],
    ) -> None:
        """`ids`, `agents`: whom to wake, and their UTF-8; `stores`: the names of the stores asked, in their order."""
        self._clock = clock
        self._fetch = fetch
        self._agents = dict(zip(ids, agents, strict=True))
        self._stores = list(stores)
        self._floors: dict[str, list[int]] = {}  # by agent: acknowledged since it began, of each store
        self._ready: deque[AgentState] = deque()
        self._fetches: list[Fetching] = []
        self._wake_up = asyncio.Event()
        self._expired = False
        self._error: Exception | None = None

    def note(self, store: str, acknowledged: Iterable[tuple[bytes, int]]) -> None:
        """Saves were acknowledged: no state that is yielded from now on may show what was there before."""
        if store in self._stores:
            place = self._stores.index(store)
            for agent, version in acknowledged:
                agent_id = agent.decode()
                if agent_id in self._agents:
                    floors = self._floors.setdefault(agent_id, [0] * len(self._stores))
                    floors[place] = max(floors[place], version)

    async def run(self, deadline: float) -> AsyncGenerator[AgentState, None]:
        """Fetch, and yield states as they come; ends by the deadline."""
        timer = Judgement(deadline, self._expire, clock=self._clock)
        try:
            self._begin(list(self._agents), deadline)
            left = len(self._agents)
            while left:
                while self._ready:
                    state = self._next(deadline)
                    if state is not None:
                        left -= 1
                        yield state
                if left:
                    if self._error is not None:
                        raise self._error
                    self._wake_up.clear()
                    await self._wake_up.wait()
        finally:
            timer.cancel()
            for fetching in self._fetches:
                fetching.abandon()

    def _begin(self, ids: list[str], deadline: float) -> None:
        fetching: Fetching

        def handle_groups(groups: list[Group]) -> None:
            try:
                for group in groups:
                    self._ready.extend(fetching.states(group))
            except Exception as error:
                self._break_off(error)
            self._wake_up.set()

        fetching = self._fetch(ids, [self._agents[agent_id] for agent_id in ids], deadline, handle_groups)
        self._fetches = [before for before in self._fetches if not before.complete]
        self._fetches.append(fetching)
        fetching.start()

    def _next(self, deadline: float) -> AgentState | None:
        """Return the next state, None where it is older than acknowledged: then it is read again."""
        state = self._ready.popleft()
        floors = self._floors.get(state.agent_id) if self._floors else None
        if floors is None or not state.is_older(floors):
            return state
        if self._expired:
            return state.without_older(floors)
        ahead = [*islice(self._ready, _LOOK_AHEAD)]
        stale = [one for one in ahead if (below := self._floors.get(one.agent_id)) and one.is_older(below)]
        for one in stale:
            self._ready.remove(one)
        self._begin([state.agent_id, *[one.agent_id for one in stale]], deadline)
        return None

    def _expire(self) -> None:
        self._expired = True
        try:
            self._fetches[0].catch_up()
            for fetching in list(self._fetches):
                fetching.expire()
        except Exception as error:
            self._break_off(error)
        if self._error is None:
            # Raised only where something broke before: every agent that is left has its state by now.
            self._error = ClusterUnavailable("the wake broke off; the log says why")
        self._wake_up.set()

    def _break_off(self, error: Exception) -> None:
        _log.error("a stream of wakes broke off", exc_info=error)
        self._error = error

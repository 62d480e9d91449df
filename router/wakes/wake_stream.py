"""One caller that takes agents as they become usable.

A state waits here until its caller has finished with those before it, and that caller may save meanwhile. So each state
is compared with the saves acknowledged since the stream began when its turn comes: one that is older is read again and
takes its turn later; after the deadline its older fragments are TIMEOUT, as everywhere.

Apart from `wake_batch`, which is compiled: an asynchronous generator cannot be.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from itertools import islice
from typing import Final

from ...wire.errors import ClusterUnavailable
from ..dispatch.judgement import Judgement
from .agent_state import AgentState
from .fetch_operation import FetchOperation
from .fetch_results import Group
from .fetcher import Fetcher
from .read_spec import ReadSpec

__all__ = ["WakeStream"]

_LOOK_AHEAD: Final = 256
"""States checked along with one that is older than acknowledged: all older ones are read again in one fetch."""

_log = logging.getLogger(__name__)


class WakeStream:
    """One caller that takes states as they become usable."""

    def __init__(
        self, fetcher: Fetcher, spec: ReadSpec, ids: Sequence[str], agents: Sequence[bytes], deadline: float
    ) -> None:
        """`agents` is the UTF-8 of the ids; `deadline` in seconds of the fetcher's clock."""
        self._fetcher = fetcher
        self._spec = spec
        self._deadline = deadline
        self._agents = dict(zip(ids, agents, strict=True))
        self._stores = [store.name for store in spec.routes.stores]
        self._acknowledged: dict[str, list[int]] = {}  # versions since it began, by agent, of each store
        self._ready: deque[AgentState] = deque()
        self._fetches: list[FetchOperation] = []
        self._wake_up = asyncio.Event()
        self._expired = False
        self._error: Exception | None = None

    def note(self, store: str, acknowledged: Iterable[tuple[bytes, int]]) -> None:
        """Note acknowledged saves: no state that is yielded from now on may show older values."""
        if store in self._stores:
            place = self._stores.index(store)
            for agent, version in acknowledged:
                agent_id = agent.decode()
                if agent_id in self._agents:
                    versions = self._acknowledged.setdefault(agent_id, [0] * len(self._stores))
                    versions[place] = max(versions[place], version)

    async def run(self) -> AsyncGenerator[AgentState, None]:
        """Fetch, and yield states as they come; ends by the deadline."""
        timer = Judgement(self._deadline, self._expire, clock=self._fetcher.clock)
        try:
            self._begin(list(self._agents))
            left = len(self._agents)
            while left:
                while self._ready:
                    state = self._next()
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
            for fetch in self._fetches:
                fetch.end()

    def _begin(self, ids: list[str]) -> None:
        agents = [self._agents[agent_id] for agent_id in ids]
        fetch = self._fetcher.fetch(self._spec, ids, agents, self._deadline, self)
        self._fetches = [before for before in self._fetches if not before.complete]
        self._fetches.append(fetch)
        fetch.start()

    def handle_groups(self, fetch: FetchOperation, groups: list[Group]) -> None:
        """Let the states of complete groups wait for their turn."""
        try:
            for group in groups:
                self._ready.extend(fetch.states(group))
        except Exception as error:
            self._break_off(error)
        if fetch.complete:
            fetch.end()
        self._wake_up.set()

    def _next(self) -> AgentState | None:
        """Return the next state, None if it is older than acknowledged: then it is read again."""
        state = self._ready.popleft()
        versions = self._acknowledged.get(state.agent_id) if self._acknowledged else None
        if versions is None or not state.is_older(versions):
            return state
        if self._expired:
            return state.without_older(versions)
        ahead = [*islice(self._ready, _LOOK_AHEAD)]
        stale = [one for one in ahead if (newer := self._acknowledged.get(one.agent_id)) and one.is_older(newer)]
        for one in stale:
            self._ready.remove(one)
        self._begin([state.agent_id, *[one.agent_id for one in stale]])
        return None

    def _expire(self) -> None:
        self._expired = True
        try:
            self._fetches[0].catch_up()
            for fetch in list(self._fetches):
                fetch.expire()
        except Exception as error:
            self._break_off(error)
        if self._error is None:
            # Raised only after an earlier error: every agent that is left has its state by now.
            self._error = ClusterUnavailable("the wake broke off; the log says why")
        self._wake_up.set()

    def _break_off(self, error: Exception) -> None:
        _log.error("a stream of wakes broke off", exc_info=error)
        self._error = error

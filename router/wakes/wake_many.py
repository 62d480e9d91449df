"""One wake of many agents: the sink of its fetches, which shows no state before it has the last."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import cast

from ...wire.errors import ClusterUnavailable
from ..dispatch.judgement import Judgement
from .agent_state import AgentState
from .fetch_operation import FetchOperation
from .fetch_results import Group
from .fetcher import Fetcher
from .read_spec import ReadSpec

__all__ = ["WakeMany"]

_log = logging.getLogger(__name__)


class WakeMany:
    """One caller that waits for many agents; gets their states in the order in which they were added.

    They are fetched in slices: the next one is planned while the nodes serve those before it.
    """

    def __init__(self, fetcher: Fetcher, spec: ReadSpec, deadline: float) -> None:
        """`deadline` is in seconds of the fetcher's clock."""
        self._fetcher = fetcher
        self._spec = spec
        self._deadline = deadline
        self._slices: dict[FetchOperation, list[AgentState | None]] = {}
        self._left = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timer = Judgement(deadline, self._expire, clock=fetcher.clock)

    def add(self, ids: Sequence[str], agents: Sequence[bytes]) -> None:
        """Fetch a slice of the agents; `agents` is the UTF-8 of their ids."""
        fetch = self._fetcher.fetch(self._spec, ids, agents, self._deadline, self)
        self._left += len(agents)
        self._slices[fetch] = [None] * len(agents)
        fetch.start()

    def handle_groups(self, fetch: FetchOperation, groups: list[Group]) -> None:
        """Put the states of complete groups in their places; the last of them end the wake."""
        try:
            states, order = self._slices[fetch], fetch.plan.order
            for group in groups:
                # A loop in C, as only each is put in its place: 35 ns an agent instead of 110.
                deque(map(states.__setitem__, order[group.start : group.stop], fetch.states(group)), maxlen=0)
                self._left -= group.stop - group.start
            if not self._left:
                self._finish()
        except Exception as error:
            self._break_off(error)

    async def run(self) -> list[AgentState]:
        """Wait for all of them, at most until the deadline; return their states (of a closed cluster not all)."""
        try:
            if self._left:
                await self._done
        finally:
            self.abandon()
        # None is left: every group was delivered, at the deadline at the latest.
        return cast("list[AgentState]", list(chain.from_iterable(self._slices.values())))

    def abandon(self) -> None:
        """Release everything: nobody waits any more."""
        self._timer.cancel()
        for fetch in self._slices:
            fetch.end()

    def _finish(self) -> None:
        """End the wake, as all states have come; first read those again that were saved meanwhile."""
        self._left = sum([fetch.refresh() for fetch in self._slices])
        if not self._left and not self._done.done():
            self._done.set_result(None)

    def _expire(self) -> None:
        try:
            for fetch in list(self._slices)[:1]:
                fetch.catch_up()
            if not self._done.done():
                for fetch in self._slices:
                    fetch.withhold_stale()
                    fetch.expire()
        except Exception as error:
            self._break_off(error)
        if not self._done.done():
            self._break_off(ClusterUnavailable("the wake broke off; the log says why"))

    def _break_off(self, error: Exception) -> None:
        """Fail the wake after an unexpected error, rather than leave its caller waiting."""
        _log.error("a wake of many agents broke off", exc_info=error)
        if not self._done.done():
            self._done.set_exception(error)

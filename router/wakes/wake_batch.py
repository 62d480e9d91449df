"""Wakes of one agent each that share a fetch: its sink for many callers.

Wakes asked for in the same turn of the event loop are one batch: ten thousand tasks that each await one agent cost a
few messages a node. The same agent asked for twice before its fetch is sent is fetched once; each wake gets a state of
its own. Each ends at its own deadline, with what has come; the fetch lives until the last of them.

No wake outlives its deadline, whatever breaks: an unexpected exception ends the wakes that it would leave waiting.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ...wire.errors import AgentNotFound, ClusterUnavailable, WakeIncomplete
from ..dispatch.judgement import Judgement
from .agent_state import AgentState
from .fetch_operation import FetchOperation
from .fetch_results import Group
from .fetcher import Fetcher
from .outcomes import WHOLE, Outcome
from .read_spec import IMAGE_FIRST_KIND, ReadSpec
from .wake_future import WakeFuture

__all__ = ["WakeBatch", "verdict"]

_TIMER_SLACK_SECONDS: Final = 0.001
"""The loop's timers have the grain of a millisecond and may fire that early."""

_LOOK_SECONDS: Final = 0.1
"""How often a batch under way checks whether anybody still waits for it, 10 us for a thousand wakes: a callback of each
future would cost every wake 0.3 us."""

_log = logging.getLogger(__name__)


def verdict(state: AgentState, spec: ReadSpec) -> Exception | None:
    """Return the exception that `wake` raises for a state, None if it returns the state."""
    if not spec.raises:
        return None
    outcomes = [(kind, state.peek(kind)) for kind in spec.required or spec.views if _asked(spec, kind)]
    if spec.required:
        missing = tuple(kind for kind, outcome in outcomes if outcome not in WHOLE)
        if missing:
            return WakeIncomplete(state, missing)
    elif len(outcomes) < len(spec.views):
        return None  # some kinds, none of them required: their absence says nothing about the agent
    if all(outcome is Outcome.ABSENT for _, outcome in outcomes):
        return AgentNotFound(state.agent_id)
    return None


def _asked(spec: ReadSpec, kind: str) -> bool:
    return spec.views[kind].store >= 0


class _Waiter(NamedTuple):
    """A wake whose deadline is not the batch's common one."""

    deadline: float
    sequence: int
    agent: int
    future: asyncio.Future[AgentState]


class WakeBatch:
    """Calls for one agent each, sent together."""

    def __init__(self, spec: ReadSpec, clock: Callable[[], float]) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self.spec = spec
        self.began = clock()
        """When its first wake was asked for: its deadlines count from then, in seconds of the monotonic clock."""
        self.ended = False
        """Whether nobody waits any more."""
        self.ids: dict[str, int] = {}
        self.agents: list[bytes] = []
        self._futures: list[asyncio.Future[AgentState] | None] = []  # None: only waiters apart want that agent
        self._common_deadline = 0.0
        self._others: list[_Waiter] = []  # a heap, the next deadline first
        self._others_of: dict[int, list[asyncio.Future[AgentState]]] = {}
        self._sequence = 0
        self._timer: Judgement | None = None
        self._fetch: FetchOperation | None = None
        self._positions: list[int] = []
        self._handle_ended: Callable[[WakeBatch], None] = _ignore

    @property
    def deadline(self) -> float:
        """The last of its wakes' deadlines."""
        return max(self._common_deadline, max((waiter.deadline for waiter in self._others), default=0.0))

    def add(self, agent_id: str, agent: bytes, deadline_s: float) -> asyncio.Future[AgentState]:
        """Wait for an agent, before the batch is sent."""
        future: asyncio.Future[AgentState] = self._loop.create_future() if self.ids else WakeFuture(loop=self._loop)
        deadline = self.began + deadline_s
        index = self.ids.get(agent_id)
        if index is None:
            index = self.ids[agent_id] = len(self.agents)
            self.agents.append(agent)
            if not self._common_deadline:
                self._common_deadline = deadline
            if deadline == self._common_deadline:
                self._futures.append(future)
                return future
            self._futures.append(None)
        self._wait_apart(deadline, index, future)
        return future

    def adopt(self, agent_id: str, agent: bytes, future: asyncio.Future[AgentState], deadline: float) -> None:
        """Let a wake that was asked for before wait for its agent here, before the batch is sent."""
        index = self.ids.get(agent_id)
        if index is None:
            index = self.ids[agent_id] = len(self.agents)
            self.agents.append(agent)
            self._futures.append(None)
        self._wait_apart(deadline, index, future)

    def start(self, fetcher: Fetcher, ids: Sequence[str], handle_ended: Callable[[WakeBatch], None]) -> None:
        """Send it; `ids` are its `ids`. `handle_ended` is called once, when nobody waits for it any more."""
        fetch = self._fetch = fetcher.fetch(self.spec, ids, self.agents, self.deadline, self)
        self._handle_ended = handle_ended
        # Sent first: the nodes are at work while the rest is done here, and no reply is received before this turn ends.
        fetch.start()
        self._positions = [0] * len(self.agents)
        for position, index in enumerate(fetch.plan.order):
            self._positions[index] = position
        self._schedule()

    def close(self, error: Exception) -> None:
        """Fail every wake that still waits."""
        for future in [*self._futures, *[waiter.future for waiter in self._others]]:
            if future is not None and not future.done():
                future.set_exception(error)
        self._end()

    def handle_groups(self, fetch: FetchOperation, groups: list[Group]) -> None:
        """End the wakes of complete groups."""
        try:
            for group in groups:
                self._end_group(fetch, group)
        except Exception as error:
            _log.exception("a wake could not be ended", extra={"agents": len(self.agents)})
            self.close(error)
        if fetch.complete:
            self._end()

    def _end_group(self, fetch: FetchOperation, group: Group) -> None:
        states = fetch.states(group)
        order = fetch.plan.order[group.start : group.stop]
        futures = self._futures
        if self._all_found(group):
            for index, state in zip(order, states, strict=True):
                future = futures[index]
                if future is not None and not future.done():
                    future.set_result(state)
        else:
            for index, state in zip(order, states, strict=True):
                self._end_wake(futures[index], state)
        if self._others_of:
            for index, state in zip(order, states, strict=True):
                for future in self._others_of.pop(index, ()):
                    self._end_wake(future, state.twin())  # two callers never share what one of them may change

    def _all_found(self, group: Group) -> bool:
        """Return whether every agent of a group surely has every required kind, without decoding an image.

        An image that this router wrote begins with the store's required kind; 0.2 us an agent instead of 1.
        """
        required = self.spec.required_stores
        if not required or group.refetched:
            return False
        return all(group.parts[store].begin_with(beginning, IMAGE_FIRST_KIND) for store, beginning in required)

    def _end_wake(self, future: asyncio.Future[AgentState] | None, state: AgentState) -> None:
        if future is None or future.done():
            return
        error = verdict(state, self.spec)
        if error is None:
            future.set_result(state)
        else:
            future.set_exception(error)

    def _wait_apart(self, deadline: float, index: int, future: asyncio.Future[AgentState]) -> None:
        self._sequence += 1
        heapq.heappush(self._others, _Waiter(deadline, self._sequence, index, future))
        self._others_of.setdefault(index, []).append(future)

    def _is_awaited(self) -> bool:
        """Return whether anybody still waits: a wake that its caller gave up is a cancelled future."""
        for future in self._futures:
            if future is not None and not future.done():
                return True
        return any([not waiter.future.done() for waiter in self._others])

    def _schedule(self) -> None:
        """Set the timer to the next deadline, or to the next check whether anybody still waits."""
        if self._timer is not None:
            self._timer.cancel()
        due = [waiter.deadline for waiter in self._others[:1]]
        if self._common_deadline:
            due.append(self._common_deadline)
        look = self._clock() + _LOOK_SECONDS
        self._timer = Judgement(min(look, *due), self._expire, self._loop, self._clock) if due else None

    def _expire(self) -> None:
        self._timer = None
        try:
            self._expire_due()
        except Exception as error:
            _log.exception("a wake could not be ended at its deadline", extra={"agents": len(self.agents)})
            self.close(error)

    def _expire_due(self) -> None:
        """End the wakes whose deadline has come; after the last of them, the fetch."""
        fetch = self._fetch
        assert fetch is not None
        fetch.catch_up()
        if self.ended:
            return  # what came was the last of it
        if not self._is_awaited():
            self._end()
            return
        now = self._clock() + _TIMER_SLACK_SECONDS
        if fetch.deadline <= now or fetch.complete:
            fetch.expire()
            if not self.ended:  # an earlier error: the remaining callers must not wait for ever
                self.close(ClusterUnavailable("the wake broke off; the log says why"))
            return
        if self._common_deadline and self._common_deadline <= now:
            self._common_deadline = 0.0
            for index, future in enumerate(self._futures):
                if future is not None and not future.done():
                    self._end_wake(future, fetch.state_now(self._positions[index]))
        while self._others and self._others[0].deadline <= now:
            waiter = heapq.heappop(self._others)
            if not waiter.future.done():
                self._end_wake(waiter.future, fetch.state_now(self._positions[waiter.agent]))
        self._schedule()

    def _end(self) -> None:
        """Let go of everything, once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.ended:
            return
        self.ended = True
        fetch, self._fetch = self._fetch, None
        handle_ended, self._handle_ended = self._handle_ended, _ignore
        handle_ended(self)
        if fetch is not None:
            try:
                fetch.end()
            except Exception:
                _log.exception("a fetch could not be given up")


def _ignore(_batch: WakeBatch) -> None:
    """Do nothing for a batch that is not sent, or has ended."""

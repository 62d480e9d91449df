"""Callers that wait for a fetch: one for many agents, or many for one agent each (a stream: `wake_stream`).

Wakes asked for in the same turn of the event loop travel together (WakeBatch): ten thousand tasks that each await
one agent cost a few messages a node. The same agent asked for twice before its fetch is sent is fetched once; each wake
gets a state of its own. Each ends at its own deadline, with what has come; the fetch lives until the last of them.

No wake outlives its deadline, whatever breaks: where an exception that nobody foresaw comes up, those that it leaves
waiting end with it.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import deque
from collections.abc import Callable
from itertools import chain
from typing import Final, NamedTuple, cast

from ...wire.errors import AgentNotFound, ClusterUnavailable, WakeIncomplete
from ..dispatch.judgement import Judgement
from .agent_state import AgentState
from .fetch_operation import Fetching
from .fetch_results import Group
from .outcomes import WHOLE, Outcome
from .read_spec import IMAGE_FIRST_KIND, ReadSpec
from .wake_future import WakeFuture

__all__ = ["WakeBatch", "WakeMany", "verdict"]

_TIMER_SLACK_SECONDS: Final = 0.001
"""The loop's timers have the grain of a millisecond and may fire that early."""

_LOOK_SECONDS: Final = 0.1
"""How often a batch under way looks whether anybody still waits for it, 10 us for a thousand wakes: a callback of each
future would cost every wake 0.3 us."""

_log = logging.getLogger(__name__)


def verdict(state: AgentState, reading: ReadSpec) -> Exception | None:
    """Return what `wake` raises for a state, None where it returns the state."""
    if not reading.raises:
        return None
    outcomes = [(kind, state.peek(kind)) for kind in reading.required or reading.views if _asked(reading, kind)]
    if reading.required:
        missing = tuple(kind for kind, outcome in outcomes if outcome not in WHOLE)
        if missing:
            return WakeIncomplete(state, missing)
    elif len(outcomes) < len(reading.views):
        return None  # some kinds, none of them required: that they are absent says nothing of the agent
    if all(outcome is Outcome.ABSENT for _, outcome in outcomes):
        return AgentNotFound(state.agent_id)
    return None


def _asked(reading: ReadSpec, kind: str) -> bool:
    return reading.views[kind].store >= 0


class WakeMany:
    """One caller that waits for many agents; gets their states in the order in which they were added.

    They are fetched in slices: the next one is planned while the nodes serve those before it.
    """

    def __init__(self, deadline: float, clock: Callable[[], float]) -> None:
        """`deadline` is in seconds of `clock`, the monotonic one."""
        self._states: list[list[AgentState | None]] = []
        self._left = 0
        self._slices: list[Fetching] = []
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timer = Judgement(deadline, self._expire, clock=clock)

    def add(self, fetch: Callable[[Callable[[list[Group]], None]], Fetching]) -> None:
        """Fetch a slice of the agents; `fetch` makes their fetch, held, given who takes its groups."""
        fetching: Fetching
        states: list[AgentState | None]

        def handle_groups(groups: list[Group]) -> None:
            try:
                order = fetching.plan.order
                for group in groups:
                    # A loop in C, as only each is put in its place: 35 ns an agent instead of 110.
                    deque(map(states.__setitem__, order[group.start : group.stop], fetching.states(group)), maxlen=0)
                    self._left -= group.stop - group.start
                if not self._left:
                    self._finish()
            except Exception as error:
                self._break_off(error)

        fetching = fetch(handle_groups)
        states = [None] * len(fetching.plan.order)
        self._left += len(states)
        self._states.append(states)
        self._slices.append(fetching)
        fetching.start()

    async def run(self) -> list[AgentState]:
        """Wait for all of them, at most until the deadline; return their states (of a closed cluster not all)."""
        try:
            if self._left:
                await self._done
        finally:
            self.abandon()
        # None is left: every group was handed over, at the deadline at the latest.
        return cast("list[AgentState]", list(chain.from_iterable(self._states)))

    def abandon(self) -> None:
        """Let go of everything: nobody waits any more."""
        self._timer.cancel()
        for fetching in self._slices:
            fetching.abandon()

    def _finish(self) -> None:
        """All have come. What was saved while it lay here is older than acknowledged by now: it is read again first."""
        self._left = sum([fetching.refresh() for fetching in self._slices])
        if not self._left and not self._done.done():
            self._done.set_result(None)

    def _expire(self) -> None:
        try:
            for fetching in self._slices[:1]:
                fetching.catch_up()
            if not self._done.done():
                for fetching in self._slices:
                    fetching.expire()
        except Exception as error:
            self._break_off(error)
        if not self._done.done():
            self._break_off(ClusterUnavailable("the wake broke off; the log says why"))

    def _break_off(self, error: Exception) -> None:
        """Something broke that nobody foresaw: the caller is told, rather than left waiting."""
        _log.error("a wake of many agents broke off", exc_info=error)
        if not self._done.done():
            self._done.set_exception(error)


class _Waiter(NamedTuple):
    """A wake whose deadline is not the batch's common one."""

    deadline: float
    sequence: int
    agent: int
    future: asyncio.Future[AgentState]


class WakeBatch:
    """Calls for one agent each, sent together."""

    def __init__(self, reading: ReadSpec, clock: Callable[[], float]) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self.reading = reading
        self.began = clock()
        """When its first wake was asked for: its deadlines count from then, in seconds of the monotonic clock."""
        self.over = False
        """Whether nobody waits any more."""
        self.ids: dict[str, int] = {}
        self.agents: list[bytes] = []
        self._futures: list[asyncio.Future[AgentState] | None] = []  # None: only waiters apart want that agent
        self._common_deadline = 0.0
        self._others: list[_Waiter] = []  # a heap, the next deadline first
        self._others_of: dict[int, list[asyncio.Future[AgentState]]] = {}
        self._sequence = 0
        self._timer: Judgement | None = None
        self._fetching: Fetching | None = None
        self._positions: list[int] = []
        self._handle_over: Callable[[WakeBatch], None] = _ignore

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

    def start(self, fetching: Fetching, handle_over: Callable[[WakeBatch], None]) -> None:
        """Send it; `handle_over` is called once, when nobody waits for it any more."""
        self._fetching = fetching
        self._handle_over = handle_over
        # Sent first: the nodes are at work while the rest is done here, and no reply is received before this turn ends.
        fetching.start()
        self._positions = [0] * len(self.agents)
        for position, index in enumerate(fetching.plan.order):
            self._positions[index] = position
        self._schedule()

    def close(self, error: Exception) -> None:
        """Fail every wake that still waits."""
        for future in [*self._futures, *[waiter.future for waiter in self._others]]:
            if future is not None and not future.done():
                future.set_exception(error)
        self._end()

    def handle_groups(self, groups: list[Group]) -> None:
        """Some groups are complete: their wakes end."""
        fetching = self._fetching
        assert fetching is not None
        try:
            for group in groups:
                self._settle_group(fetching, group)
        except Exception as error:
            _log.exception("a wake could not be ended", extra={"agents": len(self.agents)})
            self.close(error)
        if fetching.complete:
            self._end()

    def _settle_group(self, fetching: Fetching, group: Group) -> None:
        states = fetching.states(group)
        order = fetching.plan.order[group.start : group.stop]
        futures = self._futures
        if self._all_found(group):
            for index, state in zip(order, states, strict=True):
                future = futures[index]
                if future is not None and not future.done():
                    future.set_result(state)
        else:
            for index, state in zip(order, states, strict=True):
                self._settle(futures[index], state)
        if self._others_of:
            for index, state in zip(order, states, strict=True):
                for future in self._others_of.pop(index, ()):
                    self._settle(future, state.twin())  # two callers never share what one of them may change

    def _all_found(self, group: Group) -> bool:
        """Return whether every agent of a group surely has every required kind, without decoding an image.

        An image that this router wrote begins with the store's required kind; 0.2 us an agent instead of 1.
        """
        required = self.reading.required_stores
        if not required or group.refetched:
            return False
        return all(group.parts[store].begin_with(beginning, IMAGE_FIRST_KIND) for store, beginning in required)

    def _settle(self, future: asyncio.Future[AgentState] | None, state: AgentState) -> None:
        if future is None or future.done():
            return
        error = verdict(state, self.reading)
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
        """Set the timer to the next deadline, or to the next look whether anybody still waits."""
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
        fetching = self._fetching
        assert fetching is not None
        fetching.catch_up()
        if self.over:
            return  # what came was the last of it
        if not self._is_awaited():
            self._end()
            return
        now = self._clock() + _TIMER_SLACK_SECONDS
        if fetching.deadline <= now or fetching.complete:
            fetching.expire()
            if not self.over:  # something broke before: whoever still waits is not to wait for ever
                self.close(ClusterUnavailable("the wake broke off; the log says why"))
            return
        if self._common_deadline and self._common_deadline <= now:
            self._common_deadline = 0.0
            for index, future in enumerate(self._futures):
                if future is not None and not future.done():
                    self._settle(future, fetching.state_now(self._positions[index]))
        while self._others and self._others[0].deadline <= now:
            waiter = heapq.heappop(self._others)
            if not waiter.future.done():
                self._settle(waiter.future, fetching.state_now(self._positions[waiter.agent]))
        self._schedule()

    def _end(self) -> None:
        """Let go of everything, once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.over:
            return
        self.over = True
        fetching, self._fetching = self._fetching, None
        handle_over, self._handle_over = self._handle_over, _ignore
        handle_over(self)
        if fetching is not None:
            try:
                fetching.abandon()
            except Exception:
                _log.exception("a fetch could not be given up")


def _ignore(_batch: WakeBatch) -> None:
    """Do nothing for a batch that is not sent, or over."""

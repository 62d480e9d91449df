"""The open-loop load: starts wakes when their time has come, and takes in how they end.

The starts that are due are made in one turn of the loop, so that the router sends them together, as it would those of
many tasks. Each costs the load a callback, about 2 us, and the look at the state that every host takes at it.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

from ...router.wakes.agent_state import AgentState
from ...router.wakes.outcomes import Outcome
from ...wire.errors import DawnchorusError, WakeIncomplete
from ..harness.child_process import anonymous_bytes
from ..harness.measure import WrongResult
from ..harness.workload import Workload
from .counts import Ending, PhaseCounts
from .schedule import Schedule

__all__ = ["DRAIN_SECONDS", "TICK_MS", "Load", "LoadRun", "Waker", "last_incomplete_ms", "own_memory"]

DRAIN_SECONDS: Final = 2.0
"""How long after its deadline a wake may take until it counts as stuck; a stall of the machine is not meant."""

TICK_MS: Final = 1.0
"""Wakes are planned to the millisecond."""

_TIMER_SECONDS: Final = 0.001
"""The grain of the loop's timers, which fire up to as much late: the load spends no time on being more exact."""

_MEMORY_SECONDS: Final = 0.25
"""Between two looks at this process's memory, 50 us each."""

_CHECKED_EVERY: Final = 64
"""Of so many complete wakes one is compared with what was saved, 20 us: that they are complete says not that they are
right."""


class Waker(Protocol):
    """The part of a `Cluster` that a load needs: waking one agent."""

    def wake(self, agent_id: str, /, *, deadline_s: float) -> asyncio.Future[Any]:
        """Wake an agent, as `Cluster.wake` does."""
        ...


class LoadRun:
    """One run of a load: its counts, its times on the monotonic clock, and the most memory that this process had."""

    def __init__(self) -> None:
        self.counts = PhaseCounts()
        self.begin_ns = 0
        self.end_ns = 0
        """When the last wake was planned, about; those under way then still end."""
        self.unsent = 0
        self.memory_peak = 0
        self.open = True
        """Whether ends are still counted: what ends later was stuck."""

    def note_memory(self) -> None:
        """Look at this process's memory."""
        self.memory_peak = max(self.memory_peak, anonymous_bytes(os.getpid()))


class Load:
    """Wakes the agents of a workload in turn, in an order drawn by chance, through whatever client it is given."""

    def __init__(self, workload: Workload, order: Sequence[int], deadline_s: float) -> None:
        """`order`: the numbers of all agents; neighbours are far apart, so that no wake joins another's fetch."""
        self._workload = workload
        self._deadline_s = deadline_s
        self._agents = itertools.cycle(order)
        self._wrong = ""
        self._whole = 0

    async def run(
        self, client: Waker, rate: float, seconds: float, tick_ms: float = TICK_MS, *, strict: bool = False
    ) -> LoadRun:
        """Offer `rate` wakes a second for so long, and wait until all have ended or are stuck.

        They are planned at the beginnings of ticks, so that those of one tick are asked for together. Their deadlines
        count from their starts; with `strict` from their planned starts, so that a load which is late has less time.

        Raises:
            WrongResult: a complete wake gave something else than was saved.
        """
        run = LoadRun()
        run.begin_ns = time.monotonic_ns()
        schedule = Schedule(run.begin_ns, rate, seconds, round(tick_ms * 1e6))
        look_s = 0.0
        while not schedule.is_over(now_ns := time.monotonic_ns()):
            for number in schedule.poll_due(now_ns):
                self._start(client, run, schedule.planned_ns(number), strict)
            if now_ns / 1e9 >= look_s:
                run.note_memory()
                look_s = now_ns / 1e9 + _MEMORY_SECONDS
            if schedule.left:
                await asyncio.sleep(_until(schedule.next_ns))
        run.unsent = schedule.left
        # Also where the last start comes early: a phase is as long as was said.
        end_s = run.begin_ns / 1e9 + seconds
        await asyncio.sleep(max(0.0, end_s - time.monotonic()))
        run.end_ns = time.monotonic_ns()
        drained_s = time.monotonic() + self._deadline_s + DRAIN_SECONDS
        while run.counts.under_way and time.monotonic() < drained_s:  # noqa: ASYNC110 - ends of wakes set no event
            await asyncio.sleep(_TIMER_SECONDS)
        run.open = False
        run.note_memory()
        if self._wrong:
            raise WrongResult(self._wrong)
        return run

    def _start(self, client: Waker, run: LoadRun, planned_ns: int, strict: bool) -> None:
        agent = next(self._agents)
        counts = run.counts
        started_ns = time.monotonic_ns()
        counts.handle_start(planned_ns, started_ns)
        due_ns = (planned_ns if strict else started_ns) + round(self._deadline_s * 1e9)
        deadline_s = max(_TIMER_SECONDS, (due_ns - started_ns) / 1e9) if strict else self._deadline_s
        try:
            future = client.wake(self._workload.ids[agent], deadline_s=deadline_s)
        except DawnchorusError:
            counts.handle_end(planned_ns, due_ns, time.monotonic_ns(), Ending.FAILED, False)
            return

        def handle_done(done: asyncio.Future[Any]) -> None:
            now_ns = time.monotonic_ns()
            ending, shed = self._ending(done, agent)
            if run.open:
                counts.handle_end(planned_ns, due_ns, now_ns, ending, shed)

        future.add_done_callback(handle_done)

    def _ending(self, done: asyncio.Future[Any], agent: int) -> tuple[Ending, bool]:
        if done.cancelled():
            return Ending.FAILED, False
        error = done.exception()
        if error is None:
            state: AgentState = done.result()
            degraded = state.degraded
            if degraded:
                return Ending.DEGRADED, _was_shed(state, degraded)
            self._whole += 1
            if self._whole % _CHECKED_EVERY == 0:
                self._check(state, agent)
            return Ending.COMPLETE, False
        if isinstance(error, WakeIncomplete):
            return Ending.FAILED, _was_shed(error.state, error.state.degraded)
        return Ending.FAILED, False

    def _check(self, state: AgentState, agent: int) -> None:
        for kind, value in self._workload.fragments(agent).items():
            if state[kind] != value:
                self._wrong = f"agent {state.agent_id}: {kind} is not what was saved"


def last_incomplete_ms(run: LoadRun, since_ns: int) -> float | None:
    """Return `PhaseCounts.last_incomplete_ns` of a run in milliseconds."""
    last_ns = run.counts.last_incomplete_ns(since_ns)
    return None if last_ns is None else round(last_ns / 1e6, 1)


def own_memory() -> int:
    """Return this process's anonymous memory in bytes, garbage collected."""
    gc.collect()
    return anonymous_bytes(os.getpid())


def _was_shed(state: AgentState, degraded: tuple[str, ...]) -> bool:
    return any([state.outcome(kind) is Outcome.SHED for kind in degraded])


def _until(next_ns: int) -> float:
    """Return how long to sleep: not at all if more is due already, else at least as long as a timer can."""
    left_s = (next_ns - time.monotonic_ns()) / 1e9
    return max(_TIMER_SECONDS, left_s) if left_s > 0 else 0.0

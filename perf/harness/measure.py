"""The ways in which a storm wakes agents, and the counting of their times.

Everything here takes the cluster by what it can do (`Wakes`), so that it can be tried against one in memory. A wake
ends when its states can be read. Decoding comes with the first look at them, and here that is `check_states`, outside
the time that counts; Redis's packed agents are not unpacked within it either.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Protocol, TypeVar

import msgspec

from ...wire.errors import DawnchorusError
from ...wire.process_tuning import tune_process
from ...wire.transport.channel import receive_frame
from .workload import Workload

__all__ = [
    "Spread",
    "State",
    "Tail",
    "Wakes",
    "WrongResult",
    "check_encoded",
    "check_states",
    "closed_loop",
    "median_rate",
    "milliseconds",
    "notes_on_process",
    "settle",
    "settled_memory",
    "single_wakes",
    "spread_of",
    "tail_of",
    "task_per_agent",
    "wake_many",
]

CLOSED_LOOP_WORKERS = 1024

SETTLE_SECONDS = 0.02

T = TypeVar("T")


class WrongResult(DawnchorusError):
    """A wake came back incomplete or with other values than were saved: no time measured for it means anything."""


class State(Protocol):
    """The part of an `AgentState` that a storm looks at."""

    @property
    def agent_id(self) -> str: ...

    @property
    def complete(self) -> bool: ...

    def __getitem__(self, kind: str, /) -> object: ...


class Wakes(Protocol):
    """The part of a `Cluster` that a storm needs."""

    def wake(self, agent_id: str, /) -> Awaitable[State]: ...

    def wake_many(self, agent_ids: Sequence[str], /) -> Awaitable[Sequence[State]]: ...

    def save_many(self, saves: Mapping[str, Mapping[str, object]], /) -> Awaitable[Mapping[str, object]]: ...


class Spread(msgspec.Struct, frozen=True):
    """Milliseconds of the same work over all runs."""

    min: float
    p50: float
    max: float


class Tail(msgspec.Struct, frozen=True):
    """Microseconds of single operations, all runs together."""

    p50: float
    p99: float


def spread_of(milliseconds: Sequence[float]) -> Spread:
    """Return the smallest, the median and the largest."""
    middle = statistics.median(milliseconds)
    return Spread(round(min(milliseconds), 3), round(middle, 3), round(max(milliseconds), 3))


def tail_of(nanoseconds: Sequence[int]) -> Tail:
    """Return the median and the 99th percentile (the smallest value that at least 99 % do not exceed)."""
    ordered = sorted(nanoseconds)
    p99 = ordered[-(-len(ordered) * 99 // 100) - 1]
    return Tail(round(statistics.median(ordered) / 1000, 2), round(p99 / 1000, 2))


def median_rate(per_second: Sequence[float]) -> float:
    """Return the median of rates, to a decimal."""
    return round(statistics.median(per_second), 1)


async def milliseconds(work: Callable[[], Awaitable[T]]) -> tuple[float, T]:
    """Return how long the work took, and its result, which is let go of after the clock has stopped."""
    started = time.perf_counter_ns()
    result = await work()
    return (time.perf_counter_ns() - started) / 1e6, result


@contextlib.contextmanager
def settled_memory() -> Generator[None]:
    """Set this process as a host of many agents may, and take all that was made so far out of the collector's sight.

    For the one process in which the cluster's client and all peers' clients run, thus the same for all. The
    allocator keeps what `tune_process` sets.
    """
    before = gc.get_threshold()
    tune_process()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def wake_many(cluster: Wakes, ids: Sequence[str]) -> Sequence[State]:
    """Wake all in one call."""
    return await cluster.wake_many(ids)


def notes_on_process() -> list[str]:
    """Return what makes this process slower than a host has to be: its event loop, or that nothing is compiled."""
    notes: list[str] = []
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    if loop != "uvloop":
        notes.append(f"the clients ran on {loop}'s event loop, not on uvloop")
    if inspect.isfunction(receive_frame):
        notes.append("all of dawnchorus was interpreted, nothing compiled: one wake then takes a fifth longer")
    return notes


async def task_per_agent(cluster: Wakes, ids: Sequence[str]) -> Sequence[State]:
    """Wake each agent in a task of its own: the program that is written first."""

    async def wake(agent_id: str) -> State:
        return await cluster.wake(agent_id)

    return await asyncio.gather(*(wake(agent_id) for agent_id in ids))


async def single_wakes(cluster: Wakes, ids: Sequence[str]) -> tuple[list[int], list[State]]:
    """Wake one after the other; return the nanoseconds of each, and the states."""
    times: list[int] = []
    states: list[State] = []
    for agent_id in ids:
        started = time.perf_counter_ns()
        state = await cluster.wake(agent_id)
        times.append(time.perf_counter_ns() - started)
        states.append(state)
    return times, states


async def closed_loop(
    cluster: Wakes, ids: Sequence[str], seconds: float, tasks: int = CLOSED_LOOP_WORKERS
) -> tuple[float, dict[str, State]]:
    """Return the wakes per second of so many tasks that each wake one agent after the other, and the last states."""
    next_ids = itertools.cycle(ids)
    done = 0
    last_states: dict[str, State] = {}
    started = time.perf_counter()
    end = started + seconds

    async def work() -> None:
        nonlocal done
        while True:
            agent_id = next(next_ids)
            state = await cluster.wake(agent_id)
            done += 1
            if time.perf_counter() >= end:
                last_states[agent_id] = state
                return

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(tasks):
                workers.create_task(work())
    except* DawnchorusError as group:
        raise group.exceptions[0] from None
    return done / (time.perf_counter() - started), last_states


def check_states(states: Sequence[State], agents: Sequence[int], workload: Workload) -> None:
    """Check that there is every agent, in the order asked for, complete, and with every value as it was saved."""
    if len(states) != len(agents):
        raise WrongResult(f"{len(states)} states for {len(agents)} agents")
    for state, agent in zip(states, agents, strict=True):
        if state.agent_id != workload.ids[agent]:
            raise WrongResult(f"agent {state.agent_id} in the place of {workload.ids[agent]}")
        if not state.complete:
            raise WrongResult(f"agent {state.agent_id} came back incomplete")
        for kind, value in workload.fragments(agent).items():
            if state[kind] != value:
                raise WrongResult(f"agent {state.agent_id}: {kind} is not what was saved")


def check_encoded(values: Sequence[bytes | None], expected: Sequence[bytes | None], peer: str) -> None:
    """Check a peer's answer, value by value."""
    if list(values) != list(expected):
        raise WrongResult(f"{peer} gave other values than were put into it")


async def settle() -> None:
    """Let pass what the last measurement left behind: objects to collect, and the other processes' last work."""
    gc.collect()
    await asyncio.sleep(SETTLE_SECONDS)

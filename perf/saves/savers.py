"""The ways in which `perf save` saves, and the counting of their times.

Everything here takes the cluster by what it can do (`Saves`), so that it can be tried against one in memory. A save
ends when its caller is told that it is durable; that it is what a wake shows is looked at after the clock has stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from ...wire.errors import DawnchorusError
from ..harness.measure import Wakes, WrongResult

__all__ = ["SAVED_KIND", "FreshValues", "Saves", "check_saved", "check_shown", "concurrent_saves", "single_saves"]

SAVED_KIND = "context"
"""The kind that single savers save: one of an agent that has all, as an agent does after each of its turns."""


class Saves(Wakes, Protocol):
    """The part of a `Cluster` that the harness needs."""

    def save(self, agent_id: str, fragments: Mapping[str, object], /) -> Awaitable[object]: ...


class FreshValues:
    """Values of a size, no two alike."""

    def __init__(self, value_bytes: int, filling: bytes) -> None:
        self._value_bytes = value_bytes
        self._filling = (filling * (1 + value_bytes // max(1, len(filling))))[:value_bytes]
        self._made = 0

    def __call__(self) -> bytes:
        self._made += 1
        return (self._made.to_bytes(8, "big") + self._filling)[: self._value_bytes]


async def single_saves(
    cluster: Saves, ids: Sequence[str], fresh: Callable[[], bytes]
) -> tuple[list[int], dict[str, bytes]]:
    """Save one agent after the other; the nanoseconds of each, and what was saved last."""
    times: list[int] = []
    saved: dict[str, bytes] = {}
    for agent_id in ids:
        fragments = {SAVED_KIND: fresh()}
        started = time.perf_counter_ns()
        await cluster.save(agent_id, fragments)
        times.append(time.perf_counter_ns() - started)
        saved[agent_id] = fragments[SAVED_KIND]
    return times, saved


async def concurrent_saves(
    cluster: Saves, ids: Sequence[str], fresh: Callable[[], bytes], seconds: float
) -> tuple[float, dict[str, bytes]]:
    """Save each agent again and again, a task each; return the saves of all a second, and what each saved last."""
    done = 0
    saved: dict[str, bytes] = {}
    started = time.perf_counter()
    end = started + seconds

    async def work(agent_id: str) -> None:
        nonlocal done
        while time.perf_counter() < end:
            value = fresh()
            await cluster.save(agent_id, {SAVED_KIND: value})
            done += 1
            saved[agent_id] = value

    try:
        async with asyncio.TaskGroup() as savers:
            for agent_id in ids:
                savers.create_task(work(agent_id))
    except* DawnchorusError as group:
        raise group.exceptions[0] from None
    return done / (time.perf_counter() - started), saved


def check_saved(results: Mapping[str, object]) -> None:
    """Check that every save of a `save_many` was acknowledged."""
    for agent_id, result in results.items():
        if isinstance(result, BaseException):
            raise WrongResult(f"agent {agent_id} could not be saved: {result}") from result


async def check_shown(cluster: Saves, saved: Mapping[str, bytes]) -> None:
    """Check that a wake shows of each agent what was saved last."""
    states = await cluster.wake_many(list(saved))
    for state, (agent_id, value) in zip(states, saved.items(), strict=True):
        if not state.complete or state.agent_id != agent_id or state[SAVED_KIND] != value:
            raise WrongResult(f"agent {agent_id}: {SAVED_KIND} is not what was acknowledged")

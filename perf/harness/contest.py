"""A contest: all that take part are measured in turn, run by run, and the times of each are kept by name.

In alternation, because a machine changes under the measurement: what slows one run slows all its members. Each run
begins with another turn, so that none always follows the same one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Generator, Sequence

import msgspec

from .measure import Spread, Tail, median_rate, spread_of, tail_of
from .progress import Progress
from .workload import WorkloadError

__all__ = ["Times", "measure_runs", "require_positive", "take_turns"]


class Times:
    """The times of all runs, by what was measured."""

    def __init__(self) -> None:
        self._milliseconds: dict[str, list[float]] = {}
        self._nanoseconds: dict[str, list[int]] = {}
        self._per_second: dict[str, list[float]] = {}

    def clear(self) -> None:
        """Drop them: what came before was to warm up."""
        self._milliseconds.clear()
        self._nanoseconds.clear()
        self._per_second.clear()

    def add_ms(self, name: str, milliseconds: float) -> None:
        """Keep how long one piece of work took."""
        self._milliseconds.setdefault(name, []).append(milliseconds)

    def add_ns(self, name: str, nanoseconds: Sequence[int]) -> None:
        """Keep how long each of many small operations took."""
        self._nanoseconds.setdefault(name, []).extend(nanoseconds)

    def add_rate(self, name: str, per_second: float) -> None:
        """Keep how many operations a second there were."""
        self._per_second.setdefault(name, []).append(per_second)

    @contextlib.contextmanager
    def clock(self, name: str) -> Generator[None]:
        """Keep how long the block takes, which waits for nothing in this loop."""
        started = time.perf_counter_ns()
        yield
        self.add_ms(name, (time.perf_counter_ns() - started) / 1e6)

    def spread(self, name: str) -> Spread:
        """Return the spread of a piece of work that was measured."""
        return spread_of(self._milliseconds[name])

    def spread_if_any(self, name: str) -> Spread | None:
        """Return the spread of a piece of work, None if it was not measured."""
        return self.spread(name) if name in self._milliseconds else None

    def tail(self, name: str) -> Tail:
        """Return the median and 99th percentile of small operations that were measured."""
        return tail_of(self._nanoseconds[name])

    def rate(self, name: str) -> float:
        """Return the median rate of operations that were measured."""
        return median_rate(self._per_second[name])


async def take_turns(turns: Sequence[Callable[[], Awaitable[None]]], number: int) -> None:
    """Take every turn once, in their order, beginning with another one each run."""
    first = number % len(turns)
    for turn in [*turns[first:], *turns[:first]]:
        await turn()


async def measure_runs(runs: int, times: Times, run: Callable[[int], Awaitable[None]], progress: Progress) -> None:
    """Run as often as asked, by number, after one more (the number `runs`) that only warms up what starts lazily."""
    await run(runs)
    times.clear()
    for number in range(runs):
        progress("measure", number, runs)
        await run(number)
    progress("measure", runs, runs)


def require_positive(options: msgspec.Struct, *names: str) -> None:
    """Reject options that are to be above 0 and are not.

    Raises:
        WorkloadError: the message names the first.
    """
    for name in names:
        if getattr(options, name) <= 0:
            raise WorkloadError(f"{name} must be above 0")

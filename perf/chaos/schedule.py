"""The schedule of an open-loop load's wakes: pure.

Open-loop: a wake starts when its time has come, however many are still under way; a slow cluster gets no rest from it.
Bounded in count, in the wakes that one turn of the loop starts, and in how far it may fall behind.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BEHIND_NS_MAX", "COUNT_MAX", "TURN_STARTS_MAX", "Schedule"]

COUNT_MAX: Final = 2_000_000
"""Wakes of one load: 50 MB of what is kept of each."""

TURN_STARTS_MAX: Final = 500
"""Wakes started in one turn of the loop: about 2 ms, after which those that ended get their turn."""

BEHIND_NS_MAX: Final = 2_000_000_000
"""How long after the last planned start wakes are still begun; a load that is so late is no load of this rate."""


class Schedule:
    """Starts spread evenly over ticks, given out as their time comes; those of one tick are planned together."""

    def __init__(self, begin_ns: int, rate: float, seconds: float, tick_ns: int = 1) -> None:
        """`rate` starts a second for `seconds`, the first at `begin_ns`; at least one, at most COUNT_MAX."""
        self._begin_ns = begin_ns
        self._step_ns = 1e9 / rate
        self._tick_ns = tick_ns
        self.count = max(1, min(COUNT_MAX, round(rate * seconds)))
        self._next = 0

    @property
    def left(self) -> int:
        """How many have not been given out."""
        return self.count - self._next

    @property
    def next_ns(self) -> int:
        """When the next one is due."""
        return self.planned_ns(self._next)

    def planned_ns(self, number: int) -> int:
        """Return when a start is due."""
        return self._begin_ns + int(number * self._step_ns) // self._tick_ns * self._tick_ns

    def poll_due(self, now_ns: int) -> range:
        """Return the numbers of the starts that are due, the earliest TURN_STARTS_MAX of them, each once."""
        first = self._next
        # Those of the tick that has begun are due as well. The loops below make up for what the division rounds.
        ticks_ns = ((now_ns - self._begin_ns) // self._tick_ns + 1) * self._tick_ns
        due = max(first, min(self.count, first + TURN_STARTS_MAX, int(ticks_ns / self._step_ns)))
        while due < min(self.count, first + TURN_STARTS_MAX) and self.planned_ns(due) <= now_ns:
            due += 1
        while due > first and self.planned_ns(due - 1) > now_ns:
            due -= 1
        self._next = due
        return range(first, due)

    def is_over(self, now_ns: int) -> bool:
        """Return whether nothing more is to be started: all are, or it has fallen too far behind."""
        return not self.left or now_ns > self.planned_ns(self.count - 1) + BEHIND_NS_MAX

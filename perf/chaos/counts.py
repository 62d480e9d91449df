"""Counts of the wakes of one phase, by how they ended: pure.

A wake's latency is counted from the moment at which it was planned, not from the one at which it was asked for: a load
that stalls starts its wakes late, and would otherwise hide exactly the stall that was to be seen ("coordinated
omission", Gil Tene). All times are nanoseconds of one clock.

Four numbers are kept of each wake, 25 bytes: exact percentiles of a million wakes cost 25 MB.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Sequence

import msgspec

__all__ = ["Ending", "Latency", "PhaseCounts", "WakeCounts", "latency_of"]

_SHED = 0x10
"""Stands beside the ending of a wake of which a kind was shed."""


class Ending(enum.IntEnum):
    """How a wake ended."""

    COMPLETE = 0
    DEGRADED = 1
    """Without a kind that is not required."""
    FAILED = 2
    """Without a kind that is required, or with another error."""


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds: the smallest value that half, 99 % and 99.9 % do not exceed, and the largest."""

    p50: float
    p99: float
    p999: float
    max: float


class WakeCounts(msgspec.Struct, frozen=True):
    """The wakes of one phase. Latencies are None where there was no such wake."""

    offered: int
    """asked for"""
    complete: int
    degraded: int
    failed: int
    shed: int
    """of the degraded and failed: those of which a kind was shed"""
    stuck: int
    """never ended, although their deadline had long passed"""
    unsent: int
    """planned and not asked for any more, because the load had fallen too far behind"""
    latency_ms: Latency | None
    """of all that ended, from their planned starts"""
    complete_ms: Latency | None
    shed_ms: Latency | None
    past_deadline_ms: Latency | None
    """of those that ended after their deadline: by how much"""
    started_late_ms: Latency | None
    """by how much the load was late with its starts"""


def latency_of(nanoseconds: Sequence[int]) -> Latency | None:
    """Return the latency of these times, None for none."""
    if not nanoseconds:
        return None
    ordered = sorted(nanoseconds)
    p50, p99, p999 = (ordered[-(-len(ordered) * share // 1_000) - 1] for share in (500, 990, 999))
    return Latency(*(round(value / 1e6, 3) for value in (p50, p99, p999, ordered[-1])))


class PhaseCounts:
    """Takes in the starts and ends of a phase's wakes, in any order."""

    def __init__(self) -> None:
        self._late = array("q")
        self._planned = array("q")
        self._due = array("q")
        self._ended = array("q")
        self._endings = array("B")

    @property
    def offered(self) -> int:
        """How many wakes were asked for."""
        return len(self._late)

    @property
    def under_way(self) -> int:
        """How many have not ended."""
        return len(self._late) - len(self._ended)

    def handle_start(self, planned_ns: int, now_ns: int) -> None:
        """Count the start of a wake."""
        self._late.append(max(0, now_ns - planned_ns))

    def handle_end(self, planned_ns: int, due_ns: int, now_ns: int, ending: Ending, shed: bool) -> None:
        """Count the end of a wake whose deadline was at `due_ns`."""
        self._planned.append(planned_ns)
        self._due.append(due_ns)
        self._ended.append(now_ns)
        self._endings.append(ending | _SHED if shed else ending)

    def complete_per_s(self, seconds: float) -> float:
        """Return how many complete wakes a second that is, where they were planned within so many seconds."""
        return self._endings.count(Ending.COMPLETE) / seconds

    def last_incomplete_ns(self, since_ns: int) -> int | None:
        """Return how long after a moment the last wake that was not complete was planned.

        0 where all wakes since that moment were complete; None where none was planned after the last incomplete one,
        so that it is not known whether the fault is over.
        """
        last_whole = last_broken = since_ns
        for planned_ns, ending in zip(self._planned, self._endings, strict=True):
            if ending == Ending.COMPLETE:
                last_whole = max(last_whole, planned_ns)
            else:
                last_broken = max(last_broken, planned_ns)
        return last_broken - since_ns if last_whole > last_broken else None

    def counts(self, unsent: int = 0, since_ns: int | None = None) -> WakeCounts:
        """Return what became of them all: those that have not ended by now count as stuck.

        With `since_ns`: of those that ended and were planned at that moment or later.
        """
        latencies: list[int] = []
        whole: list[int] = []
        shed: list[int] = []
        past: list[int] = []
        tally = dict.fromkeys(Ending, 0)
        for planned_ns, due_ns, ended_ns, ending in zip(
            self._planned, self._due, self._ended, self._endings, strict=True
        ):
            if since_ns is not None and planned_ns < since_ns:
                continue
            latency = ended_ns - planned_ns
            latencies.append(latency)
            kind = Ending(ending & ~_SHED)
            tally[kind] += 1
            if kind is Ending.COMPLETE:
                whole.append(latency)
            elif ending & _SHED:
                shed.append(latency)
            if (late := ended_ns - due_ns) > 0:
                past.append(late)
        return WakeCounts(
            offered=self.offered if since_ns is None else len(latencies),
            complete=tally[Ending.COMPLETE],
            degraded=tally[Ending.DEGRADED],
            failed=tally[Ending.FAILED],
            shed=len(shed),
            stuck=self.under_way if since_ns is None else 0,
            unsent=unsent,
            latency_ms=latency_of(latencies),
            complete_ms=latency_of(whole),
            shed_ms=latency_of(shed),
            past_deadline_ms=latency_of(past),
            started_late_ms=latency_of(self._late),
        )

"""The report of `perf chaos`: one JSON object for programs (`ChaosReport`), tables for people."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..harness.report import note_lines, table
from .counts import Latency, WakeCounts

__all__ = [
    "NOTHING",
    "ChaosReport",
    "Healing",
    "MemoryUse",
    "OverloadReport",
    "PhaseReport",
    "render_chaos",
    "unproven_phase",
]

NOTHING = "nothing was done"
"""The fault of a phase without one."""

GOODPUT_SHARE_MIN = 0.8
"""The share of the best goodput that must be left when three times as much is offered."""


class MemoryUse(msgspec.Struct, frozen=True):
    """RssAnon in bytes of the process in which load and client run, the load's own records included (25 a wake)."""

    before: int
    peak: int
    after: int


class Healing(msgspec.Struct, frozen=True):
    """How soon all was well again."""

    since: str
    """after what, in words"""
    last_incomplete_ms: float | None
    """so long after that the last wake was planned that was not complete: 0 where all were, None where it went on"""


class OverloadReport(msgspec.Struct, frozen=True):
    """The goodput under overload, in complete wakes a second."""

    share_of_core: float
    """that each node was let have"""
    best_per_s: float
    """the best of all rates that were tried before"""
    times: float
    """so many times the best was to be offered: three, or as much as one process can"""
    offered_per_s: float
    goodput_per_s: float
    goodput_share: float
    """of the best"""
    normal_per_s: float
    """the ordinary rate before and after"""
    before_ms: Latency | None
    """at the ordinary rate before the load"""
    after_ms: Latency | None
    """at the ordinary rate, of wakes planned two seconds after the load had ended, or later"""
    after_incomplete: int
    """and how many of those were not complete"""


class PhaseReport(msgspec.Struct, frozen=True):
    """One phase; where it is `unproven`, that says why, and all else is missing."""

    phase: str
    fault: str
    """what was done, in words"""
    seconds: float = 0.0
    rate: float = 0.0
    """wakes planned a second"""
    wakes: WakeCounts | None = None
    memory: MemoryUse | None = None
    healing: Healing | None = None
    overload: OverloadReport | None = None
    unproven: str | None = None


class ChaosReport(msgspec.Struct, frozen=True):
    """A run's result; encoded, the object that `dawnchorus perf chaos --json` prints."""

    agents: int
    value_bytes: int
    rate: float
    deadline_ms: int
    node: str
    """that the faults are done to, but for overload"""
    seed: int
    phases: list[PhaseReport]
    notes: list[str]


def unproven_phase(phase: str, why: str) -> PhaseReport:
    """Return the report of a phase that cannot be run here."""
    return PhaseReport(phase, NOTHING, unproven=why)


def render_chaos(report: ChaosReport) -> RenderableType:
    """Return the report as a table of a line for each phase, and remarks on them."""
    head = Text.assemble(
        (f"{report.rate:,.0f} wakes a second, each planned beforehand", "bold"),
        f", of {report.agents:,} agents with 5 fragments of {report.value_bytes:,} bytes; deadline ",
        f"{report.deadline_ms:,} ms; 3 node processes over TCP, faults done to {report.node}",
    )
    remarks = [Text(f"{phase.phase}: {remark}") for phase in report.phases for remark in _remarks(phase)]
    return Group(head, _table(report), *remarks, *note_lines(report.notes))


def _table(report: ChaosReport) -> Table:
    endings, latencies = ("offered", "complete", "degraded", "failed", "shed"), ("p50", "p99", "p99.9", "largest")
    rows = table("Latency in ms, from the planned start", *endings, *latencies, "load late", first="phase")
    for phase in report.phases:
        wakes = phase.wakes
        if wakes is None:
            rows.add_row(phase.phase, Text("unproven", style="yellow"))
            continue
        counts = [wakes.offered, wakes.complete, wakes.degraded, wakes.failed, wakes.shed]
        late = wakes.started_late_ms
        rows.add_row(
            phase.phase,
            *(f"{count:,}" for count in counts),
            *_latency_cells(wakes.latency_ms),
            "-" if late is None else f"{late.p99:.1f}",
        )
    rows.caption = "load late: p99 of how late the load itself was with its starts, in ms; latencies contain it"
    rows.caption_justify = "left"
    return rows


def _latency_cells(latency: Latency | None) -> list[str]:
    if latency is None:
        return ["-"] * 4
    return [f"{milliseconds:,.1f}" for milliseconds in (latency.p50, latency.p99, latency.p999, latency.max)]


def _remarks(phase: PhaseReport) -> Iterator[str]:
    """Yield remarks on a phase beside its line, a sentence each."""
    if phase.unproven is not None:
        yield f"left unproven: {phase.unproven}"
        return
    said = [] if phase.fault == NOTHING else [phase.fault]
    if phase.healing is not None:
        said.append(_healing_text(phase.healing))
    if said:
        yield "; ".join(said)
    if phase.wakes is not None:
        yield from _wakes_remarks(phase.wakes)
    if phase.overload is not None:
        yield from _overload_remarks(phase.overload, phase.wakes)
    if phase.memory is not None and phase.phase in ("flapping", "overload"):
        sizes = [f"{size / 2**20:,.1f}" for size in (phase.memory.before, phase.memory.peak, phase.memory.after)]
        yield f"anonymous memory of load and client {sizes[0]} MiB before, {sizes[1]} at most, {sizes[2]} after"


def _healing_text(healing: Healing) -> str:
    if healing.last_incomplete_ms is None:
        return f"{healing.since} wakes were not complete again by the end"
    if not healing.last_incomplete_ms:
        return f"{healing.since} every wake was complete"
    return f"{healing.since} the last wake that was not complete began {healing.last_incomplete_ms:,.0f} ms later"


def _wakes_remarks(wakes: WakeCounts) -> Iterator[str]:
    if wakes.stuck:
        yield f"{wakes.stuck:,} wakes were STUCK: they had not ended long after their deadline"
    elif wakes.past_deadline_ms is None:
        yield "every wake ended by its deadline"
    else:
        past = wakes.past_deadline_ms
        yield f"every wake ended; p99 of those past their deadline {past.p99:,.1f} ms past it, {past.max:,.1f} at most"
    if wakes.unsent:
        yield f"{wakes.unsent:,} wakes were not asked for any more: the load had fallen too far behind"


def _overload_remarks(overload: OverloadReport, wakes: WakeCounts | None) -> Iterator[str]:
    missed = "" if overload.goodput_share >= GOODPUT_SHARE_MIN else f"; must be {GOODPUT_SHARE_MIN} at least: missed"
    yield (
        f"best goodput {overload.best_per_s:,.0f}/s, offered {overload.times:.1f} times that, "
        f"{overload.offered_per_s:,.0f}/s; goodput then {overload.goodput_per_s:,.0f}/s: "
        f"{overload.goodput_share:.2f} of the best{missed}"
    )
    if wakes is not None and wakes.complete_ms is not None:
        told = wakes.shed_ms
        shed = (
            "nothing was shed" if told is None else f"shed ones were told after {told.p50:.1f}, p99 {told.p99:.1f} ms"
        )
        yield f"complete wakes took {wakes.complete_ms.p50:.1f}, p99 {wakes.complete_ms.p99:.1f} ms; {shed}"
    before, after = overload.before_ms, overload.after_ms
    if before is not None and after is not None:
        yield (
            f"at {overload.normal_per_s:,.0f}/s p50 and p99 were {before.p50:.1f} and {before.p99:.1f} ms before, "
            f"{after.p50:.1f} and {after.p99:.1f} ms from two seconds after the load on, "
            f"where {overload.after_incomplete:,} were not complete"
        )

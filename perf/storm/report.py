"""The report of a storm: one JSON object for programs (`StormReport`), a table for people (`render`)."""

from __future__ import annotations

from collections.abc import Container, Mapping

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..harness.measure import Spread, Tail
from ..harness.topologies import TopologyName, node_count
from ..peers.redis_peer import Batch

__all__ = ["Batches", "Peers", "Ratios", "StormReport", "Target", "ratios_of", "ratios_table", "render", "targets_of"]


class Batches(msgspec.Struct, frozen=True):
    """The fastest batches of those tried on this machine, before anything was measured."""

    mget: Batch
    packed: Batch


class Peers(msgspec.Struct, frozen=True):
    """The same agents woken by others, in the same runs; None where it could not be measured (`notes` say why)."""

    redis_mget_ms: Spread | None
    redis_packed_ms: Spread | None
    redis_natural_ms: Spread | None
    raw_zmq_ms: Spread | None
    raw_zmq_uncopied_ms: Spread | None
    """the same, sent without the copy that pyzmq makes by itself"""
    raw_echo_us: Tail | None


class Ratios(msgspec.Struct, frozen=True):
    """Medians divided: 0.5 is half the peer's time. The closed loop's is of speeds: 10 is ten times as many."""

    wake_many_to_redis: float | None
    wake_many_to_redis_packed: float | None
    natural_to_redis_natural: float | None
    wake_many_to_raw: float | None
    single_to_raw_echo: float | None
    closed_loop_to_redis_natural: float | None


class StormReport(msgspec.Struct, frozen=True):
    """One storm's result; encoded, the object that `dawnchorus perf storm --json` prints."""

    agents: int
    """asleep, in the cluster and in Redis"""
    wake: int
    """woken at once"""
    fragments: int
    """of each agent"""
    value_bytes: int
    """of each fragment; the mean where they differ"""
    topology: TopologyName
    runs: int
    wake_many_ms: Spread
    natural_ms: Spread
    single_us: Tail
    closed_loop_per_s: float
    peers: Peers
    ratios: Ratios
    redis_batches: Batches | None
    notes: list[str]


class Target(msgspec.Struct, frozen=True):
    """What a ratio must reach and what it aims at."""

    must: float
    aim: float | None


_TARGET_AGENTS, _TARGET_WAKE, _TARGET_FRAGMENTS = 100_000, 10_000, 5

_TARGETS: dict[tuple[TopologyName, int], dict[str, Target]] = {
    ("one-store", 512): {
        "wake_many_to_redis_packed": Target(0.50, 0.30),
        "natural_to_redis_natural": Target(0.15, 0.10),
        "wake_many_to_raw": Target(2.0, 1.4),
        "single_to_raw_echo": Target(2.0, 1.4),
        "closed_loop_to_redis_natural": Target(10.0, None),
    },
    ("one-store", 4096): {"wake_many_to_redis_packed": Target(0.50, 0.35)},
    ("five-stores", 512): {"wake_many_to_redis": Target(0.60, 0.40)},
    ("default", 512): {
        "wake_many_to_redis_packed": Target(0.70, 0.40),
        "single_to_raw_echo": Target(3.5, 2.5),
    },
}
"""By topology and bytes of a value. The closed loop's is a least value, the others are greatest values."""


def targets_of(report: StormReport) -> dict[str, Target]:
    """The targets for the report's ratios by name; none for another size than they were set for."""
    size = (report.agents, report.wake, report.fragments)
    if size != (_TARGET_AGENTS, _TARGET_WAKE, _TARGET_FRAGMENTS):
        return {}
    return _TARGETS.get((report.topology, report.value_bytes), {})


def ratios_of(
    wake: int, wake_many_ms: Spread, natural_ms: Spread, single_us: Tail, closed_loop_per_s: float, peers: Peers
) -> Ratios:
    """The ratios of these medians."""

    def ratio(ours: Spread | Tail, theirs: Spread | Tail | None) -> float | None:
        return None if theirs is None else round(ours.p50 / theirs.p50, 3)

    redis_natural = peers.redis_natural_ms
    return Ratios(
        wake_many_to_redis=ratio(wake_many_ms, peers.redis_mget_ms),
        wake_many_to_redis_packed=ratio(wake_many_ms, peers.redis_packed_ms),
        natural_to_redis_natural=ratio(natural_ms, redis_natural),
        wake_many_to_raw=ratio(wake_many_ms, peers.raw_zmq_ms),
        single_to_raw_echo=ratio(single_us, peers.raw_echo_us),
        closed_loop_to_redis_natural=(
            None if redis_natural is None else round(closed_loop_per_s * redis_natural.p50 / 1000 / wake, 2)
        ),
    )


def render(report: StormReport) -> RenderableType:
    """The report as tables: how long each way of waking took, and how that compares."""
    nodes = node_count(report.topology)
    head = Text.assemble(
        (f"{report.wake:,} agents woken", "bold"),
        f" of {report.agents:,} asleep, {report.fragments} fragments of {report.value_bytes:,} bytes each, ",
        f"from {nodes} node processes (topology {report.topology}); {report.runs} alternated runs",
    )
    notes = [Text(f"Note: {note}", style="yellow") for note in report.notes]
    ratios = ratios_table(report.ratios, _RATIO_TEXTS, targets_of(report), {"closed_loop_to_redis_natural"})
    return Group(head, _times_table(report), ratios, *notes)


def _times_table(report: StormReport) -> Table:
    table = Table(title="How long it took", title_justify="left", title_style="bold")
    table.add_column("what")
    for column in ("best", "median", "worst", "agents/s at the median"):
        table.add_column(column, justify="right")
    peers, batches = report.peers, report.redis_batches
    mget = _batch_text(batches.mget) if batches else "best batch"
    packed = _batch_text(batches.packed) if batches else "best batch"
    rows = [
        ("dawnchorus: all in one wake_many", report.wake_many_ms),
        ("dawnchorus: a task per agent, each awaiting wake", report.natural_ms),
        (f"Redis: one key per fragment, {mget}", peers.redis_mget_ms),
        (f"Redis: agents packed beforehand, {packed}", peers.redis_packed_ms),
        ("Redis: a task per agent, redis.asyncio, 64 connections", peers.redis_natural_ms),
        ("limit: the same bytes over raw ZeroMQ, untouched", peers.raw_zmq_ms),
        ("limit: the same, sent without a copy", peers.raw_zmq_uncopied_ms),
    ]
    for what, spread in rows:
        if spread is None:
            table.add_row(what, "-", "not measured", "-", "-")
        else:
            cells = [f"{milliseconds:,.1f} ms" for milliseconds in (spread.min, spread.p50, spread.max)]
            table.add_row(what, *cells, f"{report.wake / spread.p50 * 1000:,.0f}")
    table.add_section()
    _add_tail(table, "dawnchorus: one wake at a time", report.single_us)
    _add_tail(table, "limit: raw ZeroMQ echo of one agent's bytes", peers.raw_echo_us)
    table.add_row("dawnchorus: 1,024 workers in a closed loop", "", "", "", f"{report.closed_loop_per_s:,.0f}")
    return table


def _add_tail(table: Table, what: str, tail: Tail | None) -> None:
    if tail is None:
        table.add_row(what, "-", "not measured", "-", "-")
    else:
        table.add_row(what, "", f"{tail.p50:,.0f} us", f"p99 {tail.p99:,.0f} us", f"{1e6 / tail.p50:,.0f}")


def _batch_text(batch: Batch) -> str:
    return f"MGETs of {batch.agents:,} agents" + (", pipelined" if batch.pipelined else "")


_RATIO_TEXTS = {
    "wake_many_to_redis": "wake_many to Redis, one key per fragment",
    "wake_many_to_redis_packed": "wake_many to Redis, packed agents",
    "natural_to_redis_natural": "a task per agent to the same on redis.asyncio",
    "wake_many_to_raw": "wake_many to the raw limit",
    "single_to_raw_echo": "one wake at a time to the raw echo",
    "closed_loop_to_redis_natural": "wakes/s of the closed loop to redis.asyncio's",
}


def ratios_table(
    ratios: msgspec.Struct, texts: Mapping[str, str], targets: Mapping[str, Target], speeds: Container[str]
) -> Table:
    """The ratios that `texts` name, each beside its target, if any; of those in `speeds` more is faster."""
    table = Table(title="Beside the peers (medians divided)", title_justify="left", title_style="bold")
    table.add_column("what")
    table.add_column("ratio", justify="right")
    table.add_column("in words")
    if targets:
        table.add_column("must", justify="right")
        table.add_column("aim", justify="right")
    for name, text in texts.items():
        value: float | None = getattr(ratios, name)
        faster_is_more = name in speeds
        target = targets.get(name)
        cells = [text, *_ratio_cells(value, target, faster_is_more=faster_is_more)]
        if targets:
            sign = ">=" if faster_is_more else "<="
            cells.append(f"{sign} {target.must:g}" if target else "")
            cells.append(f"{sign} {target.aim:g}" if target and target.aim is not None else "")
        table.add_row(*cells)
    return table


def _ratio_cells(value: float | None, target: Target | None, *, faster_is_more: bool) -> list[Text | str]:
    """A ratio and what it means in words, coloured by whether it is what it must be."""
    if value is None:
        return ["-", "not measured"]
    speed = value if faster_is_more else 1 / value
    words = f"{speed:.1f} times as fast" if speed >= 1 else f"{1 / speed:.1f} times as long"
    if target is None:
        return [f"{value:.3g}", words]
    met = value >= target.must if faster_is_more else value <= target.must
    return [Text(f"{value:.3g}", style="green" if met else "bold red"), words if met else f"{words}; must is missed"]

"""The report of a storm: one JSON object for programs (`StormReport`), a table for people (`render`)."""

from __future__ import annotations

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..harness.measure import Spread, Tail
from ..harness.report import Target, add_spread, add_tail, note_lines, ratios_table, spreads_table
from ..harness.topologies import TopologyName, node_count
from ..peers.redis_peer import Batch

__all__ = ["Batches", "Peers", "Ratios", "StormReport", "ratios_of", "render", "targets_of"]


class Batches(msgspec.Struct, frozen=True):
    """The fastest batches of those tried on this machine, before anything was measured."""

    mget: Batch
    packed: Batch


class Peers(msgspec.Struct, frozen=True):
    """The same agents woken by others, in the same runs; None where it could not be measured (`notes` say why)."""

    redis_mget_ms: Spread | None
    redis_packed_ms: Spread | None
    redis_task_per_agent_ms: Spread | None
    raw_zmq_ms: Spread | None
    raw_zmq_uncopied_ms: Spread | None
    """the same, sent without the copy that pyzmq makes by itself"""
    raw_echo_us: Tail


class Ratios(msgspec.Struct, frozen=True):
    """Medians divided: 0.5 is half the peer's time. The closed loop's is of speeds: 10 is ten times as many."""

    wake_many_to_redis: float | None
    wake_many_to_redis_packed: float | None
    task_per_agent_to_redis: float | None
    wake_many_to_raw: float | None
    single_to_raw_echo: float | None
    closed_loop_to_redis_task_per_agent: float | None


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
    task_per_agent_ms: Spread
    single_us: Tail
    closed_loop_per_s: float
    peers: Peers
    ratios: Ratios
    redis_batches: Batches | None
    notes: list[str]


_TARGET_AGENTS, _TARGET_WAKE, _TARGET_FRAGMENTS = 100_000, 10_000, 5

_TARGETS: dict[tuple[TopologyName, int], dict[str, Target]] = {
    ("one-store", 512): {
        "wake_many_to_redis_packed": Target(0.50, 0.30),
        "task_per_agent_to_redis": Target(0.15, 0.10),
        "wake_many_to_raw": Target(2.0, 1.4),
        "single_to_raw_echo": Target(2.0, 1.4),
        "closed_loop_to_redis_task_per_agent": Target(10.0, None),
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
    """Return the targets for the report's ratios by name; none for another size than they were set for."""
    size = (report.agents, report.wake, report.fragments)
    if size != (_TARGET_AGENTS, _TARGET_WAKE, _TARGET_FRAGMENTS):
        return {}
    return _TARGETS.get((report.topology, report.value_bytes), {})


def ratios_of(
    wake: int, wake_many_ms: Spread, task_per_agent_ms: Spread, single_us: Tail, closed_loop_per_s: float, peers: Peers
) -> Ratios:
    """Return the ratios of these medians."""

    def ratio(ours: Spread | Tail, theirs: Spread | Tail | None) -> float | None:
        return None if theirs is None else round(ours.p50 / theirs.p50, 3)

    theirs_ms = peers.redis_task_per_agent_ms
    return Ratios(
        wake_many_to_redis=ratio(wake_many_ms, peers.redis_mget_ms),
        wake_many_to_redis_packed=ratio(wake_many_ms, peers.redis_packed_ms),
        task_per_agent_to_redis=ratio(task_per_agent_ms, theirs_ms),
        wake_many_to_raw=ratio(wake_many_ms, peers.raw_zmq_ms),
        single_to_raw_echo=ratio(single_us, peers.raw_echo_us),
        closed_loop_to_redis_task_per_agent=(
            None if theirs_ms is None else round(closed_loop_per_s * theirs_ms.p50 / 1000 / wake, 2)
        ),
    )


def render(report: StormReport) -> RenderableType:
    """Return the report as tables: how long each way of waking took, and how that compares."""
    nodes = node_count(report.topology)
    head = Text.assemble(
        (f"{report.wake:,} agents woken", "bold"),
        f" of {report.agents:,} asleep, {report.fragments} fragments of {report.value_bytes:,} bytes each, ",
        f"from {nodes} node processes (topology {report.topology}); {report.runs} alternated runs",
    )
    ratios = ratios_table(report.ratios, _RATIO_TEXTS, targets_of(report), {"closed_loop_to_redis_task_per_agent"})
    return Group(head, _times_table(report), ratios, *note_lines(report.notes))


def _times_table(report: StormReport) -> Table:
    table = spreads_table("How long it took")
    peers, batches = report.peers, report.redis_batches
    mget = _batch_text(batches.mget) if batches else "best batch"
    packed = _batch_text(batches.packed) if batches else "best batch"
    rows = [
        ("dawnchorus: all in one wake_many", report.wake_many_ms),
        ("dawnchorus: a task per agent, each awaiting wake", report.task_per_agent_ms),
        (f"Redis: one key per fragment, {mget}", peers.redis_mget_ms),
        (f"Redis: agents packed beforehand, {packed}", peers.redis_packed_ms),
        ("Redis: a task per agent, redis.asyncio, 64 connections", peers.redis_task_per_agent_ms),
        ("baseline: the same bytes over raw ZeroMQ, untouched", peers.raw_zmq_ms),
        ("baseline: the same, sent without a copy", peers.raw_zmq_uncopied_ms),
    ]
    for what, spread in rows:
        add_spread(table, what, spread, report.wake)
    table.add_section()
    add_tail(table, "dawnchorus: one wake at a time", report.single_us)
    add_tail(table, "baseline: raw ZeroMQ echo of one agent's bytes", peers.raw_echo_us)
    table.add_row("dawnchorus: 1,024 workers in a closed loop", "", "", "", f"{report.closed_loop_per_s:,.0f}")
    return table


def _batch_text(batch: Batch) -> str:
    return f"MGETs of {batch.agents:,} agents" + (", pipelined" if batch.pipelined else "")


_RATIO_TEXTS = {
    "wake_many_to_redis": "wake_many to Redis, one key per fragment",
    "wake_many_to_redis_packed": "wake_many to Redis, packed agents",
    "task_per_agent_to_redis": "a task per agent to the same on redis.asyncio",
    "wake_many_to_raw": "wake_many to the raw ZeroMQ baseline",
    "single_to_raw_echo": "one wake at a time to the raw ZeroMQ echo",
    "closed_loop_to_redis_task_per_agent": "wakes/s of the closed loop to redis.asyncio's",
}

"""The report of `perf save`: one JSON object for programs (`SaveReport`), a table for people."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..harness.measure import Spread, Tail
from ..harness.report import Target, add_spread, add_tail, note_lines, ratios_table, spreads_table, tails_table
from ..harness.topologies import TopologyName, node_count
from ..peers.postgres_peer import Upserts
from ..peers.redis_peer import Batch

__all__ = [
    "SaveBatches",
    "SavePeers",
    "SaveRatios",
    "SaveReport",
    "SingleWakes",
    "render_save",
    "save_ratios",
    "save_targets",
]


class SaveBatches(msgspec.Struct, frozen=True):
    """The fastest batches of those tried on this machine, before anything was measured."""

    redis_sets: Batch | None
    redis_packed: Batch | None
    postgres: Upserts | None


class SavePeers(msgspec.Struct, frozen=True):
    """The same saved by others, on the same disk in the same runs; None where not measured (see `notes`)."""

    redis_sets_ms: Spread | None
    redis_packed_ms: Spread | None
    postgres_ms: Spread | None
    raw_fsync_us: Tail
    """a raw ZeroMQ echo whose server writes and syncs 4 KiB before it answers"""
    fdatasync_per_s: float
    """4 KiB written and synced, one after the other"""


class SingleWakes(NamedTuple):
    """Single wakes with nothing else going on, beside savers, and beside a backup."""

    idle: Tail
    saving: Tail
    backup: Tail


class SaveRatios(msgspec.Struct, frozen=True):
    """Medians divided: 0.5 is half the peer's time. `concurrent_to_fdatasync` is of speeds: 10 is ten times as many."""

    saves_to_redis_sets: float | None
    saves_to_redis_packed: float | None
    saves_to_postgres: float | None
    single_to_raw_fsync: float
    concurrent_to_fdatasync: float
    wake_p99_saving_to_idle: float
    wake_p99_backup_to_idle: float
    """both of 99th percentiles"""


class SaveReport(msgspec.Struct, frozen=True):
    """The result; encoded, the object that `dawnchorus perf save --json` prints."""

    agents: int
    fragments: int
    """of each agent"""
    value_bytes: int
    """of each fragment"""
    topology: TopologyName
    runs: int
    file_system: str
    save_many_ms: Spread
    """all agents with all fragments"""
    single_us: Tail
    """one fragment of one agent after the other"""
    savers: int
    concurrent_per_s: float
    """saves of one fragment by so many savers at once"""
    wake_idle_us: Tail
    """single wakes of a cluster that does nothing else"""
    wake_saving_us: Tail
    """the same while so many savers in another process save what they can"""
    wake_backup_us: Tail
    """the same while all shards are backed up"""
    saving_per_s: float
    """what the savers could meanwhile"""
    peers: SavePeers
    ratios: SaveRatios
    batches: SaveBatches
    notes: list[str]


_TARGETS = {
    "saves_to_redis_sets": Target(0.5, 0.2),
    "saves_to_redis_packed": Target(1.2, 0.9),
    "saves_to_postgres": Target(0.5, 0.25),
    "single_to_raw_fsync": Target(3.0, 2.2),
    "concurrent_to_fdatasync": Target(10.0, 30.0),
    "wake_p99_saving_to_idle": Target(5.0, None),
    "wake_p99_backup_to_idle": Target(2.0, None),
}
"""For 10,000 agents with five fragments of 512 bytes and 1,000 savers, on one store."""


def save_targets(report: SaveReport) -> dict[str, Target]:
    """Return the targets of the report's ratios by name; none for other work than they were set for."""
    work = (report.topology, report.agents, report.fragments, report.value_bytes, report.savers)
    return _TARGETS if work == ("one-store", 10_000, 5, 512, 1000) else {}


def save_ratios(
    save_many_ms: Spread, single_us: Tail, concurrent_per_s: float, wakes: SingleWakes, peers: SavePeers
) -> SaveRatios:
    """Return the ratios of these medians, and of the wakes' 99th percentiles."""

    def ratio(theirs: Spread | None) -> float | None:
        return None if theirs is None else round(save_many_ms.p50 / theirs.p50, 3)

    return SaveRatios(
        saves_to_redis_sets=ratio(peers.redis_sets_ms),
        saves_to_redis_packed=ratio(peers.redis_packed_ms),
        saves_to_postgres=ratio(peers.postgres_ms),
        single_to_raw_fsync=round(single_us.p50 / peers.raw_fsync_us.p50, 3),
        concurrent_to_fdatasync=round(concurrent_per_s / peers.fdatasync_per_s, 2),
        wake_p99_saving_to_idle=round(wakes.saving.p99 / wakes.idle.p99, 2),
        wake_p99_backup_to_idle=round(wakes.backup.p99 / wakes.idle.p99, 2),
    )


def render_save(report: SaveReport) -> RenderableType:
    """Return the report as tables: how long each way of saving took, and how that compares."""
    head = Text.assemble(
        (f"{report.agents:,} agents saved", "bold"),
        f", {report.fragments} fragments of {report.value_bytes:,} bytes each, every save synced to ",
        f"{report.file_system}; {node_count(report.topology)} node processes (topology {report.topology}); ",
        f"{report.runs} alternated runs",
    )
    ratios = ratios_table(report.ratios, _RATIO_TEXTS, save_targets(report), {"concurrent_to_fdatasync"})
    return Group(head, _batches_table(report), _singles_table(report), ratios, *note_lines(report.notes))


def _batches_table(report: SaveReport) -> Table:
    table = spreads_table("All agents with all fragments")
    peers, batches = report.peers, report.batches
    rows = [
        ("dawnchorus: all in one save_many", report.save_many_ms),
        (f"Redis, appendfsync always: SETs, {_batch_text(batches.redis_sets)}", peers.redis_sets_ms),
        (f"Redis, the same: MSET of packed agents, {_batch_text(batches.redis_packed)}", peers.redis_packed_ms),
        (f"PostgreSQL: upserts of arrays, {_upserts_text(batches.postgres)}", peers.postgres_ms),
    ]
    for what, spread in rows:
        add_spread(table, what, spread, report.agents)
    return table


def _singles_table(report: SaveReport) -> Table:
    table = tails_table("One agent at a time, and many savers")
    rate = f"{report.saving_per_s:,.0f} saves/s"
    rows = [
        ("dawnchorus: one fragment saved after the other", report.single_us),
        ("baseline: raw ZeroMQ echo with 4 KiB written and synced", report.peers.raw_fsync_us),
        ("dawnchorus: one wake after the other, nothing else going on", report.wake_idle_us),
        (f"dawnchorus: the same beside {report.savers:,} savers in another process ({rate})", report.wake_saving_us),
        ("dawnchorus: the same while all shards are backed up", report.wake_backup_us),
    ]
    for what, tail in rows:
        add_tail(table, what, tail)
    table.add_section()
    table.add_row(f"dawnchorus: {report.savers:,} savers of one agent each", "", "", f"{report.concurrent_per_s:,.0f}")
    table.add_row(
        "baseline: 4 KiB written and synced, one after the other", "", "", f"{report.peers.fdatasync_per_s:,.0f}"
    )
    return table


def _batch_text(batch: Batch | None) -> str:
    if batch is None:
        return "best batch"
    return f"{batch.agents:,} agents each" + (", pipelined" if batch.pipelined else "")


def _upserts_text(choice: Upserts | None) -> str:
    if choice is None:
        return "best batch"
    return f"{choice.rows:,} rows each, kinds " + ("at once" if choice.at_once else "in turn")


_RATIO_TEXTS = {
    "saves_to_redis_sets": "save_many to Redis, one key per fragment",
    "saves_to_redis_packed": "save_many to Redis, packed agents",
    "saves_to_postgres": "save_many to PostgreSQL",
    "single_to_raw_fsync": "one save at a time to the raw ZeroMQ echo with a sync",
    "concurrent_to_fdatasync": "saves/s of many savers to the disk's syncs/s",
    "wake_p99_saving_to_idle": "p99 of wakes beside savers to that of an idle cluster",
    "wake_p99_backup_to_idle": "p99 of wakes beside a backup to that of an idle cluster",
}

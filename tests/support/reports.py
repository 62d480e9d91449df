"""Plausible reports of measurements, for tests of their output."""

from typing import Any

import msgspec

from dawnchorus.perf.chaos.counts import Latency, WakeCounts
from dawnchorus.perf.chaos.report import ChaosReport, MemoryUse, PhaseReport
from dawnchorus.perf.harness.measure import Spread, Tail
from dawnchorus.perf.memory.client import ClientMemory
from dawnchorus.perf.memory.memory import MemoryReport, NodeMemory
from dawnchorus.perf.peers.redis_peer import Batch
from dawnchorus.perf.saves.report import SaveBatches, SavePeers, SaveReport, SingleWakes, save_ratios
from dawnchorus.perf.storm.report import Batches, Peers, StormReport, ratios_of
from dawnchorus.perf.storm.threads import ThreadsRatios, ThreadsReport

__all__ = [
    "MEMORY",
    "MEMORY_REPORT",
    "PEERS",
    "SAVE_REPORT",
    "THREADS_REPORT",
    "WAKES",
    "chaos_report",
    "phase_with",
    "storm_report",
]

PEERS = Peers(
    redis_mget_ms=Spread(200, 250, 300),
    redis_packed_ms=Spread(90, 100, 120),
    redis_task_per_agent_ms=Spread(1000, 1200, 1500),
    raw_zmq_ms=Spread(15, 20, 25),
    raw_zmq_uncopied_ms=Spread(8, 10, 15),
    raw_echo_us=Tail(100, 200),
)

WAKES = WakeCounts(
    offered=6_000,
    complete=5_000,
    degraded=900,
    failed=100,
    shed=250,
    stuck=0,
    unsent=0,
    latency_ms=Latency(1.2, 102.4, 103.5, 1_234.6),
    complete_ms=Latency(1.1, 80.0, 90.0, 95.0),
    shed_ms=Latency(0.3, 2.5, 3.0, 4.0),
    past_deadline_ms=Latency(1.0, 3.5, 4.0, 7.7),
    started_late_ms=Latency(0.5, 1.6, 2.0, 3.0),
)
MEMORY = MemoryUse(50 << 20, 60 << 20, 51 << 20)

MEMORY_REPORT = MemoryReport(
    agents=50,
    wake=20,
    value_bytes=100,
    topology="one-store",
    storms=2,
    early_storm=1,
    nodes={
        "state-1": NodeMemory(1 << 20, 1 << 20, 2 << 20, 1.0),
        "state-2": NodeMemory(1 << 20, 2 << 20, 2 << 20, 2.0),
    },
    client=ClientMemory(1 << 20, 30 << 20, 32 << 20, 31 << 20, 30 << 20),
    client_share=2.0,
    client_given_back=0.5,
    client_given_back_trimmed=1.0,
)

THREADS_REPORT = ThreadsReport(
    agents=10_000,
    value_bytes=512,
    topology="one-store",
    threads=4,
    runs=1,
    single_us=Tail(150, 300),
    blocking_single_us=Tail(200, 400),
    closed_loop_per_s=100_000.0,
    blocking_closed_loop_per_s=50_000.0,
    ratios=ThreadsRatios(1.3, 0.5),
    notes=[],
)

_SINGLE_WAKES = SingleWakes(Tail(150, 300), Tail(200, 900), Tail(160, 400))
_SAVE_PEERS = SavePeers(Spread(90, 100, 110), Spread(60, 70, 80), None, Tail(100, 200), 9_000.0)
SAVE_REPORT = SaveReport(
    agents=40,
    fragments=5,
    value_bytes=50,
    topology="default",
    runs=1,
    file_system="ext4 on a disk",
    save_many_ms=Spread(80, 90, 100),
    single_us=Tail(300, 900),
    savers=20,
    concurrent_per_s=20_000.0,
    wake_idle_us=_SINGLE_WAKES.idle,
    wake_saving_us=_SINGLE_WAKES.saving,
    wake_backup_us=_SINGLE_WAKES.backup,
    saving_per_s=15_000.0,
    peers=_SAVE_PEERS,
    ratios=save_ratios(Spread(80, 90, 100), Tail(300, 900), 20_000.0, _SINGLE_WAKES, _SAVE_PEERS),
    batches=SaveBatches(Batch(1000, pipelined=True), Batch(500, pipelined=False), None),
    notes=["PostgreSQL was not measured"],
)


def storm_report(peers: Peers = PEERS, **changes: Any) -> StormReport:
    """Return a report of a storm."""
    wake_many, task_per_agent, single = Spread(25, 30, 40), Spread(100, 120, 160), Tail(150, 300)
    report = StormReport(
        agents=100_000,
        wake=10_000,
        fragments=5,
        value_bytes=512,
        topology="one-store",
        runs=9,
        wake_many_ms=wake_many,
        task_per_agent_ms=task_per_agent,
        single_us=single,
        closed_loop_per_s=100_000.0,
        peers=peers,
        ratios=ratios_of(10_000, wake_many, task_per_agent, single, 100_000.0, peers),
        redis_batches=Batches(Batch(1000, pipelined=False), Batch(500, pipelined=True)),
        notes=[],
    )
    return msgspec.structs.replace(report, **changes)


def phase_with(name: str, **changes: Any) -> PhaseReport:
    """Return the report of a phase."""
    return msgspec.structs.replace(PhaseReport(name, "something was done", 6.0, 1_000.0, WAKES, MEMORY), **changes)


def chaos_report(*phases: PhaseReport) -> ChaosReport:
    """Return the report of a run of chaos."""
    return ChaosReport(
        agents=10_000,
        value_bytes=512,
        rate=1_000.0,
        deadline_ms=100,
        node="archive-1",
        seed=1,
        phases=list(phases),
        notes=["it rained"],
    )

"""Memory of a cluster: its nodes over many storms, and a client that holds ten thousand woken agents.

Nodes: RssAnon after each storm; LMDB's pages are mapped files and do not count. Client: a fresh process
(`client`), so that nothing but its own agents is in the figure.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..harness.child_process import anonymous_bytes
from ..harness.job import start_job
from ..harness.measure import Wakes, WrongResult, wake_many
from ..harness.progress import Progress, no_progress
from ..harness.report import marked, table
from ..harness.scratch import temporary_directory
from ..harness.sleeping_cluster import SleepingCluster, sleeping_cluster
from ..harness.topologies import TopologyName, store_of_kind
from ..harness.workload import SyntheticAgents, WorkloadError, image_bytes
from .client import ClientMemory, ClientOrder

__all__ = ["MemoryOptions", "MemoryReport", "NodeMemory", "memory", "render_memory"]

WARM_UP_STORMS = 10
"""Storms until a node has all buffers that it will ever need; growth is counted from here."""

NODE_GROWTH_MAX = 1.10
CLIENT_SHARE_MAX = 3.0

CHECKED_EVERY = 100

CLIENT_SECONDS = 120.0
"""How long the client may take before it is given up."""


class MemoryOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the measurement. The defaults take about a minute on two cores."""

    agents: int = 100_000
    value_bytes: int = 512
    wake: int = 10_000
    topology: TopologyName = "default"
    storms: int = 100
    seed: int = 1
    directory: Path | None = None


class NodeMemory(msgspec.Struct, frozen=True):
    """RssAnon of one node in bytes, after the storm at which growth begins to count, and after the last."""

    early: int
    last: int
    peak: int
    growth: float
    """last / early"""


class MemoryReport(msgspec.Struct, frozen=True):
    """The result; encoded, the object that `dawnchorus perf memory --json` prints."""

    agents: int
    wake: int
    value_bytes: int
    topology: TopologyName
    storms: int
    early_storm: int
    nodes: dict[str, NodeMemory]
    client: ClientMemory
    """in bytes"""
    client_share: float
    """what the client needs for agents just woken, divided by the bytes of their images"""
    client_given_back: float
    """how much of that is gone once 1 % are kept, detached: 0.99 would be all that was let go of"""
    client_given_back_trimmed: float
    """the same after malloc_trim(3): what the allocator alone still held on to is not in it"""


async def memory(options: MemoryOptions, progress: Progress = no_progress) -> MemoryReport:
    """Measure; leaves no process and no file behind, however it ends."""
    if not 1 <= options.wake <= options.agents:
        raise WorkloadError(f"{options.wake:,} agents cannot be woken: {options.agents:,} sleep")
    if options.storms < 2:
        raise WorkloadError("growth needs at least two storms")
    workload = SyntheticAgents(options.agents, options.value_bytes, options.seed)
    sample = random.Random(options.seed).sample(range(options.agents), options.wake)
    stores = store_of_kind(options.topology, workload.kinds)
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(temporary_directory(options.directory))
        sleepers = await stack.enter_async_context(sleeping_cluster(options.topology, workload, directory, progress))
        order = ClientOrder(
            topology=str(sleepers.topology_path),
            ids=[workload.ids[agent] for agent in sample],
            image_bytes=sum(image_bytes(workload.encoded(agent), stores) for agent in sample),
        )
        client = await _measure_client(order, directory, progress)
        early_storm = min(WARM_UP_STORMS, options.storms - 1)
        nodes = await _measure_nodes(sleepers, order.ids, options.storms, early_storm, progress)
    held = client.woken - client.before
    return MemoryReport(
        agents=options.agents,
        wake=options.wake,
        value_bytes=options.value_bytes,
        topology=options.topology,
        storms=options.storms,
        early_storm=early_storm,
        nodes=nodes,
        client=client,
        client_share=round(held / client.image_bytes, 3),
        client_given_back=round((client.woken - client.kept) / held, 3),
        client_given_back_trimmed=round((client.woken - client.kept_trimmed) / held, 3),
    )


async def _measure_client(order: ClientOrder, directory: Path, progress: Progress) -> ClientMemory:
    progress("measure a client", 0, 1)
    with start_job(f"{__package__}.client", "the client", order, directory) as job:
        await job.ended(CLIENT_SECONDS)
    progress("measure a client", 1, 1)
    return job.answer(ClientMemory)


async def _measure_nodes(
    sleepers: SleepingCluster, ids: list[str], storms: int, early_storm: int, progress: Progress
) -> dict[str, NodeMemory]:
    cluster: Wakes = sleepers.cluster
    series: dict[str, list[int]] = {name: [] for name in sleepers.pids}
    for number in range(storms):
        states = await wake_many(cluster, ids)
        if not all(state.complete for state in states[::CHECKED_EVERY]):
            raise WrongResult("agents came back incomplete")
        for name, pid in sleepers.pids.items():
            series[name].append(anonymous_bytes(pid))
        progress("storms", number + 1, storms)
    return {
        name: NodeMemory(
            early=sizes[early_storm - 1],
            last=sizes[-1],
            peak=max(sizes),
            growth=round(sizes[-1] / sizes[early_storm - 1], 3),
        )
        for name, sizes in series.items()
    }


def render_memory(report: MemoryReport) -> RenderableType:
    """Return the report as tables."""
    head = Text.assemble(
        (f"{report.storms} storms of {report.wake:,} agents", "bold"),
        f" of {report.agents:,}, five fragments of {report.value_bytes:,} bytes each (topology {report.topology})",
    )
    after = (f"after storm {report.early_storm}", f"after storm {report.storms}")
    nodes = table("Anonymous memory of each node", *after, "most", "growth", "must", first="node")
    for name, node in report.nodes.items():
        sizes = [_mebibytes(size) for size in (node.early, node.last, node.peak)]
        growth = marked(f"{node.growth:.3f}", met=node.growth <= NODE_GROWTH_MAX)
        nodes.add_row(name, *sizes, growth, f"<= {NODE_GROWTH_MAX}")
    return Group(head, nodes, _client_table(report))


def _client_table(report: MemoryReport) -> Table:
    client = report.client
    rows = table("Memory of a client", "in all", "for the agents", "times their bytes")
    rows.add_row("connected, none woken", _mebibytes(client.before), "", "")
    steps = [
        (f"{report.wake:,} agents just woken (must: <= {CLIENT_SHARE_MAX:g} times)", client.woken),
        ("1 % kept, detached", client.kept),
        ("the same after malloc_trim", client.kept_trimmed),
    ]
    for what, size in steps:
        held = size - client.before
        rows.add_row(what, _mebibytes(size), _mebibytes(held), f"{held / client.image_bytes:.2f}")
    return rows


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"

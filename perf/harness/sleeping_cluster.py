"""A cluster of real processes with a workload's agents asleep in it, for as long as somebody measures."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

from ...nodes.launcher import Launcher
from ...router.client.cluster import Cluster
from ...router.client.connect import connect
from ...wire.errors import DawnchorusError
from .measure import Wakes, WrongResult
from .progress import Progress
from .topologies import TopologyName, write_topology
from .workload import Workload

__all__ = ["SleepingCluster", "fill", "sleeping_cluster"]

FILL_BYTES = 4 * 1024 * 1024
"""About what one save_many carries: many agents to commit at once, and still little memory."""

FILL_AGENTS_MAX = 5000

FILLS_AT_ONCE = 2
"""While the nodes commit one batch, the client encodes the next."""


class SleepingCluster:
    """The running cluster: its client, its nodes' process ids by name, and its topology file."""

    def __init__(self, cluster: Cluster, pids: dict[str, int], topology_path: Path) -> None:
        self.cluster = cluster
        self.pids = pids
        self.topology_path = topology_path


@contextlib.asynccontextmanager
async def sleeping_cluster(
    topology: TopologyName, workload: Workload, directory: Path, progress: Progress
) -> AsyncGenerator[SleepingCluster]:
    """Start a cluster of the topology in the directory, save all agents, and stop it at the end."""
    path = write_topology(topology, workload, directory)
    progress("start the cluster", 0, 1)
    async with Launcher(path) as launcher, connect(path) as cluster:
        progress("start the cluster", 1, 1)
        await fill(cluster, workload, progress)
        yield SleepingCluster(cluster, launcher.pids(), path)


async def fill(cluster: Wakes, workload: Workload, progress: Progress) -> None:
    """Save every agent of the workload."""
    total = len(workload.ids)
    agent_bytes = max(1, workload.value_bytes * len(workload.kinds))
    batch = max(1, min(FILL_AGENTS_MAX, FILL_BYTES // agent_bytes))
    starts = iter(range(0, total, batch))
    done = 0

    async def save_batches() -> None:
        nonlocal done
        for start in starts:
            agents = range(start, min(start + batch, total))
            results = await cluster.save_many({workload.ids[agent]: workload.fragments(agent) for agent in agents})
            for agent_id, result in results.items():
                if isinstance(result, BaseException):
                    raise WrongResult(f"agent {agent_id} could not be saved: {result}") from result
            done += len(agents)
            progress("put agents to sleep", done, total)

    try:
        async with asyncio.TaskGroup() as savers:
            for _ in range(FILLS_AT_ONCE):
                savers.create_task(save_batches())
    except* DawnchorusError as group:
        raise group.exceptions[0] from None

"""Clusters whose nodes are stopped and killed: filled first, with clients that hold nothing afterwards."""

import contextlib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from dawnchorus import Cluster, Saved, connect
from tests.support.clusters import RunningCluster, eventually, running
from tests.support.internals import is_up, leftovers

__all__ = ["filled", "recovering_client"]


@contextlib.asynccontextmanager
async def filled(path: Path, ids: Sequence[str]) -> AsyncGenerator[RunningCluster]:
    """Run the nodes of a topology file, with agents saved of which each kind's value is the agent's id."""
    async with running(path) as nodes:
        async with connect(path) as cluster:
            saves = {agent_id: dict.fromkeys(cluster.topology.kinds, agent_id) for agent_id in ids}
            assert all(isinstance(result, Saved) for result in (await cluster.save_many(saves)).values())
        yield nodes


@contextlib.asynccontextmanager
async def recovering_client(path: Path) -> AsyncGenerator[Cluster]:
    """Connect a client; at the end all nodes are up again, and it has let go of everything."""
    async with connect(path) as cluster:
        yield cluster
        await eventually(lambda: all(is_up(cluster, node) for node in cluster.topology.nodes))
        await eventually(lambda: not leftovers(cluster))

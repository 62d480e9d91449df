"""A cluster wiped and recreated under a live client: every call says so until the first cluster is back."""

import asyncio
import contextlib

import pytest

from dawnchorus import Cluster, ClusterUnavailable, DawnchorusError, SaveError
from tests.support.fake_nodes import (
    CLUSTER_UUID,
    FakeNode,
    FakeNodes,
    connect,
    fake_cluster,
    fake_topology,
    placement_of,
)

ANOTHER_UUID = "fedcba9876543210" * 2
SAYS = f"is of another cluster \\({ANOTHER_UUID}\\) than this client \\({CLUSTER_UUID}\\)"


def made_anew(nodes: FakeNodes) -> FakeNodes:
    """Return the same nodes in another cluster."""
    topology = next(iter(nodes.values())).topology
    placement = placement_of(topology, ANOTHER_UUID)
    return FakeNodes({store: FakeNode(topology, placement, node.name) for store, node in nodes.items()})


async def why_not(cluster: Cluster) -> str:
    """Return the error of a wake, as soon as it is more than a missed deadline."""
    async with asyncio.timeout(60):
        while True:
            try:
                await cluster.wake("a", deadline_s=0.05)
            except ClusterUnavailable as error:
                return str(error)
            except DawnchorusError:
                await asyncio.sleep(0.01)


async def test_calls_name_other_cluster_until_first_returns() -> None:
    topology = fake_topology()
    async with fake_cluster(topology) as nodes, connect(topology) as cluster:
        nodes.put("a", profile=1)
        assert (await cluster.wake("a"))["profile"] == 1
        others = made_anew(nodes)
        for node in nodes.values():
            node.stop()
        for node in others.values():
            node.start()
        try:
            text = await why_not(cluster)
            assert ANOTHER_UUID in text and CLUSTER_UUID in text and "connect again" in text
            with pytest.raises(ClusterUnavailable, match=SAYS):
                await cluster.save("a", {"profile": 2})
            for answer in (await cluster.status(deadline_s=0.05)).values():
                assert isinstance(answer, ClusterUnavailable)
                assert ANOTHER_UUID in str(answer)
            assert not [node for node in others.values() if node.images], "nothing was written into the other cluster"
        finally:
            for node in others.values():
                node.stop()
        for node in nodes.values():
            node.start()

        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(DawnchorusError):
                    assert (await cluster.wake("a", deadline_s=0.2))["profile"] == 1
                    return
                await asyncio.sleep(0.02)


async def test_saves_and_status_name_node_of_another_cluster() -> None:
    topology = fake_topology()
    async with fake_cluster(topology) as nodes, connect(topology) as cluster:
        other = made_anew(nodes)["id"]
        nodes["id"].stop()
        other.start()
        try:
            reason = ""
            async with asyncio.timeout(60):
                while ANOTHER_UUID not in reason:
                    with pytest.raises(SaveError) as caught:
                        await cluster.save("a", {"profile": 1}, deadline_s=0.05)
                    reason = str(caught.value)
            status = await cluster.status(deadline_s=1.0)
            assert ANOTHER_UUID in str(status["id-1"])
            assert (await cluster.wake_many(["a"], kinds=["session"]))[0].complete, "the others serve"
        finally:
            other.stop()


async def test_client_of_cluster_made_anew_can_be_closed() -> None:
    topology = fake_topology()
    async with fake_cluster(topology) as nodes:
        async with connect(topology) as cluster:
            others = made_anew(nodes)
            for node in nodes.values():
                node.stop()
            for node in others.values():
                node.start()
            try:
                await why_not(cluster)
            finally:
                for node in others.values():
                    node.stop()
        with pytest.raises(ClusterUnavailable, match="was closed"):
            cluster.wake("a")

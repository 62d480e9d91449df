"""Clients whose topology is older than the cluster: they receive what was added since."""

from pathlib import Path

import msgspec
import pytest

from dawnchorus.wire.cluster.topology import Topology, extend
from tests.support.clusters import eventually
from tests.support.fake_nodes import FakeNode, FakeNodes, connect, fake_cluster, fake_topology, placement_of
from tests.support.internals import is_up, rejections

LONG_S = 20.0


def older(topology: Topology, *, without: str = "old") -> Topology:
    """Return the topology as it was before a store, its kinds and its node were added."""
    return msgspec.structs.replace(
        topology,
        stores={name: spec for name, spec in topology.stores.items() if name != without},
        kinds={kind: spec for kind, spec in topology.kinds.items() if spec.store != without},
        nodes={name: node for name, node in topology.nodes.items() if without not in node.stores},
    )


def test_clients_topology_stays_and_only_gains_missing_parts() -> None:
    topology = fake_topology()
    assert extend(topology, topology) is topology
    assert extend(topology, older(topology)) is topology
    changed = msgspec.structs.replace(older(topology), wake_deadline_ms=7, save_deadline_ms=8)
    extended = extend(changed, topology)
    assert extended == msgspec.structs.replace(topology, wake_deadline_ms=7, save_deadline_ms=8)


async def test_complete_agents_follow_cluster_not_file() -> None:
    topology = fake_topology()
    async with fake_cluster(topology) as nodes:
        nodes.put("a", profile=1, session=2, history=3)
        nodes.put("only-there", history=4)
        async with connect(older(topology)) as cluster:
            assert [agent async for agent in cluster.agents()] == ["a", "only-there"]
            assert (await cluster.wake("a", deadline_s=LONG_S)).get("history") == 3
            deleted = await cluster.delete("a", deadline_s=LONG_S)
            assert set(deleted.versions) == set(topology.kinds)
            assert [agent async for agent in cluster.agents()] == ["only-there"]
        assert not any(agent == b"a" for node in nodes.values() for _store, agent in node.images)


async def test_connected_client_learns_what_its_cluster_gains() -> None:
    topology = fake_topology()
    before = older(topology)
    new = FakeNode(topology, placement_of(topology), "old-1")
    async with fake_cluster(before) as nodes, connect(before) as cluster:
        FakeNodes.put(nodes, "a", profile=1, session=2)
        new.put("a", history=3)
        new.start()
        try:
            # `up` is started again with the changed file.
            for node in nodes.values():
                node.stop()
                node.topology, node.placement = topology, msgspec.structs.replace(new.placement, revision=100)
                node.start()
            await eventually(lambda: is_up(cluster, "old-1") and is_up(cluster, "id-1") and is_up(cluster, "live-1"))
            assert (await cluster.wake("a", deadline_s=LONG_S))["history"] == 3
            deleted = await cluster.delete("a", deadline_s=LONG_S)
            assert set(deleted.versions) == set(topology.kinds)
            assert not new.images
        finally:
            new.stop()


@pytest.mark.real
@pytest.mark.parametrize("field", ["directory", "node", "cluster_uuid"])
async def test_a_socket_of_somebody_else_is_not_used(field: str, ipc_directory: Path) -> None:
    """Assert that a link stays with TCP if the Unix socket that its node names is another node's."""
    topology = fake_topology()
    path = f"ipc://{ipc_directory}/taken-{field}.ipc"
    async with fake_cluster(topology) as nodes:
        nodes["live"].ipc = path  # named, and not bound
        nodes.put("a", profile=1, session=2)
        others = {"name": "old-1", "directory": "ff" * 8, "placement": placement_of(topology, "f" * 32)}
        wanted = {"directory": "directory", "node": "name", "cluster_uuid": "placement"}[field]
        stranger = FakeNode(fake_topology(), nodes["live"].placement, "live-1", ipc=path)
        setattr(stranger, wanted, others[wanted])
        stranger.start()
        try:
            async with connect(topology) as cluster:
                assert (await cluster.wake("a", deadline_s=LONG_S))["session"] == 2
                assert rejections(cluster) == {}
                assert len(stranger.requests) == 1, "its Hello, and nothing after it"
        finally:
            stranger.stop()


async def test_nodes_of_two_data_directories_never_mix() -> None:
    topology = fake_topology()
    async with fake_cluster(topology) as nodes:
        for node in nodes.values():
            node.directory = "aa" * 8
        nodes.put("a", profile=1, session=2, history=3)
        async with connect(topology) as cluster:
            assert (await cluster.wake("a", deadline_s=LONG_S))["history"] == 3
            nodes["old"].stop()
            nodes["old"].directory = "bb" * 8
            nodes["old"].start()
            await eventually(lambda: "serves another data directory (bbbbbbbbbbbbbbbb)" in str(rejections(cluster)))
            nodes["old"].stop()
            nodes["old"].directory = "aa" * 8
            nodes["old"].start()
            await eventually(lambda: is_up(cluster, "old-1"))

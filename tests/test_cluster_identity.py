"""A cluster's identity: its file behind a link, copies beside it, directories that are moved: real processes."""

import asyncio
import shutil
import signal
from pathlib import Path

import pytest

from dawnchorus import ClusterUnavailable, connect
from dawnchorus.nodes.launcher import Launcher
from dawnchorus.perf.harness.topologies import free_ports
from dawnchorus.wire.cluster.topology_file import load_topology
from tests.support.clusters import RunningCluster, eventually, running, write_topology
from tests.support.internals import rejections
from tests.tools.command_line import error_of, run_json

ONE_NODE = {"all-1": ["identity", "live", "archive"]}
TWO_NODES = {"live-1": ["identity", "live"], "archive-1": ["archive"]}

pytestmark = pytest.mark.usefixtures("ipc_directory")


def test_commands_find_same_data_directory_behind_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = write_topology(tmp_path / "real", shards=1, nodes=ONE_NODE)
    for name in ("etc", "opt"):
        (tmp_path / name).mkdir()
    (tmp_path / "opt" / "topology.toml").symlink_to(real)
    link = tmp_path / "etc" / "topology.toml"
    link.symlink_to("../opt/topology.toml")
    data_dir = str(tmp_path / "real" / "data")
    assert load_topology(link).data_dir == load_topology(real).data_dir == data_dir
    assert Launcher(link).topology.data_dir == data_dir
    assert f"{data_dir}: there is no data directory" in error_of("verify", "-t", link)
    assert [entry.name for entry in (tmp_path / "etc").iterdir()] == ["topology.toml"]


async def test_copy_beside_original_does_not_take_its_traffic(tmp_path: Path, ipc_directory: Path) -> None:
    for name in ("original", "copy"):
        (tmp_path / name).mkdir()
    path = write_topology(tmp_path / "original", shards=1, nodes=ONE_NODE)
    async with running(path), connect(path) as cluster:
        await cluster.save("a", {"profile": "both"})
    shutil.copytree(tmp_path / "original" / "data", tmp_path / "copy" / "data")
    beside = write_topology(tmp_path / "copy", shards=1, nodes=ONE_NODE)
    before = set(ipc_directory.rglob("*.ipc"))
    async with running(path), connect(path) as old, running(beside), connect(beside) as other:
        assert len(set(ipc_directory.rglob("*.ipc")) - before) == 2, "both nodes have one socket"
        async with connect(path) as new:
            for number, cluster in enumerate((old, new)):
                await cluster.save(f"saved-{number}", {"profile": "in the original"}, deadline_s=20)
            assert [agent async for agent in other.agents()] == ["a"]
            assert [agent async for agent in old.agents()] == ["a", "saved-0", "saved-1"]


async def test_copy_replacing_the_original_is_rejected_by_clients(tmp_path: Path) -> None:
    for name in ("original", "copy"):
        (tmp_path / name).mkdir()
    ports = free_ports(1)
    path = write_topology(tmp_path / "original", shards=1, nodes=ONE_NODE, ports=ports)
    async with running(path) as nodes:
        cluster = await connect(path).__aenter__()
        await cluster.save("a", {"profile": "both"})
        nodes.signal("all-1", signal.SIGTERM)
        await eventually(lambda: nodes.states("all-1").count("serving") == 2)
    shutil.copytree(tmp_path / "original" / "data", tmp_path / "copy" / "data")
    beside = write_topology(tmp_path / "copy", shards=1, nodes=ONE_NODE, ports=ports)
    async with running(beside), connect(beside) as fresh:
        assert (await fresh.wake("a", deadline_s=20))["profile"] == "both"
        await eventually(lambda: "another data directory" in rejections(cluster).get("all-1", ""))
        with pytest.raises(ClusterUnavailable, match="another data directory"):
            await cluster.wake("a")
    cluster.close()


async def test_moved_data_directory_is_named_by_status(tmp_path: Path) -> None:
    path = write_topology(tmp_path, shards=1, nodes=ONE_NODE)
    async with running(path) as nodes, connect(path) as cluster:
        await cluster.save("a", {"profile": 1})
        (tmp_path / "data").rename(tmp_path / "moved")
        found = await asyncio.to_thread(run_json, "status", "-t", path, code=1)
        (node,) = found["nodes"]
        assert all("is not there any more: the data directory was moved" in shard["notice"] for shard in node["shards"])
        assert (await cluster.wake("a", deadline_s=20))["profile"] == 1
        assert not [event for event in nodes.events if event.log and "trace" in event.log]
        (tmp_path / "moved").rename(tmp_path / "data")
        assert (await asyncio.to_thread(run_json, "status", "-t", path))["healthy"]


async def rejected_again(nodes: RunningCluster) -> None:
    """Wait until a node has rejected the present directory once more."""

    def rejected() -> int:
        return sum("nothing is made anew" in event.detail for event in nodes.events)

    before = rejected()
    await eventually(lambda: rejected() > before)


async def test_restarted_node_makes_no_cluster_of_missing_directory(tmp_path: Path) -> None:
    path = write_topology(tmp_path, shards=1, nodes=TWO_NODES)
    async with running(path) as nodes, connect(path) as cluster:
        await cluster.save("a", {"profile": 1, "history": 2})
        uuid = cluster.placement.cluster_uuid
        (tmp_path / "data").rename(tmp_path / "moved")
        await nodes.kill("archive-1")
        for _ in range(2):  # with nothing there, and with an empty directory, as a mount point is
            await rejected_again(nodes)
            (tmp_path / "data").mkdir(exist_ok=True)
        assert not list((tmp_path / "data").iterdir())
        # By hand nothing is made beside the other node either.
        said = await asyncio.to_thread(error_of, "up", "-t", path)
        assert f"{nodes.endpoint('live-1')} is in use: node 'live-1' there serves cluster {uuid} already" in said
        assert not list((tmp_path / "data").iterdir())
        (tmp_path / "data").rmdir()
        (tmp_path / "moved").rename(tmp_path / "data")
        await eventually(lambda: nodes.states("archive-1").count("serving") == 2)
        assert (await cluster.wake("a", deadline_s=20))["history"] == 2


async def test_nodes_adopt_changed_topology_together_or_never(tmp_path: Path) -> None:
    ports = free_ports(2)
    path = write_topology(tmp_path, shards=1, nodes=TWO_NODES, ports=ports)
    async with running(path) as nodes:
        assert any(event.log and event.log["event"] == "a new cluster was made" for event in nodes.events)
        before = path.read_text()
        path.write_text(before[: len(before) // 2])  # half-edited
        await nodes.kill("archive-1")
        await eventually(lambda: nodes.states("archive-1").count("serving") == 2)
        path.write_text(before.replace("[fragments.session]", '[fragments.mood]\nstore = "live"\n[fragments.session]'))
        await nodes.kill("archive-1")
        await eventually(lambda: nodes.states("archive-1").count("serving") == 3)
        path.write_text(before + "[retries]\nper_s = 4\n")
        found = await asyncio.to_thread(run_json, "status", "-t", path)
        assert len({node["topology"] for node in found["nodes"]}) == 1
        (problem,) = found["topology_problems"]
        assert "the topology file here is not what the nodes serve" in problem
    async with running(path) as nodes:
        assert not any(event.log and event.log["event"] == "a new cluster was made" for event in nodes.events)
        found = await asyncio.to_thread(run_json, "status", "-t", path)
        assert found["topology_problems"] == []
        assert {node["topology"] for node in found["nodes"]} == {found["topology"]}

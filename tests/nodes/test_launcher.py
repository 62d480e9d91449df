"""The launcher with real nodes: it starts all or none, restarts those that die, and leaves none behind."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dawnchorus import DataDirectoryError, LaunchError, PlacementError, Saved, TopologyError, connect
from dawnchorus.nodes.launcher import Launcher, shards_announced
from dawnchorus.perf.harness.topologies import free_ports
from tests.support.clusters import (
    DEFAULT_NODES,
    RunningCluster,
    eventually,
    is_running,
    running,
    write_topology,
)

STOP_S = 5.0
LONG_S = 20.0

TWO_NODES = {"identity-1": ["identity", "live"], "archive-1": ["archive"]}


async def test_nodes_serve_after_start_and_end_with_stop(ipc_directory: Path, tmp_path: Path) -> None:
    def ipc_sockets() -> set[Path]:
        return set(ipc_directory.glob("dawnchorus/*.ipc"))

    others = ipc_sockets()
    async with running(write_topology(tmp_path)) as cluster:
        pids = cluster.launcher.pids()
        assert list(pids) == list(DEFAULT_NODES)
        for node, pid in pids.items():
            assert cluster.states(node) == ["starting", "serving"]
            assert psutil.Process(pid).cmdline()[0] == f"dawnchorus node {node} (test)"
            assert os.getsid(pid) == pid, "a Ctrl-C at the terminal is to reach the launcher alone"
        assert len(ipc_sockets() - others) == 3
        began = time.monotonic()
    assert time.monotonic() - began < STOP_S
    assert not any(map(is_running, pids.values()))
    assert cluster.launcher.pids() == {}
    for node in DEFAULT_NODES:
        assert cluster.states(node) == ["starting", "serving", "stopped"]
    ends = [event.log for event in cluster.events if event.log and event.log["event"] == "stopped"]
    assert len(ends) == 3, "each node ended cleanly and said so"
    assert ipc_sockets() == others


async def test_events_carry_shards_pids_and_endpoints(ipc_directory: Path, tmp_path: Path) -> None:
    async with running(write_topology(tmp_path, shards=3, nodes=TWO_NODES)) as cluster:
        serving = {event.node: event for event in cluster.events if event.state == "serving"}
        assert {node: event.shards for node, event in serving.items()} == {"identity-1": 6, "archive-1": 3}
        assert {node: event.pid for node, event in serving.items()} == cluster.launcher.pids()
        assert serving["archive-1"].endpoint == cluster.endpoint("archive-1")


async def test_dying_node_is_restarted_with_growing_pauses(ipc_directory: Path, tmp_path: Path) -> None:
    async with running(write_topology(tmp_path, nodes=TWO_NODES)) as cluster:
        other = cluster.launcher.pids()["identity-1"]
        for times in (1, 2, 3):
            await cluster.kill("archive-1")
            await cluster.served_again("archive-1", times + 1)
        restarts = [event for event in cluster.events if event.state == "restarting"]
        assert [event.detail for event in restarts] == [
            f"starts again in {pause:.2f} s: it was ended by SIGKILL (Killed)" for pause in (0.05, 0.1, 0.2)
        ]
        assert [event.restarts for event in restarts] == [1, 2, 3]
        assert cluster.states("identity-1") == ["starting", "serving"]
        assert cluster.launcher.pids()["identity-1"] == other


@pytest.fixture
def node_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """A function that makes the launcher run, in place of a node, a shell script that gets the node's name."""

    def write(body: str) -> None:
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nname=$4\ncd "{tmp_path}"\n{body}')
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))

    return write


SERVES = """echo '{"event": "serving", "node": "one", "shards": 4}'; """


async def test_killed_node_is_named_with_signal_and_words(node_script: Callable[[str], None], tmp_path: Path) -> None:
    node_script(
        f"""{SERVES}
if mkdir once; then echo 'log' >&2; echo 'Assertion failed: check () (src/msg.cpp:394)' >&2; kill -ABRT $$; fi
exec cat > /dev/null"""
    )
    cluster = RunningCluster(write_topology(tmp_path, nodes={"one": ["identity", "live", "archive"]}))
    async with cluster.launcher:
        await cluster.served_again("one", 2)
    how = "it was ended by SIGABRT (Aborted); its last line: Assertion failed: check () (src/msg.cpp:394)"
    reported = [(event.state, event.detail) for event in cluster.events if event.log is None]
    assert reported == [
        ("starting", ""),
        ("serving", ""),
        ("restarting", f"starts again in 0.05 s: {how}"),
        ("starting", f"last time {how}"),
        ("serving", f"last time {how}"),
        ("stopped", ""),
    ]


async def test_node_killed_before_serving_fails_the_start(node_script: Callable[[str], None], tmp_path: Path) -> None:
    node_script("echo 'out of luck' >&2; kill -SEGV $$")
    launcher = Launcher(write_topology(tmp_path, nodes={"one": ["identity", "live", "archive"]}))
    words = r"node 'one': it was ended by SIGSEGV \(Segmentation fault\); its last line: out of luck"
    with pytest.raises(LaunchError, match=words):
        await launcher.start()


async def test_node_deaf_to_sigterm_ends_with_its_input(node_script: Callable[[str], None], tmp_path: Path) -> None:
    node_script(f"trap '' TERM; {SERVES} cat > /dev/null; touch ended")
    async with Launcher(write_topology(tmp_path, nodes={"one": ["identity", "live", "archive"]})):
        pass
    assert (tmp_path / "ended").exists(), "it was not killed"


async def test_hanging_node_does_not_delay_stop(ipc_directory: Path, tmp_path: Path) -> None:
    async with running(write_topology(tmp_path, nodes=TWO_NODES)) as cluster:
        pids = cluster.launcher.pids()
        cluster.signal("archive-1", signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < STOP_S + 1
    assert not any(map(is_running, pids.values()))


async def test_stop_leaves_node_waiting_for_restart_dead(ipc_directory: Path, tmp_path: Path) -> None:
    async with running(write_topology(tmp_path, nodes=TWO_NODES)) as cluster:
        await cluster.kill("archive-1")
    assert cluster.states("archive-1")[-1] == "stopped"
    assert cluster.launcher.pids() == {}


async def test_port_in_use_fails_start_in_nodes_words(ipc_directory: Path, tmp_path: Path) -> None:
    first, second = free_ports(2)
    with socket.create_server(("127.0.0.1", second)):
        cluster = RunningCluster(write_topology(tmp_path, nodes=TWO_NODES, ports=[first, second]))
        with pytest.raises(LaunchError, match=rf"node 'archive-1': cannot bind tcp://127.0.0.1:{second}.*in use"):
            await cluster.launcher.start()
    assert cluster.states("archive-1")[-1] == "failed"
    assert cluster.states("identity-1")[-1] == "stopped"
    assert cluster.launcher.pids() == {}
    assert all(not is_running(event.pid) for event in cluster.events if event.pid)
    async with running(cluster.path):
        pass  # and what it had begun does not stand in the way of a second start


async def test_unusable_data_directory_fails_the_start(ipc_directory: Path, tmp_path: Path) -> None:
    path = write_topology(tmp_path, nodes=TWO_NODES)
    (tmp_path / "data").write_text("a file in the directory's place")
    with pytest.raises(DataDirectoryError, match=r"data: cannot be written"):
        await Launcher(path).start()
    (tmp_path / "data").unlink()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "archive-1").write_text("a file in the node's directory's place")
    cluster = RunningCluster(path)
    with pytest.raises(LaunchError, match=r"node 'archive-1': .*cannot be written"):
        await cluster.launcher.start()
    assert cluster.launcher.pids() == {}


async def test_topology_contradicting_the_data_fails_the_start(ipc_directory: Path, tmp_path: Path) -> None:
    ports = free_ports(2)
    async with running(write_topology(tmp_path, nodes=TWO_NODES, ports=ports)):
        pass
    with pytest.raises(PlacementError, match="store 'identity' has 4 shards, the topology says 5"):
        await RunningCluster(write_topology(tmp_path, nodes=TWO_NODES, ports=ports, shards=5)).launcher.start()
    async with running(write_topology(tmp_path, nodes=TWO_NODES, ports=ports)) as cluster:
        assert cluster.states("archive-1") == ["starting", "serving"]


async def test_a_wrong_topology_starts_nothing(tmp_path: Path) -> None:
    path = write_topology(tmp_path)
    path.write_text(path.read_text() + "\n[nonsense]\n")
    with pytest.raises(TopologyError, match="nonsense"):
        Launcher(path)
    assert not (tmp_path / "data").exists()


async def test_second_launcher_on_same_data_is_rejected(ipc_directory: Path, tmp_path: Path) -> None:
    async with running(write_topology(tmp_path, nodes=TWO_NODES)) as cluster, connect(cluster.path) as client:
        pids = cluster.launcher.pids()
        await client.save("a", {"profile": 1})
        with pytest.raises(DataDirectoryError, match=rf"in use by process {os.getpid()}"):
            await Launcher(cluster.path).start()
        node = subprocess.run(
            node_command(cluster.path, "archive-1"), capture_output=True, text=True, timeout=LONG_S, check=False
        )
        assert node.returncode == 2
        assert f"in use by process {pids['archive-1']}" in node.stderr
        assert cluster.launcher.pids() == pids
        assert isinstance(await client.save("a", {"profile": 2, "history": 3}, deadline_s=LONG_S), Saved)
        state = await client.wake("a", deadline_s=LONG_S)
        assert (state["profile"], state["history"]) == (2, 3)
        assert cluster.states("archive-1") == ["starting", "serving"]


def node_command(path: Path, node: str) -> list[str]:
    """Return the command that runs one node."""
    return [sys.executable, "-m", "dawnchorus.tools.main", "node", node, "--topology", str(path)]


_LAUNCH = """
import asyncio, json, sys
from dawnchorus.nodes.launcher import Launcher

async def main():
    launcher = Launcher(sys.argv[1])
    await launcher.start()
    print(json.dumps(launcher.pids()), flush=True)
    await launcher.wait()

asyncio.run(main())
"""


@contextmanager
def launcher_process(path: Path) -> Generator[tuple[subprocess.Popen[str], dict[str, int]]]:
    """Run a launcher in a process of its own; yield it, and its nodes' process ids."""
    with subprocess.Popen([sys.executable, "-c", _LAUNCH, str(path)], stdout=subprocess.PIPE, text=True) as process:
        pids: dict[str, int] = {}
        try:
            assert process.stdout is not None
            pids = json.loads(process.stdout.readline())
            yield process, pids
        finally:
            process.kill()
            for pid in filter(is_running, pids.values()):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_nodes_of_dead_launcher_end_within_seconds(
    how: signal.Signals, ipc_directory: Path, tmp_path: Path
) -> None:
    path = write_topology(tmp_path)
    with launcher_process(path) as (process, pids):
        async with connect(path) as client:
            await client.save("a", {"profile": 1, "history": 2})
        assert len(pids) == 3
        process.send_signal(how)
        began = time.monotonic()
        await eventually(lambda: not any(map(is_running, pids.values())), STOP_S)
        assert time.monotonic() - began < STOP_S
    async with running(path), connect(path) as client:
        assert (await client.wake("a", deadline_s=LONG_S))["history"] == 2


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_node_asked_to_end_ends_cleanly(how: signal.Signals, ipc_directory: Path, tmp_path: Path) -> None:
    path = write_topology(tmp_path, nodes=TWO_NODES)
    process = await asyncio.create_subprocess_exec(
        *node_command(path, "archive-1"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    facts = json.loads(await process.stdout.readline())
    assert (facts["event"], facts["node"], facts["shards"]) == ("serving", "archive-1", 4)
    process.send_signal(how)
    _, log = await asyncio.wait_for(process.communicate(), STOP_S)
    assert process.returncode == 0
    assert json.loads(log.splitlines()[-1])["event"] == "stopped"


async def test_node_unknown_to_topology_is_rejected(tmp_path: Path) -> None:
    path = write_topology(tmp_path)
    node = subprocess.run(node_command(path, "ghost"), capture_output=True, text=True, timeout=LONG_S, check=False)
    assert node.returncode == 2
    assert "there is no node 'ghost'; its nodes are identity-1, live-1, archive-1" in node.stderr


@pytest.mark.parametrize(
    ("line", "shards"),
    [
        (b'{"event": "serving", "node": "live-1", "shards": 4}\n', 4),
        (b'{"event": "serving", "node": "live-1", "shards": 0, "more": []}', 0),
        (b'{"event": "serving", "node": "live-2", "shards": 4}', None),
        (b'{"event": "starting", "node": "live-1", "shards": 4}', None),
        (b'{"event": "serving", "node": "live-1"}', None),
        (b'{"event": "serving", "node": "live-1", "shards": "many"}', None),
        (b"serving\n", None),
        (b'"serving"', None),
        (b"[]", None),
        (b"4", None),
        (b"", None),
    ],
)
def test_only_its_announcement_says_that_a_node_serves(line: bytes, shards: int | None) -> None:
    assert shards_announced(line, "live-1") == shards

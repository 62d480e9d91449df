"""One node as a process: what it serves, what makes it refuse to start, in what words, and how it ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import zmq

from dawnchorus.wire.cluster.placement import decode_placement
from dawnchorus.wire.cluster.topology_file import load_topology
from dawnchorus.wire.protocol.messages import (
    ABSENT,
    PROTOCOL,
    CommitReply,
    FetchReply,
    Hello,
    Message,
    Reply,
    SectionStatus,
    Status,
    StatusReply,
    Welcome,
    decode_reply,
    encode,
)
from tests.support.clusters import write_topology
from tests.support.raw_nodes import (
    ALL_STORES,
    BUDGET_US,
    NODE,
    PATIENCE_S,
    SHARDS,
    NodeProcess,
    commit_of,
    fetch_of,
    images_in,
)

pytestmark = pytest.mark.usefixtures("ipc_directory")

AGENTS = {b"agent-%d" % number: b"%d" % number for number in range(20)}


def new_topology(folder: Path, *, shards: int = SHARDS, name: str = "test") -> Path:
    return write_topology(folder, name=name, shards=shards, nodes=ALL_STORES)


def endpoint_of(path: Path, node: str = NODE) -> str:
    return load_topology(path).nodes[node].endpoint


@contextmanager
def asking(endpoint: str) -> Generator[Callable[[Message], Reply]]:
    """A client that blocks, and has said Hello."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as requests:
        requests.setsockopt(zmq.LINGER, 0)
        requests.connect(endpoint)

        def ask(message: Message) -> Reply:
            requests.send(encode(message))
            assert requests.poll(int(PATIENCE_S * 1_000)), "no answer"
            return decode_reply(requests.recv())

        assert isinstance(ask(Hello(PROTOCOL, "", b"test", "")), Welcome)
        yield ask


def save(path: Path, agents: dict[bytes, bytes] = AGENTS) -> list[int]:
    """Save agents at a node; return the shards' versions."""
    with asking(endpoint_of(path)) as ask:
        committed = ask(commit_of(agents))
    assert isinstance(committed, CommitReply)
    assert {section.status for section in committed.sections} == {SectionStatus.OK}
    return [section.version for section in committed.sections]


def found(path: Path) -> int:
    """How many of the agents a node has."""
    with asking(endpoint_of(path)) as ask:
        reply = ask(fetch_of(AGENTS))
    assert isinstance(reply, FetchReply)
    images = images_in(fetch_of(AGENTS), [reply])
    return sum(image != ABSENT for image in images.values())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The topology of one node with all stores."""
    return new_topology(tmp_path)


@pytest.fixture
def used(path: Path) -> Path:
    """The same, after the node has served and saved agents."""
    with NodeProcess(path) as node:
        node.serving()
        save(path)
        assert node.end() == 0
    return path


def data_of(path: Path) -> Path:
    return Path(load_topology(path).data_dir)


# --- serving and ending ---


def test_a_node_says_that_it_serves_and_shows_its_name(path: Path) -> None:
    with NodeProcess(path) as node:
        facts = node.serving()
        assert facts == {
            "event": "serving",
            "node": NODE,
            "endpoint": endpoint_of(path),
            "shards": 3 * SHARDS,
            "generation": 1,
            "cluster_uuid": facts["cluster_uuid"],
        }
        assert len(facts["cluster_uuid"]) == 32
        assert psutil.Process(node.pid).cmdline()[0] == f"dawnchorus node {NODE} (test)"
        with asking(endpoint_of(path)) as ask:
            status = ask(Status(1, BUDGET_US, 0, None))
        assert isinstance(status, StatusReply)
        assert (status.pid, status.node) == (node.pid, NODE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_that_is_asked_to_ends_cleanly(path: Path, number: int, ipc_directory: Path) -> None:
    before = set(ipc_directory.rglob("*.ipc"))
    with NodeProcess(path) as node:
        node.serving()
        assert len(set(ipc_directory.rglob("*.ipc")) - before) == 1
        save(path)
        assert node.end(number) == 0
        made, line = node.log
        assert (made["event"], made["detail"]) == ("a new cluster was made", str(data_of(path)))
        assert (line["event"], line["node"], line["writes"]) == ("stopped", NODE, 20)
    assert set(ipc_directory.rglob("*.ipc")) == before, "its socket's file is left behind"


def test_a_node_ends_with_whoever_holds_its_standard_input(path: Path) -> None:
    with NodeProcess(path) as node:
        node.serving()
        assert node.process.stdin is not None
        node.process.stdin.close()
        assert node.process.wait(PATIENCE_S) == 0


def test_a_node_asked_to_end_while_it_starts_does_so(path: Path) -> None:
    with NodeProcess(path) as node:
        # Its handlers are there once the folder is locked; what comes before ends it without a trace to be cleaned up.
        lock = data_of(path) / NODE / "lock"
        while not lock.exists():
            assert node.process.poll() is None
        assert node.end() in (0, -signal.SIGTERM)
    with NodeProcess(path) as node:
        node.serving()
        assert save(path)


def test_what_was_acknowledged_is_there_after_a_restart_and_after_kill_9(path: Path) -> None:
    newest: list[int] = []
    for generation, number in enumerate([signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM], 1):
        with NodeProcess(path) as node:
            assert node.serving()["generation"] == generation
            assert found(path) == (20 if generation > 1 else 0)
            versions = save(path)
            assert all(version >> 40 == generation for version in versions)
            assert all(version > before for version, before in zip(versions, newest or [0] * 9, strict=False))
            newest = versions
            node.end(number)


def test_every_start_takes_a_generation_also_one_that_writes_nothing(path: Path) -> None:
    for generation in (1, 2, 3):
        with NodeProcess(path) as node:
            assert node.serving()["generation"] == generation
            node.end()
    placement = decode_placement((data_of(path) / "placement.json").read_bytes())
    assert placement.generation == 3


def test_nodes_of_one_cluster_that_start_at_once_agree_on_it(tmp_path: Path) -> None:
    stores = {"one": ["identity"], "two": ["live"], "three": ["archive", "live"]}
    path = write_topology(tmp_path, shards=SHARDS, nodes=stores)
    nodes = [NodeProcess(path, name) for name in stores]
    try:
        facts = [node.serving() for node in nodes]
        assert len({fact["cluster_uuid"] for fact in facts}) == 1
        assert sorted(fact["generation"] for fact in facts) == [1, 2, 3]
        assert sum(fact["shards"] for fact in facts) == 3 * SHARDS
        assert [node.end() for node in nodes] == [0, 0, 0]
    finally:
        for node in nodes:
            node.__exit__(None, None, None)


# --- refusing to start ---


def test_a_second_node_on_the_same_folder_is_refused_and_the_first_undisturbed(path: Path) -> None:
    with NodeProcess(path) as first:
        first.serving()
        save(path)
        with NodeProcess(path) as second:
            assert f"{data_of(path) / NODE}: in use by process {first.pid}; end it first" in second.start_failure()
        assert found(path) == 20
        with asking(first_ipc(path)) as ask:
            status = ask(Status(1, BUDGET_US, 0, None))
        assert isinstance(status, StatusReply)
        assert status.pid == first.pid, "the second took its ipc endpoint"
        assert first.end() == 0
        assert [line["event"] for line in first.log] == ["a new cluster was made", "stopped"]


def first_ipc(path: Path) -> str:
    """The ipc endpoint that a node hands out."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as requests:
        requests.connect(endpoint_of(path))
        requests.send(encode(Hello(PROTOCOL, "", b"test", "")))
        assert requests.poll(int(PATIENCE_S * 1_000))
        welcome = decode_reply(requests.recv())
    assert isinstance(welcome, Welcome)
    assert welcome.ipc.startswith("ipc://")
    return welcome.ipc


def test_a_port_in_use_is_refused_with_the_remedy(path: Path) -> None:
    host, port = endpoint_of(path).removeprefix("tcp://").split(":")
    with socket.create_server((host, int(port))), NodeProcess(path) as node:
        reason = node.start_failure()
        assert reason.startswith(f"cannot bind {endpoint_of(path)}: Address already in use")
        assert reason.endswith("end the process that uses it or give the node another endpoint in topology.toml")
    with NodeProcess(path) as node:
        assert node.serving()["generation"] == 1, "a start that failed took a generation"


def test_a_data_folder_that_cannot_be_written_is_refused(tmp_path: Path, path: Path) -> None:
    (tmp_path / "data").write_text("a file in the folder's place")
    with NodeProcess(path) as node:
        assert f"{tmp_path}/data/{NODE}: cannot be written: Not a directory; make it writable" in node.start_failure()
    assert (tmp_path / "data").read_text() == "a file in the folder's place"


def test_a_data_folder_on_a_read_only_file_system_is_refused(tmp_path: Path, path: Path) -> None:
    path.write_text(path.read_text().replace('data_dir = "data"', 'data_dir = "/proc/dawnchorus"'))
    with NodeProcess(path) as node:
        assert f"/proc/dawnchorus/{NODE}: cannot be written: No such file or directory" in node.start_failure()


def test_a_lost_placement_is_refused_and_comes_back_with_its_file(used: Path) -> None:
    placement = data_of(used) / "placement.json"
    kept = placement.read_bytes()
    placement.unlink()
    with NodeProcess(used) as node:
        reason = node.start_failure()
        assert "there is no placement, but a shard has been written" in reason
        assert "restore placement.json from a backup" in reason
    assert not placement.exists(), "another was computed in its place"
    placement.write_bytes(kept)
    with NodeProcess(used) as node:
        node.serving()
        assert found(used) == 20


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "edited"])
def test_a_damaged_placement_is_refused_and_left_as_it_is(used: Path, damage: str) -> None:
    placement = data_of(used) / "placement.json"
    whole = placement.read_bytes()
    damaged = {
        "cut": whole[: len(whole) // 2],
        "garbage": b"\xff\x00" * 100,
        "empty": b"",
        "edited": whole.replace(b'"generation": 1', b'"generation": 7'),
    }[damage]
    assert damaged != whole
    placement.write_bytes(damaged)
    with NodeProcess(used) as node:
        reason = node.start_failure()
        assert f"{placement}: the placement is corrupt" in reason
        assert "restore it from a backup" in reason
    assert placement.read_bytes() == damaged


def test_a_placement_older_than_the_data_is_refused(used: Path) -> None:
    placement = data_of(used) / "placement.json"
    old = placement.read_bytes()
    with NodeProcess(used) as node:
        assert node.serving()["generation"] == 2
        save(used)
        node.end()
    placement.write_bytes(old)
    with NodeProcess(used) as node:
        assert "the placement file is older than the data; restore the newest one" in node.start_failure()


def test_a_data_folder_of_another_cluster_is_refused(used: Path, tmp_path: Path) -> None:
    used.write_text(used.read_text().replace('name = "test"', 'name = "other"'))
    with NodeProcess(used) as node:
        assert "the placement is of cluster 'test', the topology of cluster 'other'" in node.start_failure()


def test_shards_of_another_cluster_of_the_same_name_are_refused(used: Path, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    second = new_topology(tmp_path / "second")
    with NodeProcess(second) as node:
        node.serving()
        node.end()
    shard = Path(NODE) / "live" / "0000"
    shutil.rmtree(data_of(second) / shard)
    shutil.copytree(data_of(used) / shard, data_of(second) / shard)
    with NodeProcess(second) as node:
        assert f"{data_of(second) / shard}: the shard on disk has cluster_uuid" in node.start_failure()
    with NodeProcess(used) as node:
        node.serving()
        assert found(used) == 20


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("shards = 2", "shards = 4", "store 'identity' has 2 shards, the topology says 4"),
        (
            '[fragments.context]\nstore = "live"',
            '[fragments.context]\nstore = "archive"',
            "kind 'context' is kept in store 'live', the topology moves it to 'archive'",
        ),
        ('[fragments.context]\nstore = "live"', "", "kind 'context' was removed from the topology"),
        (f'name = "{NODE}"', 'name = "other-1"', f"node '{NODE}' was removed from the topology"),
    ],
)
def test_a_topology_that_contradicts_the_data_is_refused_and_nothing_is_lost(
    used: Path, before: str, after: str, reason: str
) -> None:
    right = used.read_text()
    assert before in right
    used.write_text(right.replace(before, after))
    with NodeProcess(used, "other-1" if "other-1" in after else NODE) as node:
        assert reason in node.start_failure()
    used.write_text(right)
    with NodeProcess(used) as node:
        node.serving()
        assert found(used) == 20


def test_two_shards_in_each_others_places_are_refused(used: Path) -> None:
    first, second = (data_of(used) / NODE / "live" / f"000{shard}" for shard in (0, 1))
    first.rename(first.with_name("aside"))
    second.rename(first)
    first.with_name("aside").rename(second)
    with NodeProcess(used) as node:
        assert f"{first}: the shard on disk has shard 1, the placement says 0" in node.start_failure()


def test_a_lost_shard_is_named_in_log_and_status_and_the_others_are_served(used: Path) -> None:
    folder = data_of(used) / NODE / "live" / "0001"
    shutil.rmtree(folder)
    with NodeProcess(used) as node:
        node.serving()
        with asking(endpoint_of(used)) as ask:
            reply, status = ask(fetch_of(AGENTS)), ask(Status(1, BUDGET_US, 0, None))
        assert isinstance(reply, FetchReply)
        assert [section.status for section in reply.sections] == [SectionStatus.OK, SectionStatus.CORRUPT]
        assert isinstance(status, StatusReply)
        states = {(shard.store, shard.shard): shard.state for shard in status.shards}
        assert str(folder) in states.pop(("live", 1))
        assert set(states.values()) == {"serving"}
        node.end()
        assert (node.log[0]["event"], node.log[0]["store"], node.log[0]["shard"]) == ("shard fails", "live", 1)
        assert str(folder) in node.log[0]["detail"]
    assert not folder.exists()


def test_too_little_address_space_is_one_clear_error(path: Path) -> None:
    command = f'ulimit -v {32 << 20}; exec {sys.executable} -c "$0" {path} {NODE}'
    program = "import sys; from dawnchorus.nodes.node_process import run_node; sys.exit(run_node(*sys.argv[1:]))"
    ended = subprocess.run(["sh", "-c", command, program], capture_output=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 2, ended.stderr
    last = json.loads(ended.stderr.splitlines()[-1])
    assert "the system gives no 64 GiB of address space for the map; raise `ulimit -v`" in last["detail"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("nobody", None, f"there is no node 'nobody'; its nodes are {NODE}"),
        (NODE, "[cluster", "topology.toml"),
        (NODE, "", "topology.toml"),
    ],
)
def test_a_wrong_topology_or_name_is_refused(path: Path, name: str, text: str | None, reason: str) -> None:
    if text is not None:
        path.write_text(text)
    with NodeProcess(path, name) as node:
        assert reason in node.start_failure()
    assert os.listdir(path.parent) == ["topology.toml"], "nothing was made"


def test_endpoints_of_other_hosts_are_refused(path: Path) -> None:
    path.write_text(path.read_text().replace("tcp://127.0.0.1:", "tcp://192.0.2.1:"))
    with NodeProcess(path) as node:
        assert "is not an address of this host" in node.start_failure()


# --- the ipc endpoint ---


def test_a_node_keeps_its_ipc_endpoint_out_of_a_folder_that_will_not_do(path: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    public = tmp_path / "public"
    (public / "dawnchorus").mkdir(parents=True)
    (public / "dawnchorus").chmod(0o755)
    for folder in (long, public, Path("/proc/nothing")):
        with NodeProcess(path, environment={"XDG_RUNTIME_DIR": str(folder)}) as node:
            node.serving()
            with zmq.Context() as context, context.socket(zmq.DEALER) as requests:
                requests.connect(endpoint_of(path))
                requests.send(encode(Hello(PROTOCOL, "", b"test", "")))
                assert requests.poll(int(PATIENCE_S * 1_000))
                welcome = decode_reply(requests.recv())
            assert isinstance(welcome, Welcome)
            assert not welcome.ipc.startswith(f"ipc://{folder}")
            node.end()

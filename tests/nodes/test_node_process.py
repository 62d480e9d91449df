"""One node as a process: what it serves, the errors that keep it from starting, their texts, and how it ends."""

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


def new_topology(directory: Path, *, shards: int = SHARDS, name: str = "test") -> Path:
    return write_topology(directory, name=name, shards=shards, nodes=ALL_STORES)


def endpoint_of(path: Path, node: str = NODE) -> str:
    return load_topology(path).nodes[node].endpoint


@contextmanager
def asking(endpoint: str) -> Generator[Callable[[Message], Reply]]:
    """Connect a blocking client that has said Hello."""
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
    """Return how many of the agents a node has."""
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


def test_node_announces_serving_and_shows_its_name(path: Path) -> None:
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
def test_node_asked_to_end_ends_cleanly(path: Path, number: int, ipc_directory: Path) -> None:
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


def test_node_ends_with_the_holder_of_its_stdin(path: Path) -> None:
    with NodeProcess(path) as node:
        node.serving()
        assert node.process.stdin is not None
        node.process.stdin.close()
        assert node.process.wait(PATIENCE_S) == 0


def test_node_asked_to_end_while_starting_ends(path: Path) -> None:
    with NodeProcess(path) as node:
        # Its handlers are set once the directory is locked; a signal before that ends it without leftovers.
        lock = data_of(path) / NODE / "lock"
        while not lock.exists():
            assert node.process.poll() is None
        assert node.end() in (0, -signal.SIGTERM)
    with NodeProcess(path) as node:
        node.serving()
        assert save(path)


def test_acknowledged_saves_survive_restart_and_kill_9(path: Path) -> None:
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


def test_every_start_takes_a_generation_without_writes_too(path: Path) -> None:
    for generation in (1, 2, 3):
        with NodeProcess(path) as node:
            assert node.serving()["generation"] == generation
            node.end()
    placement = decode_placement((data_of(path) / "placement.json").read_bytes())
    assert placement.generation == 3


def test_nodes_starting_together_agree_on_their_cluster(tmp_path: Path) -> None:
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


# --- rejected starts ---


def test_second_node_on_same_directory_is_rejected_harmlessly(path: Path) -> None:
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
    """Return the ipc endpoint that a node announces."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as requests:
        requests.connect(endpoint_of(path))
        requests.send(encode(Hello(PROTOCOL, "", b"test", "")))
        assert requests.poll(int(PATIENCE_S * 1_000))
        welcome = decode_reply(requests.recv())
    assert isinstance(welcome, Welcome)
    assert welcome.ipc.startswith("ipc://")
    return welcome.ipc


def test_port_in_use_is_rejected_with_the_remedy(path: Path) -> None:
    host, port = endpoint_of(path).removeprefix("tcp://").split(":")
    with socket.create_server((host, int(port))), NodeProcess(path) as node:
        reason = node.start_failure()
        assert reason.startswith(f"cannot bind {endpoint_of(path)}: Address already in use")
        assert reason.endswith("end the process that uses it or give the node another endpoint in topology.toml")
    with NodeProcess(path) as node:
        assert node.serving()["generation"] == 1, "a start that failed took a generation"


def test_unwritable_data_directory_is_rejected(tmp_path: Path, path: Path) -> None:
    (tmp_path / "data").write_text("a file in the folder's place")
    with NodeProcess(path) as node:
        assert f"{tmp_path}/data/{NODE}: cannot be written: Not a directory; make it writable" in node.start_failure()
    assert (tmp_path / "data").read_text() == "a file in the folder's place"


def test_data_directory_on_read_only_filesystem_is_rejected(tmp_path: Path, path: Path) -> None:
    path.write_text(path.read_text().replace('data_dir = "data"', 'data_dir = "/proc/dawnchorus"'))
    with NodeProcess(path) as node:
        assert f"/proc/dawnchorus/{NODE}: cannot be written: No such file or directory" in node.start_failure()


def test_lost_placement_is_rejected_until_its_file_returns(used: Path) -> None:
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
def test_corrupt_placement_is_rejected_and_left_unchanged(used: Path, damage: str) -> None:
    placement = data_of(used) / "placement.json"
    complete = placement.read_bytes()
    corrupt = {
        "cut": complete[: len(complete) // 2],
        "garbage": b"\xff\x00" * 100,
        "empty": b"",
        "edited": complete.replace(b'"generation": 1', b'"generation": 7'),
    }[damage]
    assert corrupt != complete
    placement.write_bytes(corrupt)
    with NodeProcess(used) as node:
        reason = node.start_failure()
        assert f"{placement}: the placement is corrupt" in reason
        assert "restore it from a backup" in reason
    assert placement.read_bytes() == corrupt


def test_placement_older_than_the_data_is_rejected(used: Path) -> None:
    placement = data_of(used) / "placement.json"
    old = placement.read_bytes()
    with NodeProcess(used) as node:
        assert node.serving()["generation"] == 2
        save(used)
        node.end()
    placement.write_bytes(old)
    with NodeProcess(used) as node:
        assert "the placement file is older than the data; restore the newest one" in node.start_failure()


def test_data_directory_of_another_cluster_is_rejected(used: Path, tmp_path: Path) -> None:
    used.write_text(used.read_text().replace('name = "test"', 'name = "other"'))
    with NodeProcess(used) as node:
        assert "the placement is of cluster 'test', the topology of cluster 'other'" in node.start_failure()


def test_shards_of_same_named_cluster_are_rejected(used: Path, tmp_path: Path) -> None:
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
def test_topology_contradicting_the_data_is_rejected_without_loss(
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


def test_two_swapped_shards_are_rejected(used: Path) -> None:
    first, second = (data_of(used) / NODE / "live" / f"000{shard}" for shard in (0, 1))
    first.rename(first.with_name("aside"))
    second.rename(first)
    first.with_name("aside").rename(second)
    with NodeProcess(used) as node:
        assert f"{first}: the shard on disk has shard 1, the placement says 0" in node.start_failure()


def test_log_and_status_name_lost_shard_others_served(used: Path) -> None:
    directory = data_of(used) / NODE / "live" / "0001"
    shutil.rmtree(directory)
    with NodeProcess(used) as node:
        node.serving()
        with asking(endpoint_of(used)) as ask:
            reply, status = ask(fetch_of(AGENTS)), ask(Status(1, BUDGET_US, 0, None))
        assert isinstance(reply, FetchReply)
        assert [section.status for section in reply.sections] == [SectionStatus.OK, SectionStatus.CORRUPT]
        assert isinstance(status, StatusReply)
        states = {(shard.store, shard.shard): shard.state for shard in status.shards}
        assert str(directory) in states.pop(("live", 1))
        assert set(states.values()) == {"serving"}
        node.end()
        assert (node.log[0]["event"], node.log[0]["store"], node.log[0]["shard"]) == ("shard fails", "live", 1)
        assert str(directory) in node.log[0]["detail"]
    assert not directory.exists()


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
def test_wrong_topology_or_name_is_rejected(path: Path, name: str, text: str | None, reason: str) -> None:
    if text is not None:
        path.write_text(text)
    with NodeProcess(path, name) as node:
        assert reason in node.start_failure()
    assert os.listdir(path.parent) == ["topology.toml"], "nothing was made"


def test_endpoints_of_other_hosts_are_rejected(path: Path) -> None:
    path.write_text(path.read_text().replace("tcp://127.0.0.1:", "tcp://192.0.2.1:"))
    with NodeProcess(path) as node:
        assert "is not an address of this host" in node.start_failure()


# --- the ipc endpoint ---


def test_ipc_endpoint_avoids_unusable_directory(path: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    public = tmp_path / "public"
    (public / "dawnchorus").mkdir(parents=True)
    (public / "dawnchorus").chmod(0o755)
    for directory in (long, public, Path("/proc/nothing")):
        with NodeProcess(path, environment={"XDG_RUNTIME_DIR": str(directory)}) as node:
            node.serving()
            with zmq.Context() as context, context.socket(zmq.DEALER) as requests:
                requests.connect(endpoint_of(path))
                requests.send(encode(Hello(PROTOCOL, "", b"test", "")))
                assert requests.poll(int(PATIENCE_S * 1_000))
                welcome = decode_reply(requests.recv())
            assert isinstance(welcome, Welcome)
            assert not welcome.ipc.startswith(f"ipc://{directory}")
            node.end()

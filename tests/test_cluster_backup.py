"""Backups of a running cluster, restored, verified, and used to heal a corrupt shard: real nodes, real files."""

import asyncio
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dawnchorus import Cluster, connect
from dawnchorus.nodes.shard_table import locked_directory
from dawnchorus.wire.protocol.shard_hash import shard_of
from tests.support.clusters import running, write_topology
from tests.tools.command_line import error_of, run, run_json

AGENTS = [f"agent-{number}" for number in range(200)]
SHARDS = 4
PAGE_BYTES = os.sysconf("SC_PAGESIZE")
LEAF = 2  # P_LEAF


class Counting:
    """Tasks that save ever greater numbers, in both stores of each agent; `acknowledged` is what was."""

    def __init__(self, cluster: Cluster) -> None:
        self.acknowledged: dict[str, int] = {}
        self.saves = 0
        self._cluster = cluster
        self._number = 0
        self._tasks = [asyncio.create_task(self._count(AGENTS[first::8])) for first in range(8)]

    async def _count(self, agents: list[str]) -> None:
        while True:
            for agent in agents:
                self._number += 1
                number = self._number
                await self._cluster.save(agent, {"profile": number, "context": [number, "x" * (number % 3_000)]})
                self.acknowledged[agent] = number
                self.saves += 1

    async def until(self, saves: int) -> None:
        """Return when so many more saves were acknowledged."""
        enough = self.saves + saves
        while self.saves < enough:
            assert not any(task.done() for task in self._tasks), "a saver ended"
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """End the tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def command(*arguments: str | Path, code: int = 0) -> Any:
    """Run the command line beside what this loop does."""
    return await asyncio.to_thread(run_json, *arguments, code=code)


async def fill(cluster: Cluster) -> None:
    await cluster.save_many({agent: {"profile": agent, "context": "x" * 2_000, "history": [1]} for agent in AGENTS})


@pytest.fixture(scope="module")
def backed_up(ipc_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped cluster in a directory, with its backup beside it; tests that change it take a copy."""
    directory = tmp_path_factory.mktemp("backed-up")
    path = write_topology(directory, shards=SHARDS)

    async def make() -> None:
        async with running(path), connect(path) as cluster:
            for _ in range(3):
                await fill(cluster)
            await command("backup", directory / "backup", "-t", path)

    asyncio.run(make())
    return directory


@pytest.fixture
def stopped(backed_up: Path, tmp_path: Path) -> Path:
    """A copy of the stopped cluster and its backup."""
    return shutil.copytree(backed_up, tmp_path / "stopped")


async def test_backup_under_load_has_earlier_acknowledged_saves(ipc_directory: Path, tmp_path: Path) -> None:
    path = write_topology(tmp_path, shards=SHARDS)
    async with running(path), connect(path) as cluster:
        counting = Counting(cluster)
        await counting.until(600)
        before = dict(counting.acknowledged)
        # Slow enough that many saves fall into it.
        made = await command("backup", tmp_path / "backup", "-t", path, "--rate-mb", "2")
        await counting.until(200)
        await counting.stop()
        states = await cluster.wake_many(AGENTS, deadline_s=20)
        newest = max(state.version(kind) for state in states for kind in ("profile", "context"))
    assert {(shard["store"], shard["shard"]) for shard in made["shards"]} == {
        (store, shard) for store in ("identity", "live", "archive") for shard in range(SHARDS)
    }
    assert (await command("verify", tmp_path / "backup"))["problem_count"] == 0

    other = tmp_path / "other"
    other.mkdir()
    restored = write_topology(other, shards=SHARDS)
    await command("restore", tmp_path / "backup", "-t", restored)
    assert (await command("verify", "-t", restored))["images"] == 2 * len(AGENTS)
    async with running(restored), connect(restored) as cluster:
        for state in await cluster.wake_many(AGENTS, deadline_s=20):
            assert state["profile"] >= before[state.agent_id]
            assert state["context"][0] >= before[state.agent_id]
        saved = await cluster.save("agent-7", {"profile": 0, "context": 0})
        assert min(saved.versions.values()) > newest, "a version was used again"
    assert (await command("verify", "-t", restored))["problem_count"] == 0


async def test_restored_cluster_keeps_uuid_with_other_nodes(stopped: Path, tmp_path: Path) -> None:
    path = write_topology(tmp_path, shards=SHARDS, nodes={"all-1": ["identity", "live"], "all-2": ["archive", "live"]})
    await command("restore", stopped / "backup", "-t", path)
    assert (await command("verify", "-t", path))["problem_count"] == 0
    async with running(path), connect(path) as cluster:
        states = await cluster.wake_many(AGENTS, deadline_s=20)
        assert [(state["profile"], state["history"]) for state in states] == [(agent, [1]) for agent in AGENTS]
        uuid = cluster.placement.cluster_uuid
    assert uuid in (stopped / "data" / "placement.json").read_text()


# --- what is rejected ---


def test_a_running_cluster_is_neither_restored_nor_verified(backed_up: Path, tmp_path: Path) -> None:
    # Somebody holds the launcher's lock, as `up` does.
    path = write_topology(tmp_path, shards=SHARDS)
    for locked in (tmp_path / "data", tmp_path / "data" / "live-1"):
        with locked_directory(locked):
            for arguments in (("restore", backed_up / "backup"), ("verify",)):
                assert "the cluster must be stopped for this" in error_of(*arguments, "-t", path)
    assert not list((tmp_path / "data").glob("*/*/*"))


def test_a_data_directory_with_data_is_not_overwritten(stopped: Path) -> None:
    path = stopped / "topology.toml"
    before = sorted((file, file.stat().st_mtime_ns) for file in (stopped / "data").glob("*/*/*/data.mdb"))
    assert "holds a cluster already" in error_of("restore", stopped / "backup", "-t", path)
    (stopped / "data" / "placement.json").unlink()
    assert "holds a shard already" in error_of("restore", stopped / "backup", "-t", path)
    assert sorted((file, file.stat().st_mtime_ns) for file in (stopped / "data").glob("*/*/*/data.mdb")) == before


def flip(file: Path, offset: int) -> None:
    """Flip one bit of a file."""
    with open(file, "r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ 4]))


BACKUP_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda backup: (backup / "backup.json").unlink(), "not a complete backup: it has no backup.json"),
    "no file": (lambda backup: (backup / "live-0002.mdb").unlink(), "live-0002.mdb: cannot be read: No such file"),
    "truncated": (lambda backup: os.truncate(backup / "live-0002.mdb", PAGE_BYTES), "live-0002.mdb: truncated"),
    "flipped bit": (lambda backup: flip(backup / "live-0002.mdb", 20_000), "live-0002.mdb: corrupt: it does not match"),
    "flipped manifest": (lambda backup: flip(backup / "backup.json", 400), "backup.json: corrupt"),
    "truncated manifest": (lambda backup: os.truncate(backup / "backup.json", 900), "backup.json: corrupt"),
}


@pytest.mark.parametrize("what", BACKUP_DAMAGES)
def test_a_corrupt_backup_is_rejected_and_named(stopped: Path, tmp_path: Path, what: str) -> None:
    damage, message = BACKUP_DAMAGES[what]
    damage(stopped / "backup")
    path = write_topology(tmp_path, shards=SHARDS)
    assert message in error_of("restore", stopped / "backup", "-t", path, code=1)
    assert message in error_of("verify", stopped / "backup", code=1)
    assert not list((tmp_path / "data").glob("*/*/*"))
    assert not (tmp_path / "data" / "placement.json").exists()


def test_a_topology_that_contradicts_the_backup_is_rejected(backed_up: Path, tmp_path: Path) -> None:
    path = write_topology(tmp_path, shards=SHARDS + 1)
    assert "store 'identity' has 4 shards, the topology says 5" in error_of("restore", backed_up / "backup", "-t", path)
    assert not list((tmp_path / "data").glob("*/*/*"))


def test_directory_without_backup_is_rejected(tmp_path: Path) -> None:
    assert "is no backup" in error_of("verify", tmp_path)


async def test_a_backup_goes_into_an_empty_directory_only(ipc_directory: Path, tmp_path: Path) -> None:
    path = write_topology(tmp_path, shards=1)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("kept")
    async with running(path):
        said = await asyncio.to_thread(error_of, "backup", tmp_path / "taken", "-t", path)
        assert "is not empty" in said
        said = await asyncio.to_thread(error_of, "backup", tmp_path / "data" / "backup", "-t", path)
        assert "is inside the cluster's data directory" in said
        # Through a symbolic link as well.
        (tmp_path / "linked").mkdir()
        (tmp_path / "linked" / "data").symlink_to(tmp_path / "data")
        linked = tmp_path / "linked" / "topology.toml"
        linked.write_text(path.read_text())
        said = await asyncio.to_thread(error_of, "backup", tmp_path / "data" / "backup", "-t", linked)
        assert "is inside the cluster's data directory" in said
    assert [entry.name for entry in (tmp_path / "taken").iterdir()] == ["mine"]


async def test_backup_with_dead_node_fails_without_leftovers(ipc_directory: Path, tmp_path: Path) -> None:
    path = write_topology(tmp_path, shards=1)
    async with running(path) as nodes:
        nodes.signal("live-1", signal.SIGSTOP)
        try:
            said = await asyncio.to_thread(error_of, "backup", tmp_path / "backup", "-t", path, code=1)
        finally:
            nodes.signal("live-1", signal.SIGCONT)
    assert "node 'live-1' does not answer" in said
    assert not (tmp_path / "backup").exists()


async def test_node_dying_during_backup_only_delays_it(ipc_directory: Path, tmp_path: Path) -> None:
    path = write_topology(tmp_path, shards=2)
    async with running(path) as nodes, connect(path) as cluster:
        await cluster.save_many({agent: {"profile": 1, "context": "x" * 20_000} for agent in AGENTS})
        # The last store's two shards take a second each.
        backing_up = asyncio.create_task(command("backup", tmp_path / "backup", "-t", path, "--rate-mb", "2"))
        while not list(tmp_path.glob("backup/.live-*.partial")):
            assert not backing_up.done()
            await asyncio.sleep(0.005)
        await nodes.kill("live-1")
        await backing_up
    assert (await command("verify", tmp_path / "backup"))["problem_count"] == 0
    names = sorted(file.name for file in (tmp_path / "backup").iterdir() if not file.name.startswith("."))
    assert len(names) == 7, names
    assert "live-0000-1.mdb" in names or "live-0001-1.mdb" in names


# --- a corrupt shard ---


def zero_pages(file: Path) -> None:
    """Lose every page but the two that LMDB begins with."""
    size = file.stat().st_size
    with open(file, "r+b") as opened:
        opened.seek(2 * PAGE_BYTES)
        opened.write(bytes(size - 2 * PAGE_BYTES))


def zero_log_pages(file: Path) -> None:
    """Lose the leaves of the log but the first: LMDB's assertions end the process that goes on to one.

    A page (MDB_page in mdb.c): number, padding, flags, lower, upper, then offsets of nodes; a node's key begins after
    eight bytes, the last two of which are its length.
    """
    content = bytearray(file.read_bytes())
    leaves: dict[bytes, int] = {}
    for page in range(2 * PAGE_BYTES, len(content), PAGE_BYTES):
        flags, lower, _upper, node = struct.unpack_from("<HHHH", content, page + 10)
        length = struct.unpack_from("<H", content, page + node + 6)[0] if flags == LEAF and lower > 16 else 0
        if length == 8:
            leaves[bytes(content[page + node + 8 : page + node + 16]) + page.to_bytes(8, "big")] = page
    first = min(leaves)[:8]
    lost = [page for key, page in leaves.items() if key[:8] != first]
    assert lost, "the log has one leaf"
    for page in lost:
        content[page : page + PAGE_BYTES] = bytes(PAGE_BYTES)
    file.write_bytes(content)


SHARD_DAMAGES: dict[str, Callable[[Path], object]] = {
    "magic": lambda file: flip(file, 16),
    "truncated": lambda file: os.truncate(file, 3 * PAGE_BYTES),
    "missing": lambda file: file.unlink(),
    "zeroed pages": zero_pages,
    "zeroed pages of the log": zero_log_pages,
}


@pytest.mark.parametrize("what", SHARD_DAMAGES)
async def test_corrupt_shard_is_named_and_healed_by_restore(ipc_directory: Path, stopped: Path, what: str) -> None:
    path = stopped / "topology.toml"
    directory = stopped / "data" / "live-1" / "live" / "0002"
    SHARD_DAMAGES[what](directory / "data.mdb")
    hurt = {agent for agent in AGENTS if shard_of(agent.encode(), SHARDS) == 2}
    async with running(path) as nodes, connect(path) as cluster:
        assert ("restarting" in nodes.states("live-1")) == (what == "zeroed pages of the log")
        status = await command("status", "-t", path, code=1)
        states = {
            (shard["store"], shard["shard"]): shard["state"] for node in status["nodes"] for shard in node["shards"]
        }
        assert [key for key, state in states.items() if state != "serving"] == [("live", 2)]
        assert str(directory) in states["live", 2]
        woken = await cluster.wake_many(AGENTS, deadline_s=20)
        assert {state.agent_id for state in woken if not state.complete} == hurt
        assert all(state["profile"] == state.agent_id for state in woken)
        said = await asyncio.to_thread(error_of, "backup", stopped / "second", "-t", path, code=1)
        assert "shard live/2 is not served" in said
    found = await command("verify", "-t", path, code=1)
    assert {(problem["store"], problem["shard"]) for problem in found["problems"]} == {("live", 2)}

    said = await asyncio.to_thread(error_of, "restore", stopped / "backup", "-t", path, "--shard", "live/1")
    assert "shard live/1 is sound" in said
    await command("restore", stopped / "backup", "-t", path, "--shard", "live/2")
    assert (await command("verify", "-t", path))["problem_count"] == 0
    async with running(path), connect(path) as cluster:
        woken = await cluster.wake_many(AGENTS, deadline_s=20)
        assert all(state.complete for state in woken)
        before = max(state.version("context") for state in woken)
        agent = min(hurt)
        assert (await cluster.save(agent, {"context": "new"})).versions["context"] > before
    assert (await command("verify", "-t", path))["problem_count"] == 0


def test_killed_restore_blocks_commands_until_repeated(stopped: Path, tmp_path: Path) -> None:
    path = write_topology(tmp_path, shards=SHARDS)
    code = (
        "import os, signal\n"
        "from dawnchorus.tools import main\nfrom dawnchorus.tools.backup import restore\n"
        "def rename(source, target):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "restore._rename = rename\n"
        f"main.main(['restore', {str(stopped / 'backup')!r}, '-t', {str(path)!r}])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "data").glob("*/*/*.restoring/data.mdb"))) == 3 * SHARDS
    for arguments in (("up",), ("verify",), ("restore", stopped / "backup", "--shard", "live/1")):
        assert "a restore of cluster" in error_of(*arguments, "-t", path)
    run("restore", stopped / "backup", "-t", path)
    assert run_json("verify", "-t", path)["problem_count"] == 0

"""A disk that is full: saves are rejected by that name, wakes go on, nothing is lost, and space brings saves back."""

import asyncio
import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from dawnchorus import Cluster, Saved, SaveError, SaveRejected, connect
from dawnchorus.fragment_stores.lmdb.check import open_copy, verify_environment
from dawnchorus.fragment_stores.shard_files import Verified
from dawnchorus.wire.protocol.messages import StatusReply
from tests.support.clusters import RunningCluster, eventually, running, write_topology

LONG_S = 30.0
DISK_BYTES = 24 << 20
FILLER_BYTES = 6 << 20
VALUE_BYTES = 150_000
NODE = "live-1"
KINDS = '[fragments.session]\nstore = "live"\n'


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A file system of its own, of a few megabytes."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "dawnchorus-test", str(directory)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False)
    except OSError as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


class Filling:
    """Saves until the disk is full, and those of them that were acknowledged."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.acknowledged: dict[str, bytes] = {}
        self.rejected: list[SaveError] = []
        self._number = 0

    async def save(self, count: int, size: int = VALUE_BYTES) -> None:
        """Save some new agents at once."""
        values = {f"agent-{self._number + number}": os.urandom(size) for number in range(count)}
        self._number += count
        results = await self.cluster.save_many(
            {agent_id: {"session": value} for agent_id, value in values.items()}, deadline_s=LONG_S
        )
        for agent_id, result in results.items():
            if isinstance(result, Saved):
                self.acknowledged[agent_id] = values[agent_id]
            else:
                assert isinstance(result, SaveRejected), repr(result)
                assert "DISK_FULL" in result.rejected["live"]
                assert "no space left on the disk" in result.rejected["live"]
                self.rejected.append(result)

    async def check(self, cluster: Cluster | None = None) -> None:
        """Fail unless all acknowledged saves are there, and none that was rejected."""
        reader = cluster or self.cluster
        for state in await reader.wake_many(self.acknowledged, deadline_s=LONG_S):
            assert state.complete
            assert state["session"] == self.acknowledged[state.agent_id]
        for state in await reader.wake_many([error.agent_id for error in self.rejected], deadline_s=LONG_S):
            assert "session" not in state or state.agent_id in self.acknowledged


async def last_errors_of(cluster: Cluster) -> set[str]:
    """Return the last errors that the node reports for its shards."""
    answer = (await cluster.status())[NODE]
    assert isinstance(answer, StatusReply)
    assert {shard.state for shard in answer.shards} == {"serving"}
    return {shard.last_error for shard in answer.shards} - {""}


def restarts(nodes: RunningCluster) -> int:
    return nodes.states(NODE).count("starting") - 1


async def test_full_disk_rejects_saves_until_space_returns(ipc_directory: object, small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(FILLER_BYTES))
    path = write_topology(small_disk, shards=2, nodes={NODE: ["live"]}, kinds=KINDS)
    async with running(path) as nodes, connect(path) as cluster:
        filling = Filling(cluster)
        while not filling.rejected:
            await filling.save(4)
        # Full: saves large and small, alone and beside each other; what is not rejected is there.
        before = len(filling.acknowledged)
        for _ in range(10):
            await asyncio.gather(filling.save(3), filling.save(2), filling.check())
        assert len(filling.rejected) > 30
        assert before > 20
        last_errors = await last_errors_of(cluster)
        assert last_errors
        assert all(said.endswith("no space left on the disk") for said in last_errors)
        with pytest.raises(SaveRejected, match="DISK_FULL") as raised:
            await cluster.save("again", {"session": os.urandom(10 * VALUE_BYTES // 2)}, deadline_s=LONG_S)

        said = [event.detail for event in nodes.events if event.state == "log"]
        assert 1 <= sum("no space left" in detail for detail in said) <= 2, "once for each shard, not for each save"

        filler.unlink()
        filling.rejected.clear()
        saved = await raised.value.retry()
        assert isinstance(saved, Saved)
        await filling.save(8)
        await filling.save(8)
        assert not filling.rejected, "there is space again"
        await filling.check()
        assert await last_errors_of(cluster) == set()
        assert restarts(nodes) == 0
    for shard in range(2):
        with open_copy(small_disk / "data" / NODE / "live" / f"{shard:04d}" / "data.mdb") as environment:
            assert list(verify_environment(environment, Verified())) == []
    async with running(path), connect(path) as cluster:
        await filling.check(cluster)


async def test_node_killed_on_full_disk_restarts_with_everything(ipc_directory: object, small_disk: Path) -> None:
    filler = small_disk / "filler"
    path = write_topology(small_disk, shards=2, nodes={NODE: ["live"]}, kinds=KINDS)
    async with running(path) as nodes, connect(path) as cluster:
        filling = Filling(cluster)
        while len(filling.acknowledged) < 20:
            await filling.save(4)
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4_096))
            except OSError:
                pass
        while not filling.rejected:
            await filling.save(4)
        await nodes.kill(NODE)
        # It takes its generation durably before it serves: without any space it cannot, and tries again.
        await eventually(lambda: restarts(nodes) >= 1 and nodes.states(NODE)[-1] in ("serving", "restarting"))
        filler.unlink()
        await nodes.served_again(NODE, 2)
        await filling.check()
        filling.rejected.clear()
        await filling.save(8)
        assert not filling.rejected
        await filling.check()

"""A wall clock that is wrong for a while, before or while a node runs: nothing expires by it, expiry goes on."""

import asyncio
from pathlib import Path

import pytest

from dawnchorus import Cluster, Outcome, connect
from dawnchorus.wire.protocol.messages import StatusReply
from tests.support.clusters import RunningCluster, eventually, running, write_topology

DAYS_S = 2 * 86_400
NODE = "all-1"
KINDS = """
[fragments.profile]
store = "identity"
[fragments.session]
store = "identity"
ttl_s = 3600
"""

# Test aid: the wall clock of a process is off by the seconds in a file.
SHIM = """
import time
real = time.time_ns
def time_ns():
    with open({clock!r}) as file:
        return real() + int(file.read()) * 1_000_000_000
time.time_ns = time_ns
"""


class WallClock:
    """The wall clock of the nodes that are started while it exists."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.be_off(0)

    def be_off(self, seconds: int) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._path)


@pytest.fixture
def wall_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WallClock:
    shim = tmp_path / "shim"
    shim.mkdir()
    clock = tmp_path / "clock"
    (shim / "sitecustomize.py").write_text(SHIM.format(clock=str(clock)))
    monkeypatch.setenv("PYTHONPATH", str(shim))
    return WallClock(clock)


async def outcome(cluster: Cluster, agent: str) -> Outcome:
    state = await cluster.wake(agent)
    return state.outcome("session")


async def ahead_ms(cluster: Cluster) -> int:
    answer = (await cluster.status())[NODE]
    assert isinstance(answer, StatusReply)
    [shard] = answer.shards
    return shard.clock_ahead_ms


def doubted(nodes: RunningCluster) -> int:
    return sum("in doubt" in event.detail for event in nodes.events if event.state == "log")


async def test_wall_clock_jump_neither_causes_nor_stops_expiry(
    ipc_directory: Path, tmp_path: Path, wall_clock: WallClock
) -> None:
    path = write_topology(tmp_path, shards=1, nodes={NODE: ["identity"]}, kinds=KINDS)
    async with running(path) as nodes, connect(path) as cluster:
        await cluster.save("old", {"profile": 1, "session": "of an hour"})
        wall_clock.be_off(DAYS_S)
        await cluster.save("other", {"profile": 1})
        await cluster.save("short", {"profile": 1, "session": "of a second"}, ttl_s=1)
        await eventually(lambda: doubted(nodes) > 0)
        assert await outcome(cluster, "old") is Outcome.OK
        assert await ahead_ms(cluster) < -(DAYS_S - 60) * 1_000, "status tells that the two differ"
        assert await expired(cluster, "short"), "what was saved meanwhile lives as long as it should"
        wall_clock.be_off(0)
        await cluster.save("new", {"session": "of a second"}, ttl_s=1)
        assert await expired(cluster, "new")
        await cluster.save("new", {"session": "again"}, expect=0)
        assert await outcome(cluster, "old") is Outcome.OK
        assert abs(await ahead_ms(cluster)) < 60_000
    async with running(path), connect(path) as cluster:
        assert await outcome(cluster, "old") is Outcome.OK
        assert await outcome(cluster, "short") is Outcome.EXPIRED


async def test_node_started_under_wrong_wall_clock_expires_nothing(
    ipc_directory: Path, tmp_path: Path, wall_clock: WallClock
) -> None:
    path = write_topology(tmp_path, shards=1, nodes={NODE: ["identity"]}, kinds=KINDS)
    wall_clock.be_off(DAYS_S)
    async with running(path), connect(path) as cluster:
        await cluster.save("old", {"profile": 1, "session": "of an hour"})
        await cluster.save("short", {"session": "of a second"}, ttl_s=1)
        wall_clock.be_off(0)
        assert await ahead_ms(cluster) > (DAYS_S - 60) * 1_000, "it never goes back, and status says that it is ahead"
        assert await expired(cluster, "short"), "and goes on"
    for off_s in (2 * DAYS_S, -DAYS_S):
        wall_clock.be_off(off_s)
        async with running(path), connect(path) as cluster:
            await asyncio.sleep(1.5)  # the node looks at its clocks once a second
            assert await outcome(cluster, "old") is Outcome.OK
            assert await outcome(cluster, "short") is Outcome.EXPIRED


async def expired(cluster: Cluster, agent: str) -> bool:
    """Return whether a fragment expires in the next few seconds; its second may not have passed yet."""
    for _ in range(200):
        if await outcome(cluster, agent) is Outcome.EXPIRED:
            return True
        await asyncio.sleep(0.05)
    return False

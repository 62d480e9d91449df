"""Redis as the peer: a real server, filled and asked in the three ways that a storm compares with."""

import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest

from dawnchorus.perf.harness.progress import no_progress
from dawnchorus.perf.harness.workload import GivenAgents, SyntheticAgents, Workload
from dawnchorus.perf.peers.redis_peer import Batch, RedisPeer, redis_peer
from dawnchorus.perf.peers.unavailable import PeerUnavailable
from tests.support.children import children_left

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")

AGENTS = SyntheticAgents(500, 64)
SAMPLE = [499, 0, 250, 17, 18]


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncGenerator[RedisPeer]:
    """Redis with all agents asleep."""
    async with redis_peer(tmp_path, AGENTS) as peer:
        await peer.fill(no_progress)
        yield peer
    assert not children_left()


@needs_redis
@pytest.mark.parametrize("batch", [Batch(2, pipelined=False), Batch(2, pipelined=True), Batch(1000, pipelined=False)])
async def test_each_way_gives_what_was_put(peer: RedisPeer, batch: Batch) -> None:
    peer.mget_choice = peer.packed_choice = batch
    by_kind = [AGENTS.encoded(agent)[kind] for kind in AGENTS.kinds for agent in SAMPLE]
    assert peer.mget(peer.mget_keys(SAMPLE), len(SAMPLE)) == by_kind
    packed = peer.packed(peer.packed_keys(SAMPLE))
    assert [msgspec.msgpack.decode(blob or b"") for blob in packed] == [AGENTS.encoded(agent) for agent in SAMPLE]
    assert await peer.task_per_agent(SAMPLE) == [list(AGENTS.encoded(agent).values()) for agent in SAMPLE]


@needs_redis
async def test_more_tasks_than_connections_wait_for_one(peer: RedisPeer) -> None:
    assert len(await peer.task_per_agent(range(500))) == 500


@needs_redis
async def test_best_fitting_batches_are_chosen(peer: RedisPeer) -> None:
    await peer.choose_batches(range(300), no_progress)
    assert peer.mget_choice.agents in (100, 250, 300)
    assert peer.packed_choice.agents in (100, 250, 300)


@needs_redis
async def test_a_kind_that_an_agent_lacks_is_none(tmp_path: Path) -> None:
    agents: Workload = GivenAgents([("a", {"profile": b"1", "history": b"2"}), ("b", {"profile": b"3"})])
    async with redis_peer(tmp_path, agents) as peer:
        await peer.fill(no_progress)
        assert peer.mget(peer.mget_keys([0, 1]), 2) == [b"1", b"3", b"2", None]


async def test_a_missing_server_is_said(tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailable, match="no-such-redis is not installed"):
        async with redis_peer(tmp_path, AGENTS, "no-such-redis"):
            pass


async def test_a_server_that_does_not_start_is_said(tmp_path: Path) -> None:
    program = tmp_path / "broken-redis"
    program.write_text("#!/bin/sh\necho wrong architecture >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(PeerUnavailable, match="code 3: wrong architecture"):
        async with redis_peer(tmp_path, AGENTS, str(program)):
            pass

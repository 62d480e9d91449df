"""Redis as the peer of saves: a real server that syncs always, given agents in both ways."""

import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest

from dawnchorus.perf.harness.progress import no_progress
from dawnchorus.perf.harness.workload import SyntheticAgents
from dawnchorus.perf.peers.redis_peer import Batch
from dawnchorus.perf.peers.redis_saves import RedisSaves, prepare_packed, prepare_sets, redis_saves
from dawnchorus.perf.peers.unavailable import PeerUnavailable
from tests.support.children import children_left

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")

AGENTS = SyntheticAgents(50, 64)
EVERYONE = range(50)


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncGenerator[RedisSaves]:
    async with redis_saves(tmp_path, tmp_path) as peer:
        yield peer
    assert not children_left()


async def test_it_writes_and_syncs_a_log(peer: RedisSaves, tmp_path: Path) -> None:
    assert await peer.settings() == {"appendonly": "yes", "appendfsync": "always"}
    peer.save_fragments(prepare_sets(AGENTS, EVERYONE))
    size = sum(path.stat().st_size for path in (tmp_path / "appendonlydir").iterdir())
    assert size > 50 * 5 * 64


@pytest.mark.parametrize("batch", [Batch(7, pipelined=False), Batch(7, pipelined=True), Batch(1000, pipelined=False)])
async def test_each_way_of_saving_leaves_what_was_given(peer: RedisSaves, batch: Batch) -> None:
    peer.sets_choice = peer.packed_choice = batch
    sets, packed = prepare_sets(AGENTS, EVERYONE), prepare_packed(AGENTS, EVERYONE)
    peer.save_fragments(sets)
    peer.save_packed(packed)
    assert peer.stored_fragments(sets) == [value for agent in EVERYONE for value in AGENTS.encoded(agent).values()]
    stored = [msgspec.msgpack.decode(blob or b"") for blob in peer.stored_packed(packed)]
    assert stored == [AGENTS.encoded(agent) for agent in EVERYONE]


async def test_best_fitting_batches_are_chosen(peer: RedisSaves) -> None:
    await peer.choose_batches(prepare_sets(AGENTS, EVERYONE), prepare_packed(AGENTS, EVERYONE), no_progress)
    assert (peer.sets_choice.agents, peer.packed_choice.agents) == (50, 50)


async def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailable, match="no-such-server is not installed"):
        async with redis_saves(tmp_path, tmp_path, "no-such-server"):
            pass

"""Saves that are sent again, by this client or another, also after the node has restarted; fragments that expire."""

import asyncio
import random
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from dawnchorus import (
    Cluster,
    DeadlineExceeded,
    FragmentAbsent,
    Outcome,
    Saved,
    SaveIndeterminate,
    VersionConflict,
    connect,
)
from dawnchorus.fragment_stores.lmdb import store as lmdb_store
from tests.support.clusters import RunningCluster, eventually, running, write_topology
from tests.support.internals import drop_replies, is_up
from tests.support.raw_nodes import make_topology, served

LONG_S = 30.0


@pytest.fixture(scope="module")
async def nodes(ipc_directory: object, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RunningCluster]:
    """A cluster whose nodes may be killed; they come again."""
    async with running(write_topology(tmp_path_factory.mktemp("retried"), shards=2)) as nodes:
        yield nodes


@pytest.fixture
async def cluster(nodes: RunningCluster) -> AsyncGenerator[Cluster]:
    async with connect(nodes.path) as cluster:
        yield cluster


async def restart(nodes: RunningCluster, node: str) -> None:
    starts = nodes.states(node).count("serving")
    await nodes.kill(node)
    await nodes.served_again(node, starts + 1)


async def test_idempotency_key_holds_after_restarts_and_other_saves(nodes: RunningCluster, cluster: Cluster) -> None:
    values = {"profile": 1, "session": 1}
    first = await cluster.save("a", values, expect=0, deadline_s=LONG_S)
    await cluster.save("a", {"profile": 2, "session": 2}, deadline_s=LONG_S)
    for node in ("identity-1", "live-1", "identity-1"):
        await restart(nodes, node)
        await cluster.save_many({f"other-{number}": {"profile": number} for number in range(50)}, deadline_s=LONG_S)
        async with connect(nodes.path) as other:
            again = await other.save("a", values, expect=0, write_id=first.write_id, deadline_s=LONG_S)
            assert again.versions == first.versions
            assert again.write_id == first.write_id
            state = await other.wake("a", deadline_s=LONG_S)
            assert (state["profile"], state["session"]) == (2, 2), "nothing was written a second time"


async def test_delete_with_lost_answers_is_done_once(nodes: RunningCluster, cluster: Cluster) -> None:
    await cluster.save("deleted", {"session": 1}, deadline_s=LONG_S)
    async with connect(nodes.path) as deaf:
        dropper = drop_replies(deaf, random.Random(1), share=1.0)
        with pytest.raises(DeadlineExceeded) as raised:
            await deaf.delete("deleted", ["session"], deadline_s=2.0)
        saved = await cluster.save("deleted", {"session": 2}, expect=0, deadline_s=LONG_S)
        await restart(nodes, "live-1")
        await eventually(lambda: is_up(deaf, "live-1"))
        dropper.share = 0.0
        deleted = await raised.value.retry()
        assert isinstance(deleted, Saved)
        assert deleted.versions["session"] < saved.versions["session"]
    [state] = await cluster.wake_many(["deleted"], ["session"], deadline_s=LONG_S)
    assert (state["session"], state.version("session")) == (2, saved.versions["session"])


async def test_repeated_save_beyond_the_log_is_indeterminate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_store, "LOG_ROWS_MAX", 10)
    topology = make_topology(tmp_path)
    async with served(topology), connect(topology) as cluster:
        first = await cluster.save("a", {"session": 1}, deadline_s=LONG_S)
        await cluster.save_many({f"other-{number}": {"session": number} for number in range(40)}, deadline_s=LONG_S)
    for _ in range(2):
        async with served(topology), connect(topology) as cluster:
            with pytest.raises(SaveIndeterminate, match="only reaches back"):
                await cluster.save("a", {"session": 1}, write_id=first.write_id, deadline_s=LONG_S)
            # It does not hold up a new save, whose outcome is known from the start.
            new = await cluster.save("a", {"session": 2}, deadline_s=LONG_S)
            again = await cluster.save("a", {"session": 2}, write_id=new.write_id, deadline_s=LONG_S)
            assert again.versions == new.versions


async def test_expired_fragment_is_hidden_and_blocks_no_save(nodes: RunningCluster, cluster: Cluster) -> None:
    await cluster.save("expiring", {"profile": 1, "context": 1}, deadline_s=LONG_S)
    saved = await cluster.save("expiring", {"session": 1}, ttl_s=0.15, deadline_s=LONG_S)
    with pytest.raises(VersionConflict):
        await cluster.save("expiring", {"session": 2}, expect={"session": saved.versions["session"] + 1})
    await asyncio.sleep(0.2)
    for restarted in (False, True):
        if restarted:
            await restart(nodes, "live-1")
        state = await cluster.wake("expiring", deadline_s=LONG_S)
        assert state.complete
        assert state.outcome("session") is Outcome.EXPIRED
        assert state.version("session") == 0
        assert state.get("session", "none") == "none"
        with pytest.raises(FragmentAbsent):
            _ = state["session"]
        assert (state["profile"], state["context"]) == (1, 1)
    with pytest.raises(VersionConflict) as raised:
        await cluster.save("expiring", {"session": 2}, expect={"session": saved.versions["session"]}, deadline_s=LONG_S)
    assert raised.value.found == {"session": 0}
    expired = await cluster.wake("expiring", deadline_s=LONG_S)
    assert isinstance(await cluster.save("expiring", {"session": 2}, expect=expired, deadline_s=LONG_S), Saved)
    assert (await cluster.wake("expiring", deadline_s=LONG_S))["session"] == 2

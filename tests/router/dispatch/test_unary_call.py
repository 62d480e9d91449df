"""Listing agents and asking for node health: a client against fake nodes that answer as each test says."""

import pytest

from dawnchorus import ClusterUnavailable, InvalidRequestError, PeerFault
from dawnchorus.wire.protocol.messages import (
    FaultCode,
    Request,
    Scan,
    ScanReply,
    SectionStatus,
    Status,
    StatusReply,
    encode,
)
from tests.support.clusters import eventually
from tests.support.fake_nodes import fake_client, rejecting
from tests.support.internals import is_up, leftovers


async def test_listing_merges_all_shards_in_byte_order() -> None:
    async with fake_client(shards={"id": 3, "live": 2, "old": 1}) as (cluster, nodes):
        ids = ["b", "a", "ü", "agent/1", "Z", "世", "aa", "~"]
        for number, agent_id in enumerate(ids):
            nodes.put(agent_id, **dict.fromkeys(("profile", "session", "history")[: 1 + number % 3], 1))
        nodes.put("only in history", history=1)
        expected = sorted([*ids, "only in history"], key=str.encode)
        assert [agent_id async for agent_id in cluster.agents()] == expected
        assert [agent_id async for agent_id in cluster.agents("id")] == sorted(ids, key=str.encode)


async def test_listing_of_several_pages_is_complete() -> None:
    async with fake_client(shards={"id": 1, "live": 1, "old": 1}) as (cluster, nodes):
        ids = [f"agent-{number:05}" for number in range(2_500)]
        for agent_id in ids:
            nodes.put(agent_id, history=1)
        assert [agent_id async for agent_id in cluster.agents()] == ids
        assert len(nodes["old"].asked(Scan)) == 3


async def test_listing_of_an_unknown_store_names_the_stores() -> None:
    async with fake_client() as (cluster, _):
        with pytest.raises(InvalidRequestError, match="id, live, old"):
            await anext(cluster.agents("nowhere"))


async def test_a_listing_left_early_leaves_nothing_behind() -> None:
    async with fake_client() as (cluster, nodes):
        for number in range(10):
            nodes.put(f"agent-{number}", profile=1)
        listing = cluster.agents()
        assert await anext(listing) == "agent-0"
        await listing.aclose()
        assert not leftovers(cluster)


@pytest.mark.parametrize("status", [SectionStatus.CORRUPT, SectionStatus.MOVED, 99])
async def test_a_shard_that_cannot_be_listed_is_named(status: int) -> None:
    async with fake_client() as (cluster, nodes):
        old = nodes["old"]

        def answer(request: Request) -> list[bytes]:
            if isinstance(request, Scan):
                return [encode(ScanReply(request.request, status, [], True))]
            return old.serve(request)

        old.answer = answer
        with pytest.raises(ClusterUnavailable, match=r"shard \d of store 'old' at node 'old-1'"):
            await anext(cluster.agents())


async def test_page_listed_again_ends_the_listing() -> None:
    async with fake_client(shards={"id": 1, "live": 1, "old": 1}) as (cluster, nodes):
        old = nodes["old"]

        def answer(request: Request) -> list[bytes]:
            if isinstance(request, Scan):
                return [encode(ScanReply(request.request, SectionStatus.OK, [b"b", b"c"], False))]
            return old.serve(request)

        old.answer = answer
        with pytest.raises(ClusterUnavailable, match="store 'old' at node 'old-1'"):
            assert not [agent_id async for agent_id in cluster.agents()]


async def test_status_has_each_nodes_answer_or_its_error() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["live"].stop()
        await eventually(lambda: not is_up(cluster, "live-1"))
        nodes["old"].answer = rejecting(FaultCode.OVERLOADED, Status)
        status = await cluster.status(deadline_s=0.6)
        assert list(status) == ["id-1", "live-1", "old-1"]
        assert isinstance(status["id-1"], StatusReply)
        assert status["id-1"].node == "id-1"
        assert isinstance(status["live-1"], ClusterUnavailable)
        assert "not connected" in str(status["live-1"])
        assert isinstance(status["old-1"], PeerFault)
        assert status["old-1"].code == "OVERLOADED"
        nodes["id"].hold.add(Status)
        assert "did not answer in time" in str((await cluster.status(deadline_s=0.1))["id-1"])
        assert not leftovers(cluster)

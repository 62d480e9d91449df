"""`error.retry()` while a node is marked down, and when its cluster is closed."""

import asyncio

import pytest

from dawnchorus import Cluster, ClusterUnavailable, DeadlineExceeded, SaveInterrupted, SaveRejected
from dawnchorus.wire.cluster.topology import BreakerSpec
from dawnchorus.wire.protocol.messages import Commit
from tests.support.clusters import eventually
from tests.support.fake_nodes import FakeNode, fake_client
from tests.support.internals import is_marked_down, leftovers
from tests.support.timing import loop_time

LONG_S = 20.0
LASTS = BreakerSpec(requests_min=1_000_000, consecutive_timeouts=1, retry_after_s=3_600.0)
"""A breaker that opens at once, and stays open for longer than any test."""


async def open_breaker(cluster: Cluster, node: FakeNode) -> DeadlineExceeded:
    """Let a client mark a node down; return the error of the save whose outcome is unknown."""
    node.hold.add(Commit)
    with pytest.raises(DeadlineExceeded) as caught:
        await cluster.save("a", {"session": 1}, deadline_s=0.3)
    await eventually(lambda: is_marked_down(cluster, node.name))
    return caught.value


async def test_retry_of_unsent_save_stays_rejected() -> None:
    async with fake_client(breaker=LASTS) as (cluster, nodes):
        await open_breaker(cluster, nodes["live"])
        asked = len(nodes["live"].asked(Commit))
        with pytest.raises(SaveRejected, match="breaker is open") as caught:
            await cluster.save("b", {"session": 2}, deadline_s=0.3)
        error = caught.value
        for _ in range(2):
            began = loop_time()
            with pytest.raises(SaveRejected, match="nothing was sent") as again:
                await error.retry()
            assert loop_time() - began > 0.25, "it waits for the node within its deadline"
            assert again.value.write_id == error.write_id
            error = again.value
        assert len(nodes["live"].asked(Commit)) == asked
        assert not leftovers(cluster)


async def test_unsent_retry_of_unknown_save_stays_unknown() -> None:
    async with fake_client(breaker=LASTS) as (cluster, nodes):
        unknown = await open_breaker(cluster, nodes["live"])
        with pytest.raises(DeadlineExceeded):
            await unknown.retry()


async def test_waiting_retry_ends_when_cluster_closes() -> None:
    async with fake_client(breaker=LASTS) as (cluster, nodes):
        unknown = await open_breaker(cluster, nodes["live"])
        with pytest.raises(SaveRejected) as rejected:
            await cluster.save("b", {"session": 2}, deadline_s=LONG_S)
        never_sent = asyncio.ensure_future(rejected.value.retry())
        of_unknown = asyncio.ensure_future(
            cluster.save("a", {"session": 1}, write_id=unknown.write_id, deadline_s=LONG_S)
        )
        await asyncio.sleep(0.01)
        cluster.close()
        with pytest.raises(ClusterUnavailable, match="nothing was sent"):
            await never_sent
        with pytest.raises(SaveInterrupted):
            await of_unknown
        with pytest.raises(ClusterUnavailable):
            await unknown.retry()

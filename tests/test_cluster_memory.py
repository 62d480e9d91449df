"""Storms leave nothing behind: a node's memory stays as it was, a client's tables are empty. `perf` does it at size."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

from dawnchorus import Cluster, WakeIncomplete, connect
from tests.support.clusters import RunningCluster, anonymous_bytes, eventually
from tests.support.internals import leftovers

IDS = [f"memory-{number}" for number in range(2_000)]
LONG_S = 20.0

TRIES = 3
"""A stall of the machine lets replies queue up, and a heap keeps the room for them: that makes a node grow once. A leak
makes it grow in every try."""


def sizes(nodes: RunningCluster) -> dict[str, int]:
    """Return the private memory of each node."""
    return {node: anonymous_bytes(pid) for node, pid in nodes.launcher.pids().items()}


async def assert_steady(nodes: RunningCluster, work: Callable[[], Awaitable[object]]) -> None:
    """Do some work ten times, and twenty more: by these, no node may grow by more than a tenth."""
    times = 20
    for _ in range(times // 2):
        await work()
    first = before = sizes(nodes)
    grown: dict[str, int] = {}
    for _ in range(TRIES):
        for _ in range(times):
            await work()
        now = sizes(nodes)
        grown = {node: now[node] - before[node] for node in now if now[node] - before[node] > 0.1 * first[node]}
        if not grown:
            break
        before = now
        times *= 2  # a leaking table grows when it has doubled
    assert grown == {}


async def test_storms_do_not_make_a_node_grow(running_cluster: RunningCluster, cluster: Cluster) -> None:
    values = {"profile": bytes(512), "session": bytes(512), "history": bytes(512)}
    await cluster.save_many(dict.fromkeys(IDS, values), deadline_s=LONG_S)

    async def storm() -> None:
        await cluster.wake_many(IDS, deadline_s=LONG_S)
        await asyncio.gather(*(cluster.wake(agent_id, deadline_s=LONG_S) for agent_id in IDS[:500]))

    await assert_steady(running_cluster, storm)
    assert not leftovers(cluster)


async def test_short_lived_clients_do_not_make_nodes_grow(running_cluster: RunningCluster) -> None:
    async def come_and_go() -> None:
        async with connect(running_cluster.path) as cluster:
            await cluster.wake_many(IDS[:100], deadline_s=LONG_S)

    await assert_steady(running_cluster, come_and_go)


async def test_wakes_beyond_deadline_leave_nothing_behind(cluster: Cluster) -> None:
    await cluster.save_many({agent_id: {"profile": 1} for agent_id in IDS}, deadline_s=LONG_S)
    for _ in range(20):
        await cluster.wake_many(IDS, deadline_s=0.000_1)
        results = await asyncio.gather(
            *(cluster.wake(agent_id, deadline_s=0.000_1) for agent_id in IDS[:100]), return_exceptions=True
        )
        assert all(isinstance(result, WakeIncomplete) or not isinstance(result, Exception) for result in results)
        assert leftovers(cluster).keys() <= {"replies"}, "what has come already may wait for its turn"
        await eventually(lambda: not leftovers(cluster))


async def test_calls_that_are_cancelled_leave_nothing_behind(cluster: Cluster) -> None:
    for turn in range(20):
        calls: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(cluster.wake_many(IDS, deadline_s=LONG_S)),
            asyncio.ensure_future(cluster.save_many({agent_id: {"session": turn} for agent_id in IDS[:100]})),
            asyncio.ensure_future(cluster.status()),
            asyncio.ensure_future(anext(cluster.agents())),
        ]
        await asyncio.sleep(turn * 0.000_5)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        del calls
        gc.collect()  # async generators that were left are closed
        await eventually(lambda: not leftovers(cluster))
    assert all(state.complete for state in await cluster.wake_many(IDS, deadline_s=LONG_S))

"""A host whose loop stalls: answers that arrived in time are used, however late the loop looks."""

import asyncio
import time

from dawnchorus import AgentState, Cluster, Outcome
from dawnchorus.wire.cluster.topology import AdmissionSpec
from dawnchorus.wire.protocol.messages import Commit, Fetch, Status, StatusReply
from tests.support.clusters import eventually
from tests.support.fake_nodes import FakeNode, FakeNodes, fake_client
from tests.support.internals import leftovers
from tests.support.virtual_time import VirtualLoop

DEADLINE_S = 1.0


def stall(*nodes: FakeNode, seconds: float = 1.1 * DEADLINE_S) -> None:
    """Stall the loop while these nodes send all their answers, and until deadlines have passed."""
    loop = asyncio.get_running_loop()
    for node in nodes:
        node.release_while_stalled()
    if isinstance(loop, VirtualLoop):
        loop.pass_time(seconds)
        return
    time.sleep(seconds)


async def wakes_under_way(cluster: Cluster, nodes: FakeNodes, count: int) -> list[asyncio.Future[AgentState]]:
    """Return wakes of one agent each, each with requests of its own, to which the nodes hold all their answers."""
    for number in range(count):
        nodes.put(f"agent-{number}", profile=number, session=number, history=number)
    for _ in range(20):
        for node in nodes.values():
            node.hold.add(Fetch)
            node.held.clear()
        waking: list[asyncio.Future[AgentState]] = []
        for number in range(count):
            waking.append(cluster.wake(f"agent-{number}", deadline_s=DEADLINE_S))
            await asyncio.sleep(0)
        while not any(wake.done() for wake in waking):
            if all(len(node.held) == count for node in nodes.values()):
                return waking
            await asyncio.sleep(0.01)
        await asyncio.gather(*waking, return_exceptions=True)  # too slow a machine: once more
    raise AssertionError("no wake is under way as long as it takes to begin them")


async def test_stalled_wakes_keep_what_arrived_in_time() -> None:
    async with fake_client(admission=AdmissionSpec(in_flight_max=1_000)) as (cluster, nodes):
        waking = await wakes_under_way(cluster, nodes, 250)
        stall(*nodes.values())
        assert all(state.complete for state in await asyncio.gather(*waking))
        assert not leftovers(cluster)


async def test_stalled_call_keeps_answer_that_arrived_in_time() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=1, history=1)
        live = nodes["live"]
        live.hold.update({Fetch, Commit, Status})

        async def stream() -> list[AgentState]:
            return [state async for state in cluster.wake_stream(["a"], deadline_s=DEADLINE_S)]

        waking = asyncio.ensure_future(cluster.wake_many(["a"], deadline_s=DEADLINE_S))
        streaming = asyncio.ensure_future(stream())
        saving = asyncio.ensure_future(cluster.save("b", {"session": 2}, deadline_s=DEADLINE_S))
        asking = asyncio.ensure_future(cluster.status(DEADLINE_S))
        await eventually(lambda: len(live.held) == 4)
        stall(live)
        (woken,), (streamed,), saved, status = await waking, await streaming, await saving, await asking
        assert woken.complete and streamed.complete
        assert saved.versions["session"] > 0
        assert isinstance(status["live-1"], StatusReply)
        assert not leftovers(cluster)


async def test_deadline_without_any_answer_ends_wake() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=1, history=1)
        nodes["live"].hold.add(Fetch)
        waking = cluster.wake_many(["a"], deadline_s=DEADLINE_S)
        asked = asyncio.ensure_future(waking)
        await eventually(lambda: bool(nodes["live"].held))
        stall()
        (state,) = await asked
        assert state.outcome("session") is Outcome.TIMEOUT and state["profile"] == 1
        assert not leftovers(cluster)

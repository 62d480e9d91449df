"""The router's shell on real sockets and uvloop: it does what the dispatcher decides, and returns the answers."""

import asyncio
import time

import pytest

from dawnchorus import Outcome
from dawnchorus.wire.protocol.messages import Fault, FaultCode, Fetch, Request, encode
from tests.support.clusters import eventually
from tests.support.fake_nodes import FakeNodes, fake_client
from tests.support.internals import is_up, leftovers, sendings

pytestmark = pytest.mark.real

LONG_S = 20.0


async def test_wakes_and_saves_pass_through_sockets() -> None:
    async with fake_client() as (cluster, nodes):
        saved = await cluster.save("a", {"profile": 1, "session": 2, "history": 3}, deadline_s=LONG_S)
        state = await cluster.wake("a", deadline_s=LONG_S)
        assert state.as_dict() == {"profile": 1, "session": 2, "history": 3}
        assert state.version("profile") == saved.versions["profile"]
        states = await cluster.wake_many([f"agent-{number}" for number in range(2_000)], deadline_s=LONG_S)
        assert all(state.complete for state in states)
        assert not leftovers(cluster)
        assert sendings(cluster).all == sendings(cluster).needed
        await nodes.read_everything(cluster)


async def test_node_that_comes_back_gets_what_waits() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=2, history=3)
        nodes["live"].hold.add(Fetch)
        waking = cluster.wake("a", deadline_s=LONG_S)
        await eventually(lambda: bool(nodes["live"].held))
        nodes["live"].stop()
        await eventually(lambda: not is_up(cluster, "live-1"))
        nodes["live"].hold.clear()
        nodes["live"].start()
        assert (await waking).complete
        assert not leftovers(cluster)


async def test_routers_timer_sends_rest_to_paused_node() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=2, history=3)
        live = nodes["live"]

        def reject_once(request: Request) -> list[bytes]:
            assert isinstance(request, Fetch)
            live.answer = live.serve
            return [encode(Fault(request.request, FaultCode.OVERLOADED, "busy", 50_000))]

        live.answer = reject_once
        assert (await cluster.wake("a", deadline_s=LONG_S)).complete
        assert not leftovers(cluster)


def stand_still(nodes: FakeNodes, seconds: float) -> None:
    """Let nothing run in this process while the nodes give their answers."""
    for node in nodes.values():
        node.release_while_stalled()
    time.sleep(seconds)


async def test_answers_that_came_in_a_stall_are_used() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=2, history=3)
        for node in nodes.values():
            node.hold.add(Fetch)
        waking = asyncio.ensure_future(cluster.wake_many(["a"], deadline_s=1.0))
        await eventually(lambda: all(node.held for node in nodes.values()))
        stand_still(nodes, 1.1)
        (state,) = await waking
        assert state.complete and state.outcome("session") is Outcome.OK

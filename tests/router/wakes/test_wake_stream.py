"""A stream of wakes whose caller saves while states wait: none is older than acknowledged."""

import asyncio

from dawnchorus import Outcome
from dawnchorus.wire.protocol.messages import Fetch
from tests.support.clusters import eventually
from tests.support.fake_nodes import fake_client
from tests.support.internals import leftovers

LONG_S = 20.0
AGENTS = [f"agent-{number}" for number in range(50)]


async def test_waiting_state_is_never_older_than_acknowledged_save() -> None:
    async with fake_client() as (cluster, nodes):
        for agent_id in AGENTS:
            nodes.put(agent_id, profile=0, session=0)
        acknowledged = dict.fromkeys(AGENTS, 0)
        seen: set[str] = set()
        async for state in cluster.wake_stream(AGENTS, deadline_s=LONG_S):
            assert state["session"] == acknowledged[state.agent_id]
            assert state.complete and state["profile"] == 0
            seen.add(state.agent_id)
            count = len(seen)
            if count in (1, 2, 10):
                await cluster.save_many({agent_id: {"session": count} for agent_id in AGENTS}, deadline_s=LONG_S)
                acknowledged = dict.fromkeys(AGENTS, count)
        assert seen == set(AGENTS)
        assert len(nodes["live"].asked(Fetch)) < 10, "those that wait are read again together"
        assert not leftovers(cluster)


async def test_waiting_state_of_deleted_agent_shows_deletion() -> None:
    async with fake_client() as (cluster, nodes):
        for agent_id in AGENTS[:3]:
            nodes.put(agent_id, profile=0, session=0)
        states = cluster.wake_stream(AGENTS[:3], deadline_s=LONG_S)
        first = await anext(states)
        for agent_id in AGENTS[:3]:
            await cluster.delete(agent_id, ["session"], deadline_s=LONG_S)
        assert first["session"] == 0
        assert [state.outcome("session") async for state in states] == [Outcome.ABSENT] * 2
        assert not leftovers(cluster)


async def test_state_older_than_acknowledged_shows_timeout_after_deadline() -> None:
    async with fake_client() as (cluster, nodes):
        for agent_id in AGENTS:
            nodes.put(agent_id, profile=0, session=0)
        states = cluster.wake_stream(AGENTS, deadline_s=1.0)
        first = await anext(states)
        assert first.complete, "the machine stood still for a second" if first.degraded else ""
        await asyncio.sleep(1.1)
        saved = [agent_id for agent_id in AGENTS[::2] if agent_id != first.agent_id]
        await cluster.save_many({agent_id: {"session": 1} for agent_id in saved}, deadline_s=LONG_S)
        others = [state async for state in states]
        assert {state.agent_id for state in others} == {*AGENTS} - {first.agent_id}
        for state in others:
            assert state["profile"] == 0
            if state.agent_id in saved:
                assert state.outcome("session") is Outcome.TIMEOUT
            else:
                assert state["session"] == 0
        assert not leftovers(cluster)


async def test_stream_left_early_gives_up_its_rereads() -> None:
    async with fake_client() as (cluster, nodes):
        for agent_id in AGENTS:
            nodes.put(agent_id, profile=0, session=0)
        states = cluster.wake_stream(AGENTS, deadline_s=LONG_S)
        await anext(states)
        await cluster.save_many({agent_id: {"session": 1} for agent_id in AGENTS}, deadline_s=LONG_S)
        nodes["live"].hold.add(Fetch)
        waiting = asyncio.ensure_future(anext(states))
        await eventually(lambda: len(nodes["live"].held) == 1)
        waiting.cancel()
        await asyncio.wait([waiting])
        await states.aclose()
        assert not leftovers(cluster)

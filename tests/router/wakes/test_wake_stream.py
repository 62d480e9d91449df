"""A stream of wakes whose caller saves while states wait for it: none is older than what was acknowledged."""

import asyncio

from dawnchorus import Outcome
from dawnchorus.wire.protocol.messages import Fetch
from tests.support.clusters import eventually
from tests.support.fake_nodes import fake_client
from tests.support.internals import leftovers

LONG_S = 20.0
AGENTS = [f"agent-{number}" for number in range(50)]


async def test_no_state_that_waited_while_its_agent_was_saved_is_older_than_that() -> None:
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


async def test_a_state_whose_agent_was_deleted_while_it_waited_shows_so() -> None:
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


async def test_a_state_taken_after_the_deadline_shows_timeout_for_what_is_older_than_acknowledged() -> None:
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


async def test_a_stream_that_its_caller_leaves_gives_up_what_it_reads_again_too() -> None:
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

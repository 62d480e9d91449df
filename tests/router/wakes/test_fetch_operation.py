"""One fetch from its requests to its states: broken connections, and no state older than acknowledged."""

import asyncio

import pytest

from dawnchorus import AgentNotFound, Outcome, WakeIncomplete
from dawnchorus.wire.protocol.messages import Fetch, Request
from tests.support.clusters import eventually
from tests.support.fake_nodes import FakeNode, FakeNodes, fake_client, images_frame, wake_lacking
from tests.support.internals import is_up, leftovers, stray_replies

LONG_S = 20.0


async def answered_by(nodes: FakeNodes, *stores: str, fetches: int = 1) -> None:
    """Wait until these nodes have answered so many fetches, and the client has received the answers."""
    await eventually(lambda: all(len(nodes[store].asked(Fetch)) >= fetches for store in stores))
    for _ in range(20):  # the client receives frames within a few turns of the loop
        await asyncio.sleep(0.001)


# --- never older than acknowledged ---


async def test_read_older_than_acknowledged_save_is_repeated() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session="old")
        nodes["live"].hold.add(Fetch)
        waking = asyncio.ensure_future(cluster.wake_many(["a"], deadline_s=LONG_S))
        await eventually(lambda: len(nodes["live"].held) == 1)  # its answer is ready, with the old session in it
        saved = await cluster.save("a", {"session": "new"})
        nodes["live"].release()
        (state,) = await waking
        assert state["session"] == "new"
        assert state.version("session") == saved.versions["session"]
        assert state["profile"] == 1
        assert len(nodes["live"].asked(Fetch)) == 2
        assert not leftovers(cluster)


async def test_read_as_new_as_save_is_not_repeated() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        nodes["old"].hold.add(Fetch)
        saving = asyncio.ensure_future(cluster.save("a", {"session": "new"}))
        for _ in range(3):
            await asyncio.sleep(0)  # the turn of its start has ended: it is sent before the fetch
        waking = asyncio.ensure_future(cluster.wake_many(["a"], deadline_s=LONG_S))
        await saving
        await eventually(lambda: len(nodes["old"].held) == 1)
        await cluster.save("b", {"session": "another agent's"})
        nodes["old"].release()
        (state,) = await waking
        assert state["profile"] == 1
        assert len(nodes["old"].asked(Fetch)) == 1


async def test_agent_deleted_meanwhile_is_read_again_once() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session="old", history="old")
        nodes["live"].hold.add(Fetch)
        waking = cluster.wake("a", deadline_s=LONG_S)
        await eventually(lambda: len(nodes["live"].held) == 1)
        await cluster.delete("a")
        nodes["live"].release()
        with pytest.raises(AgentNotFound):
            await waking
        assert len(nodes["live"].asked(Fetch)) == 2


async def test_save_acknowledged_during_second_read_is_not_missed() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=0)
        live = nodes["live"]
        live.hold.add(Fetch)
        waking = asyncio.ensure_future(cluster.wake_many(["a"], deadline_s=LONG_S))
        for turn in (1, 2, 3):
            await eventually(lambda: len(live.held) == 1)
            await cluster.save("a", {"session": turn})
            live.release(1)
        await eventually(lambda: len(live.held) == 1)
        live.release()
        (state,) = await waking
        assert state["session"] == 3
        assert not leftovers(cluster)


async def test_read_older_than_save_is_timeout_at_deadline() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session="old")
        nodes["old"].hold.add(Fetch)
        short = cluster.wake("a", deadline_s=1.0)
        long = cluster.wake("a", deadline_s=1.2)
        many = asyncio.ensure_future(cluster.wake_many(["a"], deadline_s=1.2))
        await answered_by(nodes, "live", "id", fetches=2)
        await cluster.save("a", {"session": "new"})
        for state in (await short, await long, *await many):
            assert state.outcome("history") is Outcome.TIMEOUT
            assert state["profile"] == 1
            assert state.outcome("session") is Outcome.TIMEOUT, (
                "the old session was shown after the new was acknowledged"
            )
        assert not leftovers(cluster)


async def test_required_kind_saved_meanwhile_is_never_shown_stale() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile="old")
        nodes["old"].hold.add(Fetch)
        waking = cluster.wake("a", deadline_s=1.0)
        await answered_by(nodes, "id", "live")
        await cluster.save("a", {"profile": "new"})
        with pytest.raises(WakeIncomplete) as raised:
            await waking
        assert raised.value.state.outcome("profile") is Outcome.TIMEOUT


async def test_wake_many_shows_no_state_older_than_acknowledged() -> None:
    async with fake_client(shards={"id": 8, "live": 8, "old": 8}) as (cluster, nodes):
        ids = [f"agent-{number}" for number in range(40)]
        for agent_id in ids:
            nodes.put(agent_id, profile=agent_id, session="old", history="old")
        hold_answers_about(nodes["old"], b"agent-39")
        waking = asyncio.ensure_future(cluster.wake_many(ids, deadline_s=LONG_S))
        await answered_by(nodes, "id", "live", "old")
        saved = {agent_id: {"session": "new", "history": "new"} for agent_id in ids[::2]}
        await cluster.save_many(saved)
        await cluster.delete("agent-1", ["session"])
        nodes["old"].release()
        states = await waking
        assert [state.agent_id for state in states] == ids
        for state in states:
            expected = "new" if state.agent_id in saved else "old"
            assert state["history"] == expected
            assert state.get("session", "gone") == ("gone" if state.agent_id == "agent-1" else expected)
            assert state["profile"] == state.agent_id
        assert not leftovers(cluster)


async def test_wake_many_at_deadline_shows_no_older_state() -> None:
    async with fake_client(shards={"id": 8, "live": 8, "old": 8}) as (cluster, nodes):
        ids = [f"agent-{number}" for number in range(40)]
        for agent_id in ids:
            nodes.put(agent_id, profile=agent_id, session="old", history="old")
        hold_answers_about(nodes["old"], b"agent-39")
        waking = asyncio.ensure_future(cluster.wake_many(ids, deadline_s=1.0))
        await answered_by(nodes, "id", "live", "old")
        await cluster.save_many({agent_id: {"session": "new"} for agent_id in ids[::2]})
        for state in await waking:
            if state.agent_id in ids[::2]:
                assert state.outcome("session") is Outcome.TIMEOUT
            else:
                assert state["session"] == "old"
            assert state["profile"] == state.agent_id
        assert not leftovers(cluster)


def hold_answers_about(node: FakeNode, agent: bytes) -> None:
    """Answer each section in a frame of its own, and hold those about one agent, until `release`."""

    def answer(request: Request) -> list[bytes]:
        if not isinstance(request, Fetch) or all(agent not in section.agents for section in request.sections):
            return node.serve(request)
        frames: list[bytes] = []
        late: list[bytes] = []
        for index, section in enumerate(request.sections):
            images = [node.images.get((section.store, one)) for one in section.agents]
            frame = images_frame(request.request, [(index, 0, node.version, images)], last=False)
            (late if agent in section.agents else frames).append(frame)
        node.held.append((node.peers[-1], [*late, images_frame(request.request, [])]))
        return frames

    node.answer = answer


async def test_cancelled_wake_gives_up_its_second_read() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=0)
        live = nodes["live"]
        live.hold.add(Fetch)
        waking = asyncio.ensure_future(cluster.wake_many(["a"], deadline_s=LONG_S))
        await eventually(lambda: len(live.held) == 1)
        await cluster.save("a", {"session": 1})
        live.release(1)
        await eventually(lambda: len(live.held) == 1)
        waking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waking
        assert not leftovers(cluster)


async def test_expired_wake_gives_up_its_later_reads() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=0)
        live = nodes["live"]
        live.hold.add(Fetch)
        waking = asyncio.ensure_future(cluster.wake_many(["a"], deadline_s=1.0))
        for turn in (1, 2):
            await eventually(lambda: len(live.held) == 1)
            await cluster.save("a", {"session": turn})
            live.release(1)
        (state,) = await waking
        assert state.outcome("session") is Outcome.TIMEOUT
        assert not leftovers(cluster)


# --- breaks and cuts ---


async def test_a_fetch_goes_again_after_the_connection_broke() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=2, history=3)
        nodes["live"].hold.add(Fetch)
        waking = cluster.wake("a", deadline_s=LONG_S)
        await eventually(lambda: len(nodes["live"].held) == 1)
        nodes["live"].stop()
        nodes["live"].hold.clear()
        nodes["live"].start()
        state = await waking
        assert state.complete
        assert (state["profile"], state["session"], state["history"]) == (1, 2, 3)
        numbers = [fetch.request for fetch in nodes["live"].asked(Fetch)]
        assert len(set(numbers)) == len(numbers) == 2


async def test_broken_connection_repeats_only_incomplete_parts() -> None:
    async with fake_client(shards={"id": 4, "live": 4, "old": 4}) as (cluster, nodes):
        ids = [f"agent-{number}" for number in range(40)]
        for agent_id in ids:
            nodes.put(agent_id, profile=agent_id, session=agent_id)
        live = nodes["live"]
        live.answer = lambda request: (
            [half_answer(live, request), b"\xc1"] if isinstance(request, Fetch) else live.serve(request)
        )
        waking = asyncio.ensure_future(cluster.wake_many(ids, deadline_s=LONG_S))
        await eventually(lambda: stray_replies(cluster) == 1)  # what came before it was received
        live.stop()
        live.answer = live.serve
        live.start()
        states = await waking
        assert [(state["profile"], state["session"]) for state in states] == [(one, one) for one in ids]
        first, second = live.asked(Fetch)
        whole = [section.shard for section in first.sections[:1]]
        assert [section.shard for section in second.sections] == [
            section.shard for section in first.sections if section.shard not in whole
        ]


def half_answer(node: FakeNode, fetch: Fetch) -> bytes:
    """Answer a fetch's first section completely and its second in part, and say that more is to come."""
    sections: list[tuple[int, int, int, list[bytes | None]]] = []
    for index, section in enumerate(fetch.sections[:2]):
        images = [node.images.get((section.store, agent)) for agent in section.agents]
        sections.append((index, 0, node.version, images if index == 0 else images[:1]))
    return images_frame(fetch.request, sections, last=False)


async def test_disconnected_nodes_kinds_show_as_unavailable() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        nodes["old"].stop()
        await eventually(lambda: not is_up(cluster, "old-1"))
        state = await wake_lacking(cluster, "a", "history")
        assert state.outcome("history") is Outcome.UNAVAILABLE
        (state,) = await cluster.wake_many(["a"], deadline_s=0.1)
        assert state.outcome("history") is Outcome.UNAVAILABLE
        assert not leftovers(cluster)


async def test_absent_agents_do_not_disturb_later_wakes() -> None:
    async with fake_client() as (cluster, nodes):
        for _ in range(3):
            states = await cluster.wake_many(["nobody", "no one"], deadline_s=LONG_S)
            assert all(state.complete for state in states)
        nodes.put("a", profile=1)
        assert (await cluster.wake("a", deadline_s=LONG_S))["profile"] == 1


async def test_a_stream_left_early_leaves_nothing_behind() -> None:
    async with fake_client(shards={"id": 4, "live": 4, "old": 4}) as (cluster, nodes):
        for number in range(40):
            nodes.put(f"agent-{number}", profile=number)
        hold_answers_about(nodes["old"], b"agent-39")
        stream = cluster.wake_stream([f"agent-{number}" for number in range(40)], deadline_s=LONG_S)
        async for state in stream:
            assert state.complete
            break
        await stream.aclose()
        await asyncio.sleep(0)
        assert not leftovers(cluster)


async def test_stream_ends_at_deadline_with_rest_degraded() -> None:
    async with fake_client(shards={"id": 4, "live": 4, "old": 4}) as (cluster, nodes):
        for number in range(40):
            nodes.put(f"agent-{number}", profile=number)
        hold_answers_about(nodes["old"], b"agent-39")
        ids = [f"agent-{number}" for number in range(40)]
        states = [state async for state in cluster.wake_stream(ids, deadline_s=0.7)]
        assert sorted(state.agent_id for state in states) == sorted(ids)
        degraded = {state.agent_id for state in states if not state.complete}
        assert "agent-39" in degraded
        assert len(degraded) < len(ids)
        assert [state.complete for state in states] == sorted((state.complete for state in states), reverse=True)

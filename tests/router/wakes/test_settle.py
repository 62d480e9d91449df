"""Settling and lazy stores: missing kinds are asked for again, and put into the state of their wake."""

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from dawnchorus import (
    AgentState,
    Cluster,
    ClusterUnavailable,
    FragmentAbsent,
    FragmentUnavailable,
    Outcome,
    UnknownKindError,
)
from dawnchorus.wire.cluster.topology import KindSpec, StoreSpec
from dawnchorus.wire.protocol.messages import FaultCode, Fetch, Put, Write
from tests.support.clusters import eventually
from tests.support.fake_nodes import FakeNodes, fake_client, rejecting, wake_lacking
from tests.support.internals import leftovers

KINDS = {
    "profile": KindSpec("id", required=True),
    "session": KindSpec("live", fallback={"fresh": True}),
    "history": KindSpec("old"),
}
LAZY: dict[str, Any] = {
    "stores": {"id": StoreSpec(shards=2), "live": StoreSpec(shards=2), "old": StoreSpec(shards=2, wake="lazy")}
}
TWO_IN_LIVE = {"profile": KindSpec("id", required=True), "session": KindSpec("live"), "context": KindSpec("live")}
SHORT_S, LONG_S = 0.1, 20.0


def put(nodes: FakeNodes, *agents: str) -> None:
    for agent in agents:
        nodes.put(agent, profile=f"p {agent}", session=f"s {agent}", history=f"h {agent}")


async def test_settle_completes_a_state_with_what_comes_later() -> None:
    async with fake_client(KINDS) as (cluster, nodes):
        put(nodes, "a")
        nodes["live"].hold.add(Fetch)
        state = await wake_lacking(cluster, "a", "session")
        assert state["session"] == {"fresh": True}
        assert state.outcome("session") is Outcome.TIMEOUT, "a fallback never looks like OK"
        settling = state.settle(LONG_S)
        assert not settling.done()
        nodes["live"].release()
        assert await settling is state
        assert state.complete and state["session"] == "s a" and state.version("session") > 0
        assert state["profile"] == "p a"
        assert not leftovers(cluster)


async def test_settle_ends_at_its_deadline_and_stays_honest() -> None:
    async with fake_client(KINDS) as (cluster, nodes):
        put(nodes, "a")
        nodes["live"].hold.add(Fetch)
        state = await wake_lacking(cluster, "a", "session")
        assert await state.settle(SHORT_S) is state
        assert state.degraded == ("session",) and state["session"] == {"fresh": True}
        nodes["live"].release()
        assert (await state.settle(LONG_S)).complete


async def test_settled_states_share_one_fetch_for_missing_kinds() -> None:
    agents = [f"agent-{number}" for number in range(50)]
    async with fake_client(KINDS, {"id": 1, "live": 1, "old": 1}) as (cluster, nodes):
        put(nodes, *agents)
        nodes["live"].hold.add(Fetch)
        states = await asyncio.gather(*[wake_lacking(cluster, agent, "session") for agent in agents])
        await nodes.read_everything(cluster)
        nodes["live"].release()
        before = {store: len(node.asked(Fetch)) for store, node in nodes.items()}
        settled = await asyncio.gather(*[state.settle(LONG_S) for state in states])
        assert [state["session"] for state in settled] == [f"s {agent}" for agent in agents]
        asked = {store: len(node.asked(Fetch)) - before[store] for store, node in nodes.items()}
        assert asked == {"id": 0, "live": 1, "old": 0}


async def test_required_kind_that_failed_can_be_settled() -> None:
    async with fake_client(KINDS) as (cluster, nodes):
        put(nodes, "a")
        nodes["id"].hold.add(Fetch)
        (state,) = await cluster.wake_many(["a"], deadline_s=SHORT_S)
        assert state.outcome("profile") is Outcome.TIMEOUT
        await state.settle(SHORT_S)  # raises nothing: look at the state
        assert state.outcome("profile") is Outcome.TIMEOUT
        nodes["id"].release()
        await state.settle(LONG_S)
        assert state["profile"] == "p a"


async def test_callback_is_called_though_nobody_awaits() -> None:
    called: list[AgentState] = []
    async with fake_client(KINDS) as (cluster, nodes):
        put(nodes, "a", "b")
        nodes["live"].hold.add(Fetch)
        state = await wake_lacking(cluster, "a", "session")
        state.settle(LONG_S, callback=called.append)
        nodes["live"].release()
        whole = await cluster.wake("b", deadline_s=LONG_S)
        assert called == [state] and state.complete
        whole.settle(callback=called.append)
        assert called == [state, whole], "nothing to wait for: the callback is called at once"


async def test_settle_says_that_the_cluster_was_closed() -> None:
    async with fake_client(KINDS) as (cluster, nodes):
        put(nodes, "a")
        nodes["live"].hold.add(Fetch)
        state = await wake_lacking(cluster, "a", "session")
        settling = state.settle(LONG_S)
        cluster.close()
        with pytest.raises(ClusterUnavailable):
            await settling


async def test_lazy_store_is_asked_only_for_named_kinds() -> None:
    async with fake_client(KINDS, **LAZY) as (cluster, nodes):
        put(nodes, "a")
        state = await cluster.wake("a", deadline_s=LONG_S)
        assert state.complete and not nodes["old"].asked(Fetch)
        with pytest.raises(FragmentUnavailable, match="not asked for"):
            state.outcome("history")
        assert await state.fetch("history", LONG_S) == "h a"
        assert state["history"] == "h a" and state.outcome("history") is Outcome.OK
        assert await state.fetch("history") == "h a"
        assert len(nodes["old"].asked(Fetch)) == 1
        named = await cluster.wake("a", kinds=["profile", "history"], deadline_s=LONG_S)
        assert named["history"] == "h a"


async def test_fetch_says_what_it_could_not_bring() -> None:
    async with fake_client(KINDS, **LAZY) as (cluster, nodes):
        nodes.put("a", profile="p", session="s")
        state = await cluster.wake("a", deadline_s=LONG_S)
        with pytest.raises(FragmentAbsent):
            await state.fetch("history", LONG_S)
        with pytest.raises(UnknownKindError):
            await state.fetch("herstory")
        other = await cluster.wake("a", deadline_s=LONG_S)
        nodes["old"].hold.add(Fetch)
        with pytest.raises(FragmentUnavailable):
            await other.fetch("history", SHORT_S)
        assert other.degraded == ("history",)
        nodes["old"].release()
        assert (await other.settle(LONG_S)).complete


async def test_kind_fetched_later_counts_in_expected_state() -> None:
    async with fake_client(KINDS, **LAZY) as (cluster, nodes):
        put(nodes, "a")
        state = await cluster.wake("a", deadline_s=LONG_S)
        await state.fetch("history", LONG_S)
        await cluster.save("a", {"history": "more"}, expect=state, deadline_s=LONG_S)
        assert "history=OK" in repr(state)


# --- versions that a save expects, and kinds of one store; test_fills has the rule ---


async def test_version_arriving_after_shown_fallback_blocks_expecting_save() -> None:
    async with fake_client(KINDS) as (cluster, nodes):
        put(nodes, "a")
        nodes["live"].answer = rejecting(FaultCode.INTERNAL, Fetch)
        state = await cluster.wake("a", deadline_s=LONG_S)
        derived = {**state["session"], "more": 1}
        nodes["live"].answer = nodes["live"].serve
        await state.settle(LONG_S)
        with pytest.raises(FragmentUnavailable, match="look at it again"):
            await cluster.save("a", {"session": derived}, expect=state, deadline_s=LONG_S)
        await cluster.save("a", {"history": "more"}, expect=state, deadline_s=LONG_S)
        assert state["session"] == "s a"
        await cluster.save("a", {"session": "derived from it"}, expect=state, deadline_s=LONG_S)


async def asked_again_twice(
    cluster: Cluster, nodes: FakeNodes, newer: object
) -> tuple[AgentState, list[asyncio.Future[AgentState]], int]:
    """Return a state without its session, two fills of it under way, and the version saved between them.

    The second fill will bring that version.
    """
    put(nodes, "a")
    live = nodes["live"]
    live.answer = rejecting(FaultCode.INTERNAL, Fetch)
    state = await cluster.wake("a", deadline_s=LONG_S)
    live.answer = live.serve
    live.hold.add(Fetch)
    fills = [state.settle(LONG_S)]
    await eventually(lambda: len(live.held) == 1)
    version = live.put("a", session=newer)
    fills.append(state.settle(LONG_S))
    await eventually(lambda: len(live.held) == 2)
    return state, fills, version


async def test_save_expects_shown_version_despite_second_fill() -> None:
    async with fake_client(KINDS) as (cluster, nodes):
        state, fills, version = await asked_again_twice(cluster, nodes, ["newer"])
        live = nodes["live"]
        live.release(1)
        await fills[0]
        shown = state["session"]
        live.release()
        await fills[1]
        assert state["session"] is shown == "s a"
        assert state.version("session") == state.vouched_version("session") < version


async def test_second_fill_replaces_unshown_values_with_newer() -> None:
    async with fake_client(KINDS) as (cluster, nodes):
        state, fills, _ = await asked_again_twice(cluster, nodes, "newer")
        nodes["live"].release()
        await asyncio.gather(*fills)
        assert state["session"] == "newer"


LOOKS: list[Callable[[AgentState], object]] = [
    list,
    len,
    lambda state: "context" in state,
    lambda state: state.items(),
]


@pytest.mark.parametrize("look", LOOKS)
async def test_absence_shown_by_iterating_is_vouched_for(look: Callable[[AgentState], object]) -> None:
    async with fake_client(TWO_IN_LIVE) as (cluster, nodes):
        nodes.put("a", profile=1)
        state = await cluster.wake("a", ["profile", "context"], deadline_s=LONG_S)
        look(state)
        nodes.put("a", session=2, context=2)
        assert await state.fetch("session", LONG_S) == 2
        assert state.vouched_version("context") == 0


async def test_fetch_rereads_unshown_kinds_of_same_store() -> None:
    async with fake_client(TWO_IN_LIVE) as (cluster, nodes):
        nodes.put("a", profile=1, session=1, context=1)
        state = await cluster.wake("a", ["profile", "session"], LONG_S)
        assert state["profile"] == 1
        save_as_another_client(nodes, session=2, context=2)
        assert await state.fetch("context", LONG_S) == 2
        assert state["session"] == 2
        assert state.skewed == ()
        assert {section.store for section in nodes.fetches()[-1].sections} == {"live"}


async def test_fetch_names_skewed_kinds_of_its_store() -> None:
    async with fake_client(TWO_IN_LIVE) as (cluster, nodes):
        nodes.put("a", profile=1, session=1, context=1)
        state = await cluster.wake("a", ["session"], LONG_S)
        unchanged = await cluster.wake("a", ["session"], LONG_S)
        assert state["session"] == unchanged["session"] == 1
        save_as_another_client(nodes, context=2)
        assert await unchanged.fetch("context", LONG_S) == 2
        assert unchanged.skewed == (), "the session is still what it was"
        save_as_another_client(nodes, session=3, context=3)
        assert await state.fetch("context", LONG_S) == 3
        assert state["session"] == 1, "what was looked at stays"
        assert state.skewed == ("session", "context")
        assert copy.copy(state).skewed == ("session", "context")


async def test_concurrently_fetched_kinds_match_or_are_named_skewed() -> None:
    async with fake_client(TWO_IN_LIVE) as (cluster, nodes):
        nodes.put("a", profile=1, session=1, context=1)
        live = nodes["live"]
        state = await cluster.wake("a", ["profile"], LONG_S)
        live.hold.add(Fetch)
        first = asyncio.ensure_future(state.fetch("session", LONG_S))
        await eventually(lambda: len(live.held) == 1)
        save_as_another_client(nodes, session=2, context=2)
        second = asyncio.ensure_future(state.fetch("context", LONG_S))
        await eventually(lambda: len(live.held) == 2)
        live.held.reverse()
        live.release()
        assert [await second, await first] == [2, 2], "the later one asked for both, and came first"
        assert state.skewed == ()


def save_as_another_client(nodes: FakeNodes, **values: object) -> None:
    """Save some kinds of agent a in one write."""
    puts = [Put(kind, 0, 1, msgspec.msgpack.encode(value)) for kind, value in values.items()]
    nodes["live"].write("live", Write(b"a", b"", 0, [*puts]))

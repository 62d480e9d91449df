"""Who shares a fetch, who waits how long, and what a wake raises: a client against nodes that answer as told."""

import asyncio
import time

import pytest

from dawnchorus import AgentNotFound, AgentState, ClusterUnavailable, Outcome, WakeIncomplete
from dawnchorus.wire.messages import FaultCode, Fetch
from dawnchorus.wire.topology import KindSpec
from tests.support.clusters import eventually
from tests.support.fake_nodes import fake_client, refusing, wake_lacking
from tests.support.internals import leftovers

LONG_S = 20.0


async def test_wakes_of_one_turn_travel_together() -> None:
    async with fake_client() as (cluster, nodes):
        ids = [f"agent-{number}" for number in range(100)]
        for agent_id in ids:
            nodes.put(agent_id, profile=agent_id)
        states = await asyncio.gather(*(cluster.wake(agent_id) for agent_id in ids))
        assert [state["profile"] for state in states] == ids
        assert len(nodes.fetches()) == 3, "one request a node"


async def test_tasks_that_each_wake_one_agent_travel_together() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)

        async def wake() -> object:
            return (await cluster.wake("a"))["profile"]

        assert await asyncio.gather(*(wake() for _ in range(50))) == [1] * 50
        assert len(nodes.fetches()) == 3
        assert nodes.agents_fetched("id") == [b"a"]


async def test_many_wakes_of_one_turn_begin_to_travel_before_it_is_over() -> None:
    async with fake_client() as (cluster, nodes):
        ids = [f"agent-{number}" for number in range(3_000)]
        for agent_id in ids:
            nodes.put(agent_id, profile=agent_id)
        waking: list[asyncio.Future[AgentState]] = []
        under_way: list[int] = []
        for agent_id in [*ids, *ids]:
            waking.append(cluster.wake(agent_id, deadline_s=LONG_S))
            under_way.append(leftovers(cluster).get("under way", 0))
        begun = sorted(set(under_way))
        assert begun[0] == 0 and 1 < len(begun) < 6 and begun[1] < 1_024, "in a few batches, the first one early"
        assert [state["profile"] for state in await asyncio.gather(*waking)] == ids * 2
        assert sorted(nodes.agents_fetched("id")) == sorted(agent_id.encode() for agent_id in ids), "each once"
        assert not leftovers(cluster)


async def test_wakes_of_different_kinds_do_not_share_a_fetch() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=2)
        whole, part = await asyncio.gather(cluster.wake("a"), cluster.wake("a", kinds=["session"]))
        assert whole["profile"] == 1
        assert part["session"] == 2
        assert len(nodes.agents_fetched("live")) == 2
        assert len(nodes.agents_fetched("id")) == 1


async def test_a_wake_joins_the_fetch_of_its_agent_that_is_under_way() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        nodes["old"].hold.add(Fetch)
        first = cluster.wake("a", deadline_s=LONG_S)
        await eventually(lambda: len(nodes["old"].held) == 1)
        second = cluster.wake("a", deadline_s=LONG_S)
        other = cluster.wake("b", deadline_s=LONG_S)
        await eventually(lambda: len(nodes["old"].held) == 2)
        nodes["old"].release()
        assert (await first)["profile"] == (await second)["profile"] == 1
        with pytest.raises(AgentNotFound):
            await other
        assert nodes.agents_fetched("id") == [b"a", b"b"]


async def test_a_wake_that_joined_a_fetch_ends_at_its_own_deadline() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        nodes["old"].hold.add(Fetch)
        first = cluster.wake("a", deadline_s=0.7)
        await asyncio.sleep(0)
        assert leftovers(cluster)["under way"] == 1
        began = time.monotonic()
        second = cluster.wake("a", deadline_s=0.8)
        assert (await first).outcome("history") is Outcome.TIMEOUT
        assert (await second).outcome("history") is Outcome.TIMEOUT
        assert time.monotonic() - began >= 0.8 - 0.002, "its own deadline, not that of the fetch that it joined"
        assert len(nodes.agents_fetched("old")) == 1, "it joined"
        await eventually(lambda: not leftovers(cluster))


async def test_a_wake_after_the_fetch_is_over_fetches_anew() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        assert (await cluster.wake("a"))["profile"] == 1
        nodes.put("a", profile=2)
        assert (await cluster.wake("a"))["profile"] == 2


async def test_a_wake_never_joins_a_fetch_that_began_before_its_agents_save_was_acknowledged() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session="old")
        nodes["old"].hold.add(Fetch)
        first = cluster.wake("a", deadline_s=LONG_S)
        await eventually(lambda: len(nodes["old"].held) == 1)
        await cluster.save("a", {"session": "new"})
        second = cluster.wake("a", deadline_s=LONG_S)
        await eventually(lambda: len(nodes["old"].held) == 2)
        nodes["old"].release()
        assert (await second)["session"] == "new"
        assert (await first)["session"] == "new", "its answer was older than the save, so it is read again"


async def test_each_wake_of_a_batch_ends_at_its_own_deadline() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        nodes.put("b", profile=1)
        nodes["old"].hold.add(Fetch)
        began = time.monotonic()
        ended: dict[str, float] = {}

        async def wake(name: str, agent_id: str, deadline_s: float) -> Outcome:
            state = await cluster.wake(agent_id, deadline_s=deadline_s)
            ended[name] = time.monotonic() - began
            return state.outcome("history")

        outcomes = asyncio.gather(
            wake("common", "a", 1.2),
            wake("common too", "b", 1.2),
            wake("short", "a", 0.6),
            wake("longer", "b", 1.8),
            wake("answered", "b", LONG_S),
        )
        await eventually(lambda: "longer" in ended)
        nodes["old"].release()
        assert list(await outcomes) == [Outcome.TIMEOUT] * 4 + [Outcome.ABSENT]
        assert list(ended) == ["short", "common", "common too", "longer", "answered"]
        assert ended["short"] >= 0.599
        assert ended["common"] >= 1.199
        assert ended["longer"] >= 1.799
        assert len(nodes.fetches()) == 3


async def test_cancelling_one_wake_leaves_the_others_of_its_agent_alone() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        nodes["old"].hold.add(Fetch)
        cancelled = [cluster.wake("a", deadline_s=LONG_S) for _ in range(3)]
        kept = [cluster.wake("a", deadline_s=LONG_S), cluster.wake("a", deadline_s=LONG_S / 2)]
        await eventually(lambda: len(nodes["old"].held) == 1)
        joined = cluster.wake("a", deadline_s=LONG_S)
        for future in cancelled:
            future.cancel()
        await asyncio.sleep(0)
        nodes["old"].release()
        assert [state["profile"] for state in await asyncio.gather(*kept, joined)] == [1, 1, 1]
        assert all(future.cancelled() for future in cancelled)


async def test_a_wake_whose_waiters_are_all_gone_leaves_nothing_behind() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["old"].hold.add(Fetch)
        cancelled = cluster.wake("a", deadline_s=0.2)
        await eventually(lambda: len(nodes["old"].held) == 1)
        cancelled.cancel()
        await eventually(lambda: not leftovers(cluster))


async def test_agent_not_found_where_no_required_kind_was_ever_written() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", session=1)  # of it there is something, but nothing that is required
        with pytest.raises(AgentNotFound) as raised:
            await cluster.wake("a")
        assert raised.value.agent_id == "a"
        (state,) = await cluster.wake_many(["a"])
        assert state["session"] == 1
        assert state.complete


@pytest.mark.parametrize("kinds", [["session"], ["history"], ["session", "history"]])
async def test_kinds_that_are_not_required_say_nothing_of_the_agent(kinds: list[str]) -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        state = await cluster.wake("a", kinds=kinds)
        assert [state.outcome(kind) for kind in kinds] == [Outcome.ABSENT] * len(kinds)
        assert state.complete


async def test_a_wake_of_the_required_kind_alone_can_find_no_agent() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", session=1)
        with pytest.raises(AgentNotFound):
            await cluster.wake("a", kinds=["profile"])


async def test_one_of_two_required_kinds_is_enough_of_an_agent() -> None:
    kinds = {"one": KindSpec("id", required=True), "two": KindSpec("live", required=True)}
    async with fake_client(kinds) as (cluster, nodes):
        nodes["live"].put("a", two=2)
        state = await cluster.wake("a")
        assert state["two"] == 2
        assert state.outcome("one") is Outcome.ABSENT
        with pytest.raises(AgentNotFound):
            await cluster.wake("b")


async def test_without_required_kinds_any_fragment_is_enough_of_an_agent() -> None:
    kinds = {"one": KindSpec("id"), "two": KindSpec("live")}
    async with fake_client(kinds) as (cluster, nodes):
        nodes["live"].put("a", two=2)
        assert (await cluster.wake("a"))["two"] == 2
        with pytest.raises(AgentNotFound):
            await cluster.wake("b")
        nodes["live"].hold.add(Fetch)
        state = await wake_lacking(cluster, "b", "two")  # it cannot be said that there is no such agent
        assert state.outcome("one") is Outcome.ABSENT


async def test_wake_incomplete_carries_what_there_is() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=2, history=3)
        nodes["id"].hold.add(Fetch)
        with pytest.raises(WakeIncomplete, match="profile TIMEOUT") as raised:
            await cluster.wake("a", deadline_s=0.6)
        state = raised.value.state
        assert (state["session"], state["history"]) == (2, 3)
        assert state.outcome("profile") is Outcome.TIMEOUT
        assert state.degraded == ("profile",)


async def test_a_fault_of_one_node_degrades_its_kinds_at_once() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=2, history=3)
        for code, outcome in ((FaultCode.OVERLOADED, Outcome.SHED), (FaultCode.INTERNAL, Outcome.FAULT)):
            nodes["old"].answer = refusing(code, Fetch)
            state = await cluster.wake("a", deadline_s=LONG_S)
            assert state.outcome("history") is outcome
            assert (state["profile"], state["session"]) == (1, 2)


async def test_closing_the_cluster_ends_every_wake() -> None:
    async with fake_client() as (cluster, nodes):
        for node in nodes.values():
            node.hold.add(Fetch)
        pending = [cluster.wake("a", deadline_s=LONG_S), cluster.wake("a", deadline_s=LONG_S / 2)]
        await eventually(lambda: len(nodes["old"].held) == 1)
        pending += [cluster.wake("a", deadline_s=LONG_S), cluster.wake("b", deadline_s=LONG_S)]
        cluster.close()
        results = await asyncio.gather(*pending, return_exceptions=True)
        assert [type(result) for result in results] == [ClusterUnavailable] * 4
        with pytest.raises(ClusterUnavailable):
            cluster.wake("a")

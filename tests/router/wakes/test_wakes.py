"""Wakes: shared fetches, deadlines and errors, with a client against nodes that answer as each test says."""

import asyncio
import enum
from collections import Counter
from typing import Any

import pytest

from dawnchorus import (
    AgentNotFound,
    AgentState,
    ClusterUnavailable,
    InvalidRequestError,
    Outcome,
    UnknownKindError,
    WakeIncomplete,
)
from dawnchorus.wire.cluster.topology import KindSpec
from dawnchorus.wire.protocol.messages import FaultCode, Fetch, Reply
from tests.support.clusters import eventually
from tests.support.fake_nodes import fake_client, rejecting, wake_lacking
from tests.support.internals import break_next_fetch, kept_choices, leftovers
from tests.support.timing import loop_time

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


async def test_many_wakes_begin_before_their_turn_ends() -> None:
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
        fetched = Counter(nodes.agents_fetched("id"))
        assert set(fetched) == {agent_id.encode() for agent_id in ids}
        assert set(fetched.values()) == {1, 2}, "asked for twice: once where its fetch was not sent, else once more"
        assert not leftovers(cluster)


async def test_wakes_of_different_kinds_share_no_fetch() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=2)
        whole, part = await asyncio.gather(cluster.wake("a"), cluster.wake("a", kinds=["session"]))
        assert whole["profile"] == 1
        assert part["session"] == 2
        assert len(nodes.agents_fetched("live")) == 2
        assert len(nodes.agents_fetched("id")) == 1


async def test_wake_joins_no_fetch_sent_before_it() -> None:
    """Assert that a wake joins no open fetch if another client's save was acknowledged meanwhile."""
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session="old")
        nodes["old"].hold.add(Fetch)
        first = cluster.wake("a", deadline_s=LONG_S)
        await eventually(lambda: len(nodes["old"].held) == 1 and len(nodes.agents_fetched("live")) == 1)
        version = nodes["live"].put("a", session="new")
        second = cluster.wake("a", deadline_s=LONG_S)
        await eventually(lambda: len(nodes["old"].held) == 2)
        nodes["old"].release()
        assert (await first)["session"] in ("old", "new")
        assert (await second)["session"] == "new"
        assert (await second).version("session") == version
        await eventually(lambda: not leftovers(cluster))


async def test_settle_joins_no_fetch_sent_before_it() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, history="old")
        nodes["old"].answer = rejecting(FaultCode.INTERNAL, Fetch)
        states = [await cluster.wake("a", deadline_s=LONG_S) for _ in range(2)]
        nodes["old"].answer = nodes["old"].serve
        nodes["old"].hold.add(Fetch)
        settling = [states[0].settle(LONG_S)]
        await eventually(lambda: len(nodes["old"].held) == 1)  # its answer is ready
        nodes["old"].put("a", history="new")
        settling.append(states[1].settle(LONG_S))
        await eventually(lambda: len(nodes["old"].held) == 2)
        nodes["old"].release()
        await asyncio.gather(*settling)
        assert states[1]["history"] == "new"


async def test_many_wakes_during_hanging_fetches_need_few_fetches() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=0)
        nodes["old"].hold.add(Fetch)
        waking = [cluster.wake("a", deadline_s=LONG_S)]
        for turn in range(1, 501):
            await asyncio.sleep(0)
            if turn == 400:
                nodes["id"].put("a", profile=turn)
            waking.append(cluster.wake("a", deadline_s=LONG_S))
            waking.append(cluster.wake("b", ["session"], deadline_s=LONG_S))
        await eventually(lambda: len(nodes["old"].held) >= 2)
        assert nodes.agents_fetched("old").count(b"a") < 20, "a few, not one for each turn"
        nodes["old"].release()
        states = await asyncio.gather(*waking)
        assert [state["profile"] for state in states[799:] if state.agent_id == "a"] == [400] * 101
        assert len({id(state) for state in states}) == len(states)
        await eventually(lambda: not leftovers(cluster))


async def test_gathered_wakes_start_in_time_despite_hanging_fetches() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        nodes["old"].hold.add(Fetch)
        waking = [cluster.wake("a", deadline_s=2.0)]
        for _ in range(4):
            await eventually(lambda: nodes.agents_fetched("old").count(b"a") == len(waking))
            waking.append(cluster.wake("a", deadline_s=2.0))
        for state in await asyncio.gather(*waking):
            assert state["profile"] == 1, "what came is shown, whatever hangs"
            assert state.outcome("history") is Outcome.TIMEOUT
        await eventually(lambda: not leftovers(cluster))


async def test_gathered_short_wakes_leave_long_ones_waiting() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        nodes["old"].hold.add(Fetch)
        hanging = [cluster.wake("a", deadline_s=LONG_S)]
        await eventually(lambda: nodes.agents_fetched("old").count(b"a") == 1)
        hanging.append(cluster.wake("a", deadline_s=LONG_S))
        await eventually(lambda: nodes.agents_fetched("old").count(b"a") == 2)
        long = cluster.wake("a", deadline_s=LONG_S * 100)
        cancelled = cluster.wake("a", deadline_s=0.5)
        cancelled.cancel()
        short = cluster.wake("a", deadline_s=8.0)
        await eventually(lambda: nodes.agents_fetched("old").count(b"a") == 3)
        assert nodes["old"].asked(Fetch)[2].budget_us <= 8_000_000
        nodes["old"].release()
        assert [state["profile"] for state in await asyncio.gather(short, long, *hanging)] == [1, 1, 1, 1]
        await eventually(lambda: not leftovers(cluster))


async def test_wakes_that_share_a_fetch_share_no_state() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile={"cart": []}, session=[])
        waking = [cluster.wake("a", deadline_s=LONG_S) for _ in range(3)]
        waking.append(cluster.wake("a", deadline_s=LONG_S / 2))
        states = [*await asyncio.gather(*waking), *await cluster.wake_many(["a", "b", "a", "b"], deadline_s=LONG_S)]
        assert nodes.agents_fetched("id") == [b"a", b"a", b"b"]
        assert len({id(state) for state in states}) == len(states)
        for number, state in enumerate(one for one in states if one.agent_id == "a"):
            assert state["profile"] == {"cart": []} and state["session"] == []
            state["profile"]["cart"].append(number)
            state["session"].append(number)


async def test_wakes_ended_by_deadline_share_no_fallback() -> None:
    kinds = {"profile": KindSpec("id", required=True), "session": KindSpec("live", fallback={"cart": []})}
    async with fake_client(kinds) as (cluster, nodes):
        nodes.put("a", profile=1)
        nodes["live"].answer = rejecting(FaultCode.INTERNAL, Fetch)
        for state in await asyncio.gather(*[cluster.wake("a", deadline_s=LONG_S) for _ in range(3)]):
            assert state["session"] == {"cart": []}
            state["session"]["cart"].append(1)


async def test_wake_after_ended_fetch_fetches_anew() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        assert (await cluster.wake("a"))["profile"] == 1
        nodes.put("a", profile=2)
        assert (await cluster.wake("a"))["profile"] == 2


async def test_wake_joins_no_fetch_older_than_acknowledged_save() -> None:
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


async def test_batched_wake_ends_at_its_own_deadline() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        nodes.put("b", profile=1)
        nodes["old"].hold.add(Fetch)
        began = loop_time()
        ended: dict[str, float] = {}

        async def wake(name: str, agent_id: str, deadline_s: float) -> Outcome:
            state = await cluster.wake(agent_id, deadline_s=deadline_s)
            ended[name] = loop_time() - began
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


async def test_cancelled_wake_leaves_others_of_its_agent() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        nodes["old"].hold.add(Fetch)
        cancelled = [cluster.wake("a", deadline_s=LONG_S) for _ in range(3)]
        kept = [cluster.wake("a", deadline_s=LONG_S), cluster.wake("a", deadline_s=LONG_S / 2)]
        for future in cancelled:
            future.cancel()
        await asyncio.sleep(0)
        nodes["old"].release()
        assert [state["profile"] for state in await asyncio.gather(*kept)] == [1, 1]
        assert all(future.cancelled() for future in cancelled)


async def test_abandoned_wake_leaves_nothing_behind() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["old"].hold.add(Fetch)
        cancelled = cluster.wake("a", deadline_s=0.2)
        await eventually(lambda: len(nodes["old"].held) == 1)
        cancelled.cancel()
        await eventually(lambda: not leftovers(cluster))


async def test_agent_without_required_kind_is_not_found() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", session=1)  # of it there is something, but nothing that is required
        with pytest.raises(AgentNotFound) as raised:
            await cluster.wake("a")
        assert raised.value.agent_id == "a"
        (state,) = await cluster.wake_many(["a"])
        assert state["session"] == 1
        assert state.complete


@pytest.mark.parametrize("kinds", [["session"], ["history"], ["session", "history"]])
async def test_optional_kinds_never_decide_agents_existence(kinds: list[str]) -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        state = await cluster.wake("a", kinds=kinds)
        assert [state.outcome(kind) for kind in kinds] == [Outcome.ABSENT] * len(kinds)
        assert state.complete


async def test_wake_of_required_kind_can_miss_agent() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", session=1)
        with pytest.raises(AgentNotFound):
            await cluster.wake("a", kinds=["profile"])


async def test_one_of_two_required_kinds_is_enough() -> None:
    kinds = {"one": KindSpec("id", required=True), "two": KindSpec("live", required=True)}
    async with fake_client(kinds) as (cluster, nodes):
        nodes["live"].put("a", two=2)
        state = await cluster.wake("a")
        assert state["two"] == 2
        assert state.outcome("one") is Outcome.ABSENT
        with pytest.raises(AgentNotFound):
            await cluster.wake("b")


async def test_any_fragment_is_enough_without_required_kinds() -> None:
    kinds = {"one": KindSpec("id"), "two": KindSpec("live")}
    async with fake_client(kinds) as (cluster, nodes):
        nodes["live"].put("a", two=2)
        assert (await cluster.wake("a"))["two"] == 2
        with pytest.raises(AgentNotFound):
            await cluster.wake("b")
        nodes["live"].hold.add(Fetch)
        state = await wake_lacking(cluster, "b", "two")  # it is unknown whether there is such an agent
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


async def test_node_fault_degrades_its_kinds_at_once() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=2, history=3)
        for code, outcome in ((FaultCode.OVERLOADED, Outcome.SHED), (FaultCode.INTERNAL, Outcome.FAULT)):
            nodes["old"].answer = rejecting(code, Fetch)
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


# --- internal errors and invalid arguments ---


class Kind(enum.StrEnum):
    SESSION = "session"
    PROFILE = "profile"


class Subclass(str):
    """A string that msgspec does not encode."""

    __slots__ = ()


async def test_kinds_and_ids_may_be_str_subclasses() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=2)
        for kinds in ([Kind.SESSION, Kind.PROFILE], [Subclass("profile")], ["session"], ["profile", "session"]):
            agent_id = Subclass("a")
            state = await cluster.wake(agent_id, kinds, LONG_S)
            assert state.agent_id == "a" and type(state.agent_id) is str
            assert [state[kind] for kind in kinds] == [{"profile": 1, "session": 2}[kind] for kind in kinds]
            (state,) = await cluster.wake_many([agent_id], kinds, LONG_S)
            assert state.complete and type(state.agent_id) is str
        await cluster.save("a", {Kind.SESSION: 3}, deadline_s=LONG_S)
        await cluster.save("a", {"session": 4}, expect=await cluster.wake("a"), deadline_s=LONG_S)
        await cluster.delete("a", [Subclass("session")], deadline_s=LONG_S)
        await cluster.delete("a", ["profile"], deadline_s=LONG_S)
        assert not leftovers(cluster)


@pytest.mark.parametrize("kinds", ["session", 5, [["session"]], [5], []])
async def test_invalid_kinds_are_rejected_and_leave_nothing(kinds: Any) -> None:
    async with fake_client() as (cluster, _):
        for _ in range(2):
            with pytest.raises((InvalidRequestError, UnknownKindError)):
                cluster.wake("a", kinds)
            with pytest.raises((InvalidRequestError, UnknownKindError)):
                await cluster.wake_many(["a"], kinds)
        assert not leftovers(cluster)


async def test_list_among_ids_is_rejected_and_leaves_nothing() -> None:
    async with fake_client() as (cluster, nodes):
        ids: list[Any] = [*[f"agent-{number}" for number in range(1_000)], []]
        with pytest.raises(InvalidRequestError, match="id number 1000"):
            await cluster.wake_many(ids, deadline_s=LONG_S)
        with pytest.raises(InvalidRequestError, match="id number 1000"):
            async for _ in cluster.wake_stream(ids, deadline_s=LONG_S):
                pass
        assert not nodes.fetches()
        assert not leftovers(cluster)


async def test_exception_at_turns_end_ends_only_its_wakes() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=1)
        break_next_fetch(cluster)
        broken = [cluster.wake("a", deadline_s=LONG_S), cluster.wake("b", deadline_s=LONG_S)]
        other = cluster.wake("a", ["session"], deadline_s=LONG_S)
        results = await asyncio.gather(*broken, other, return_exceptions=True)
        assert isinstance(results[0], ZeroDivisionError) and isinstance(results[1], ZeroDivisionError)
        assert isinstance(results[2], AgentState)
        assert (await cluster.wake("a", deadline_s=LONG_S))["profile"] == 1
        break_next_fetch(cluster)
        with pytest.raises(ZeroDivisionError):
            await cluster.wake_many(["a"] * 700, deadline_s=LONG_S)
        await eventually(lambda: not leftovers(cluster))


async def test_exception_in_reply_handling_ends_its_wakes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def break_off(_state: AgentState) -> AgentState:
        raise ZeroDivisionError("as the test wants it")

    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        with monkeypatch.context() as patch:
            patch.setattr(AgentState, "twin", break_off)
            waking = [cluster.wake("a", deadline_s=LONG_S), cluster.wake("a", deadline_s=LONG_S)]
            _, broken = await asyncio.gather(*waking, return_exceptions=True)
        assert isinstance(broken, ZeroDivisionError)
        await eventually(lambda: not leftovers(cluster))


async def test_wake_ends_by_deadline_despite_receiving_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def break_off(_frame: object) -> Reply:
        raise ZeroDivisionError("as the test wants it")

    seen: list[object] = []
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
        monkeypatch.setattr("dawnchorus.router.dispatch.dispatcher.decode_reply", break_off)
        waking = [cluster.wake("a", deadline_s=seconds) for seconds in (0.3, 0.3, 0.4)]
        waking.append(cluster.wake("b", ["session"], 0.3))
        many = asyncio.ensure_future(cluster.wake_many(["a", "b"], deadline_s=0.3))
        results = await asyncio.gather(*waking, return_exceptions=True)
        assert [type(result) for result in results] == [WakeIncomplete, WakeIncomplete, WakeIncomplete, AgentState]
        assert [state.complete for state in await many] == [False, False]
        assert seen
        await eventually(lambda: not leftovers(cluster))


async def test_cached_kind_choices_are_bounded_and_unordered() -> None:
    kinds = {f"kind-{number}": KindSpec(("id", "live", "old")[number % 3]) for number in range(12)}
    async with fake_client(kinds) as (cluster, nodes):
        nodes.put("a", **dict.fromkeys(kinds, 1))
        names = list(kinds)
        for number in range(1, 301):
            chosen = [kind for bit, kind in enumerate(names) if number >> bit & 1]
            before = len(nodes.fetches())
            both = await asyncio.gather(cluster.wake("a", chosen, LONG_S), cluster.wake("a", chosen[::-1], LONG_S))
            assert both[0].complete and both[1].complete
            assert len(nodes.fetches()) - before <= 3, "in both orders they are one"
        await cluster.save("a", dict.fromkeys(kinds, 2), deadline_s=LONG_S)
        assert kept_choices(cluster) < 600
        await eventually(lambda: not leftovers(cluster))

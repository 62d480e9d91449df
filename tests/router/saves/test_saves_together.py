"""Saves of one turn: sent together, those of one agent applied in the order of their calls."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from dawnchorus import Cluster, InvalidRequestError, Saved, SaveRejected, VersionConflict
from dawnchorus.wire.protocol.messages import Commit, FaultCode, Write
from tests.support.clusters import eventually
from tests.support.fake_nodes import FakeNode, fake_client, rejecting
from tests.support.internals import leftovers

LONG_S = 20.0


def the_writes(node: FakeNode) -> list[Write]:
    """Return every write that was sent to a node, in order."""
    return [write for commit in node.asked(Commit) for section in commit.sections for write in section.writes]


def versions(result: object) -> dict[str, int]:
    """Return the versions of a successful save."""
    assert isinstance(result, Saved), result
    return result.versions


@pytest.mark.parametrize("deadlines", [[None, 15.0, None], [19.0, None, 19.0, 18.0], [None, None, None]])
async def test_saves_of_one_agent_keep_order_despite_deadlines(
    deadlines: list[float | None],
) -> None:
    async with fake_client() as (cluster, _):
        saves = [
            cluster.save("a", {"session": number}, deadline_s=deadlines[number]) for number in range(len(deadlines))
        ]
        versions = [saved.versions["session"] for saved in await asyncio.gather(*saves)]
        assert versions == sorted(versions)
        assert (await cluster.wake_many(["a"]))[0]["session"] == len(deadlines) - 1
        assert not leftovers(cluster)


async def test_save_save_many_and_delete_keep_call_order() -> None:
    async with fake_client() as (cluster, nodes):
        many = {
            f"agent-{number}": {"session": number} for number in range(600)
        }  # more than share a batch with other saves
        await asyncio.gather(
            cluster.save("agent-7", {"session": "first"}),
            cluster.save_many(many),
            cluster.delete("agent-7", deadline_s=LONG_S),
            cluster.save_many({"agent-7": {"session": "last"}}),
        )
        assert (await cluster.wake_many(["agent-7"]))[0]["session"] == "last"
        assert len([write for write in the_writes(nodes["live"]) if write.agent == b"agent-7"]) == 4


async def test_later_save_does_not_overtake_overloaded_one() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["live"].answer = rejecting(FaultCode.OVERLOADED, Commit, retry_after_s=0.05)
        first = asyncio.ensure_future(cluster.save("a", {"session": 1}, deadline_s=LONG_S))
        await eventually(lambda: len(nodes["live"].asked(Commit)) == 1)
        nodes["live"].answer = nodes["live"].serve
        second = asyncio.ensure_future(cluster.save("a", {"session": 2}, deadline_s=LONG_S))
        other = asyncio.ensure_future(cluster.save("b", {"session": 3}, deadline_s=LONG_S))
        versions = [saved.versions["session"] for saved in await asyncio.gather(first, second)]
        assert versions == sorted(versions)
        assert isinstance(await other, Saved)
        assert not leftovers(cluster)


async def test_hanging_save_blocks_only_its_agent_and_store() -> None:
    async with fake_client(shards={"live": 1}) as (cluster, nodes):
        nodes["live"].hold.add(Commit)
        first = asyncio.ensure_future(cluster.save("a", {"session": 1}, deadline_s=LONG_S))
        await eventually(lambda: len(nodes["live"].held) == 1)
        assert isinstance(await cluster.save("a", {"profile": 1}, deadline_s=LONG_S), Saved)
        behind = asyncio.ensure_future(cluster.save("a", {"session": 2}, deadline_s=LONG_S))
        with pytest.raises(SaveRejected, match="an earlier save of this agent"):
            await cluster.save("a", {"session": 3}, deadline_s=0.05)
        other = asyncio.ensure_future(cluster.save("b", {"session": 1}, deadline_s=LONG_S))
        await eventually(lambda: len(nodes["live"].held) == 2)
        assert [write.agent for write in the_writes(nodes["live"])] == [b"a", b"b"]
        nodes["live"].release()
        saved = await asyncio.gather(first, behind, other)
        assert all(isinstance(result, Saved) for result in saved)
        assert not leftovers(cluster)


async def test_save_many_calls_of_one_turn_share_commit() -> None:
    async with fake_client() as (cluster, nodes):
        asked = [{f"{number}-a": {"session": 1}, f"{number}-b": {"session": 2}} for number in range(200)]
        results = await asyncio.gather(*map(cluster.save_many, asked))
        assert [list(result) for result in results] == [list(agents) for agents in asked]
        assert all(isinstance(saved, Saved) for result in results for saved in result.values())
        assert len(nodes["live"].asked(Commit)) == 1


async def test_mapping_changed_during_save_many_loses_no_result() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["live"].hold.add(Commit)
        agents = {"a": {"session": 1}, "b": {"session": 2}}
        saving = asyncio.ensure_future(cluster.save_many(agents))
        await eventually(lambda: len(nodes["live"].held) == 1)
        del agents["a"]
        agents["c"] = {"session": 3}
        nodes["live"].release()
        assert list(await saving) == ["a", "b"]


async def test_invalid_argument_fails_only_its_own_call() -> None:
    async with fake_client() as (cluster, _):
        bad: list[Any] = [1.0, {"session": 1.0}, {"session": None}, {"session": True}, object()]
        calls = [cluster.save("a", {"session": 1})]
        calls += [cluster.save("b", {"session": 2}, expect=expect) for expect in bad]
        calls.append(cluster.save("c", {"session": 3}))
        first, *rejected, last = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(first, Saved) and isinstance(last, Saved)
        assert all(isinstance(error, InvalidRequestError) for error in rejected)
        results = await cluster.save_many({"a": {"session": 1}, "b": {"session": 2}}, expect={"a": None, "b": bad[1]})
        assert [type(result) for result in results.values()] == [Saved, InvalidRequestError]
        odd: Mapping[str, Any] = {"a": {"session": 1}, "b": None, "c": 5, "d": {}}
        results = await cluster.save_many(odd)
        assert [type(result) for result in results.values()] == [Saved, *[InvalidRequestError] * 3]
        assert not leftovers(cluster)


class Unreadable(dict[str, Any]):
    """Values that cannot be read, from a caller's own class."""

    def __getitem__(self, kind: str) -> Any:
        raise RuntimeError(f"{kind} cannot be read")


@pytest.mark.parametrize("others", [20, 600])  # fewer and more than share a batch with the saves of their turn
async def test_unreadable_values_fail_only_their_agent(others: int) -> None:
    async with fake_client() as (cluster, _):
        many = {f"agent-{number}": {"session": number} for number in range(others)}
        results = await cluster.save_many({**many, "odd": Unreadable(session=1), "last": {"session": 1}})
        odd = results.pop("odd")
        assert isinstance(odd, InvalidRequestError) and "session cannot be read" in str(odd)
        assert {type(result) for result in results.values()} == {Saved}
        again = await asyncio.gather(*[cluster.save(agent_id, many[agent_id], deadline_s=LONG_S) for agent_id in many])
        assert len(again) == others
        assert not leftovers(cluster)


async def test_save_many_supports_every_option_of_save(cluster: Cluster) -> None:
    both = {"many-a": {"session": 1, "history": 1}, "many-b": {"session": 1}}
    first = await cluster.save_many(both, write_id="job-17", deadline_s=LONG_S)
    again = await cluster.save_many(both, write_id="job-17", deadline_s=LONG_S)
    assert [versions(result) for result in again.values()] == [versions(result) for result in first.values()]
    states = await cluster.wake_many(both, deadline_s=LONG_S)
    await cluster.save("many-b", {"session": 2}, deadline_s=LONG_S)
    results = await cluster.save_many(
        {agent_id: {"session": 3} for agent_id in ("many-a", "many-b", "many-c")},
        expect=states,
        ttl_s={"many-a": 60},
        drop={"many-a": ["history", "context"]},
        deadline_s=LONG_S,
    )
    assert [type(result) for result in results.values()] == [Saved, VersionConflict, InvalidRequestError]
    saved = results["many-a"]
    assert isinstance(saved, Saved)
    assert [bool(saved.versions[kind]) for kind in ("session", "history", "context")] == [True, True, False]
    state = (await cluster.wake_many(["many-a"], deadline_s=LONG_S))[0]
    assert (state["session"], state.outcome("history").name) == (3, "ABSENT")
    assert isinstance(await cluster.save("many-a", {"session": 4}, expect=saved, deadline_s=LONG_S), Saved)
    with pytest.raises(VersionConflict):
        await cluster.save("many-a", {"session": 5}, expect=saved, deadline_s=LONG_S)
    nothings: list[Any] = [1, "many-a", [1], 0.0]
    for expect in nothings:
        with pytest.raises(InvalidRequestError, match="expect"):
            await cluster.save_many({"many-a": {"session": 1}}, expect=expect)
    deleted = await cluster.delete_many(["many-a", "many-b", "", "many-a"], ["session"], deadline_s=LONG_S)
    assert [type(result) for result in deleted.values()] == [Saved, Saved, InvalidRequestError]
    assert [state.outcome("session").name for state in await cluster.wake_many(both)] == ["ABSENT"] * 2
    with pytest.raises(InvalidRequestError, match="a list of agent ids"):
        await cluster.delete_many("agent-42")


async def test_delete_result_lists_kinds_and_can_be_expected(cluster: Cluster) -> None:
    await cluster.save("gone", {"session": 1, "history": 1}, deadline_s=LONG_S)
    deleted = await cluster.delete("gone", write_id="the end", deadline_s=LONG_S)
    assert {kind for kind, version in deleted.versions.items() if version} == {"session", "history"}
    assert set(deleted.versions) == set(cluster.topology.kinds)
    again = await cluster.delete("gone", write_id="the end", deadline_s=LONG_S)
    assert again.versions == deleted.versions, "the first result again"
    everything = dict.fromkeys(cluster.topology.kinds, 2)
    await cluster.save("gone", everything, expect=deleted, deadline_s=LONG_S)
    deleted = await cluster.delete("gone", deadline_s=LONG_S)
    await cluster.save("gone", everything, expect=deleted.versions, deadline_s=LONG_S)
    with pytest.raises(VersionConflict):
        await cluster.save("gone", everything, expect=deleted, deadline_s=LONG_S)


async def test_idempotency_key_rejects_other_kinds_or_values(cluster: Cluster) -> None:
    first = await cluster.save("keyed", {"context": {"a": 1, "b": 2}}, write_id="order 17", deadline_s=LONG_S)
    assert first.write_id == "order 17"
    again = await cluster.save("keyed", {"context": {"b": 2, "a": 1}}, write_id="order 17", deadline_s=LONG_S)
    assert again.versions == first.versions
    for fragments in ({"context": {"a": 1}}, {"context": {"a": 1, "b": 2}, "session": 1}):
        with pytest.raises(SaveRejected, match="other kinds or values"):
            await cluster.save("keyed", fragments, write_id="order 17", deadline_s=LONG_S)
    other = await cluster.save("keyed too", {"context": 1}, write_id="order 17", deadline_s=LONG_S)
    assert other.versions["context"], "a key names a save of its agent"
    ours = await cluster.save("keyed", {"context": 5}, deadline_s=LONG_S)
    again = await cluster.save("keyed", {"context": 5}, write_id=ours.write_id, deadline_s=LONG_S)
    assert again.versions == ours.versions
    with pytest.raises(SaveRejected, match="other kinds or values"):
        await cluster.save("keyed", {"context": 6}, write_id=ours.write_id, deadline_s=LONG_S)


async def test_agents_with_prefix_are_listed_alone(cluster: Cluster) -> None:
    ids = ["prefix", "prefix\0", "prefix/a", "prefix/b", "prefix/b/c", "prefix0", "prefiy"]
    await cluster.save_many({agent_id: {"profile": 1} for agent_id in ids}, deadline_s=LONG_S)

    async def listed(prefix: str) -> list[str]:
        return [agent_id async for agent_id in cluster.agents(prefix=prefix)]

    assert await listed("prefix") == sorted(set(ids) - {"prefiy"})
    assert await listed("prefix/") == ["prefix/a", "prefix/b", "prefix/b/c"]
    assert await listed("prefix/b") == ["prefix/b", "prefix/b/c"]
    assert await listed("prefix\0") == ["prefix\0"]
    assert await listed("prefix/" + "b" * 249) == []
    with pytest.raises(InvalidRequestError):
        await listed("x" * 257)

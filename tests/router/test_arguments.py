"""Wrong arguments of public methods: an error that says what is expected, and nothing left behind."""

import enum
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from dawnchorus import Cluster, InvalidRequestError, Saved, connect, connect_sync
from dawnchorus.router.arguments import deadline, exact_id, exact_key, exact_text, seconds
from dawnchorus.wire.protocol.messages import Hello, Put
from tests.support.fake_nodes import FakeNodes, fake_client, fake_cluster, fake_topology
from tests.support.fake_nodes import connect as connect_in_memory
from tests.support.internals import leftovers

NOT_TIMES: list[Any] = ["60", b"60", Decimal("1.5"), [1], {}, ..., True, 1j]
OUTSIDE: list[Any] = [0, -1, 0.0, -0.5, float("nan"), float("inf"), 1e9, 10**400, timedelta(0), timedelta(days=2)]


@pytest.fixture
def client() -> AbstractAsyncContextManager[tuple[Cluster, FakeNodes]]:
    return fake_client()


@pytest.mark.parametrize("given", NOT_TIMES, ids=repr)
def test_non_time_is_rejected_with_argument_name(given: Any) -> None:
    with pytest.raises(InvalidRequestError, match="ttl_s is a number of seconds or a timedelta"):
        seconds("ttl_s", given)


@pytest.mark.parametrize("given", OUTSIDE, ids=lambda given: repr(given)[:20])
def test_deadline_outside_limits_is_rejected(given: Any) -> None:
    with pytest.raises(InvalidRequestError, match="a deadline is more than 0 and at most 86400 seconds"):
        deadline(given)


class Whole(int):
    """A subclass of int."""


@pytest.mark.parametrize("given", [2, 2.0, Whole(2), Fraction(2), timedelta(seconds=2)], ids=repr)
def test_times_become_plain_floats(given: Any) -> None:
    assert deadline(given) == 2.0
    assert type(deadline(given)) is float


class Name(str):
    """A string that is equal to nothing."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __hash__(self) -> int:
        raise AssertionError("hashed")

    def __str__(self) -> str:
        return "another"

    def encode(self, encoding: str = "", errors: str = "") -> bytes:
        return b"yet another"


class Colour(str, enum.Enum):  # noqa: UP042 # the older kind, whose str() is its name
    RED = "red"


def test_string_subclasses_become_plain_strings() -> None:
    for given, text in ((Name("a"), "a"), (Colour.RED, "red")):
        assert exact_text(given) == text
        assert type(exact_text(given)) is str


@pytest.mark.parametrize("given", [17, b"key", None])
def test_non_string_is_rejected_as_id_and_key(given: Any) -> None:
    with pytest.raises(InvalidRequestError, match="an agent id is a string"):
        exact_id(given)
    with pytest.raises(InvalidRequestError, match="write_id is a text"):
        exact_key(given)


async def test_string_subclass_ids_become_plain_at_public_edge(client: tuple[Cluster, FakeNodes]) -> None:
    cluster, nodes = client
    assert (await cluster.save(Name("a"), {"profile": 1})).agent_id == "a"
    state = await cluster.wake(Name("a"))
    assert (type(state.agent_id), state.agent_id, state["profile"]) == (str, "a", 1)
    assert set(nodes.agents_fetched("id")) == {b"a"}
    several = [*await cluster.save_many({Colour.RED: {"profile": 2}}), *await cluster.delete_many([Name("a")])]
    several += [state.agent_id for state in await cluster.wake_many([Name("a"), Colour.RED])]
    assert several == ["red", "a", "a", "red"]
    assert {type(agent_id) for agent_id in several} == {str}


async def test_invalid_id_or_key_fails_only_its_agent(client: tuple[Cluster, FakeNodes]) -> None:
    cluster, _ = client
    ids: list[Any] = ["a", b"b", 3]
    for results in (
        await cluster.save_many({agent_id: {"profile": 1} for agent_id in ids}),
        await cluster.delete_many(ids),
        await cluster.save_many({"a": {"profile": 1}, "b": {"profile": 1}}, write_id={"b": 5}),  # type: ignore[dict-item]
    ):
        given, *others = results.values()
        assert isinstance(given, Saved)
        assert all(isinstance(other, InvalidRequestError) for other in others)
        assert all("string of valid Unicode, not" in str(o) or "is a text, not 5" in str(o) for o in others)


CALLS: dict[str, Callable[[Cluster], Any]] = {
    "wake_many(text)": lambda cluster: cluster.wake_many("agent-42"),
    "wake_many(bytes)": lambda cluster: cluster.wake_many(b"agent-42"),  # type: ignore[arg-type]
    "wake_many(None)": lambda cluster: cluster.wake_many(None),  # type: ignore[arg-type]
    "wake_many([..., []])": lambda cluster: cluster.wake_many([*map(str, range(2_000)), []]),  # type: ignore[list-item]
    "wake_stream(text)": lambda cluster: cluster.wake_stream("agent-42"),
    "wake(bytes)": lambda cluster: cluster.wake(b"a"),  # type: ignore[arg-type]
    "wake(deadline)": lambda cluster: cluster.wake("a", deadline_s="1"),  # type: ignore[arg-type]
    "wake_many(deadline)": lambda cluster: cluster.wake_many(["a"], deadline_s="1"),  # type: ignore[arg-type]
    "wake_stream(deadline)": lambda cluster: cluster.wake_stream(["a"], deadline_s="1"),  # type: ignore[arg-type]
    "wake(kinds)": lambda cluster: cluster.wake("a", kinds="profile"),
    "save(bytes)": lambda cluster: cluster.save(b"a", {"profile": 1}),  # type: ignore[arg-type]
    "save(None)": lambda cluster: cluster.save("a", None),  # type: ignore[arg-type]
    "save(text)": lambda cluster: cluster.save("a", "profile"),  # type: ignore[arg-type]
    "save(pairs)": lambda cluster: cluster.save("a", [("profile", 1)]),  # type: ignore[arg-type]
    "save(ttl)": lambda cluster: cluster.save("a", {"profile": 1}, ttl_s="60"),  # type: ignore[arg-type]
    "save(negative ttl)": lambda cluster: cluster.save("a", {"profile": 1}, ttl_s=timedelta(seconds=-1)),
    "save(deadline)": lambda cluster: cluster.save("a", {"profile": 1}, deadline_s="5"),  # type: ignore[arg-type]
    "save(write_id)": lambda cluster: cluster.save("a", {"profile": 1}, write_id=5),  # type: ignore[arg-type]
    "save_many(None)": lambda cluster: cluster.save_many(None),  # type: ignore[arg-type]
    "save_many(list)": lambda cluster: cluster.save_many(["a"]),  # type: ignore[arg-type]
    "save_many(deadline)": lambda cluster: cluster.save_many({"a": {"profile": 1}}, deadline_s="5"),  # type: ignore[arg-type]
    "delete(bytes)": lambda cluster: cluster.delete(b"a"),  # type: ignore[arg-type]
    "delete(write_id)": lambda cluster: cluster.delete("a", write_id=b"k"),  # type: ignore[arg-type]
    "delete(kinds)": lambda cluster: cluster.delete("a", kinds="profile"),
    "delete_many(text)": lambda cluster: cluster.delete_many("agent-42"),
    "delete_many(None)": lambda cluster: cluster.delete_many(None),  # type: ignore[arg-type]
    "delete_many([..., []])": lambda cluster: cluster.delete_many(["a", []]),  # type: ignore[list-item]
    "agents(store)": lambda cluster: cluster.agents(["id"]),  # type: ignore[arg-type]
    "status(deadline)": lambda cluster: cluster.status("2"),  # type: ignore[arg-type]
    "back_up_shard": lambda cluster: cluster.back_up_shard("id", 0, "x", rate_bytes_s=1, deadline_s="5"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("call", CALLS)
async def test_wrong_argument_is_rejected_and_leaves_nothing_behind(
    call: str, client: tuple[Cluster, FakeNodes]
) -> None:
    cluster, nodes = client
    with pytest.raises(InvalidRequestError) as caught:
        result = CALLS[call](cluster)
        if isinstance(result, Awaitable):
            await result
        else:
            await anext(result)
    assert len(str(caught.value)) < 250
    nodes.put("b", profile=2)
    assert (await cluster.wake("b"))["profile"] == 2
    assert (await cluster.save("b", {"profile": 3})).agent_id == "b"
    assert not leftovers(cluster)
    for node in nodes.values():
        agents = [agent for agent in (b"a", b"agent-42") if (node.name.removesuffix("-1"), agent) in node.images]
        assert not agents, "something of the slip was saved"


async def test_state_fetch_rejects_invalid_deadline(client: tuple[Cluster, FakeNodes]) -> None:
    cluster, nodes = client
    nodes.put("a", profile=1, history=2)
    state = await cluster.wake("a", kinds=["profile"])
    text: Any = "1"
    with pytest.raises(InvalidRequestError, match="deadline_s is a number"):
        await state.fetch("history", deadline_s=text)
    assert await state.fetch("history", deadline_s=timedelta(seconds=20)) == 2


async def test_timedeltas_are_accepted_as_ttl_and_deadline(client: tuple[Cluster, FakeNodes]) -> None:
    cluster, nodes = client
    long = timedelta(seconds=20)
    await cluster.save("a", {"session": 1}, ttl_s=timedelta(hours=1), deadline_s=long)
    results = await cluster.save_many({"b": {"session": 1}}, ttl_s={"b": timedelta(hours=2)}, deadline_s=long)
    assert isinstance(results["b"], Saved)
    lives = [
        operation.ttl_ms
        for commit in nodes["live"].requests
        if not isinstance(commit, Hello)
        for section in getattr(commit, "sections", ())
        for write in getattr(section, "writes", ())
        for operation in write.operations
        if isinstance(operation, Put)
    ]
    assert lives == [3_600_000, 7_200_000]
    assert (await cluster.wake("a", ["session"], deadline_s=long))["session"] == 1
    assert len(await cluster.wake_many(["a"], deadline_s=long)) == 1


@pytest.mark.parametrize("face", [connect, connect_sync])
@pytest.mark.parametrize("given", [float("nan"), "5", 0, -1, timedelta(0), None], ids=repr)
def test_connect_rejects_invalid_deadline_at_once(face: Any, given: Any) -> None:
    with pytest.raises(InvalidRequestError, match="connect_deadline_s"):
        face(fake_topology(), connect_deadline_s=given)


@pytest.mark.parametrize("given", [None, 5, b"topology.toml", ["tcp://127.0.0.1:1"]], ids=repr)
def test_connect_rejects_invalid_source_at_once(given: Any) -> None:
    with pytest.raises(InvalidRequestError, match="path of a topology file"):
        connect(given)


async def test_connect_accepts_timedelta_and_rejects_non_mapping_types(tmp_path: Path) -> None:
    topology = fake_topology()
    types: Any = ["profile"]
    with pytest.raises(InvalidRequestError, match="types is a mapping of kinds to types"):
        connect(topology, types=types)
    async with fake_cluster(topology), connect_in_memory(topology, connect_deadline_s=timedelta(seconds=20)) as cluster:
        assert cluster.topology.name == "fake"

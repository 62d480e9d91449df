"""Ten thousand real agents in a real cluster: every value comes back complete, in order, also after a restart."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from dawnchorus import AgentNotFound, AgentState, Cluster, InvalidRequestError, Outcome, Saved, connect
from tests.support.airline import airline_agents, copies_of
from tests.support.clusters import DEFAULT_NODES, RunningCluster, write_topology
from tests.support.faces import FACES, opened

COPIES = 50
BATCH_AGENTS = 250
DEADLINE_S = 30.0


@pytest.fixture(params=FACES)
async def cluster(running_cluster: RunningCluster, request: pytest.FixtureRequest) -> AsyncGenerator[Cluster]:
    """A client of the running cluster, by either face."""
    async with opened(request.param, running_cluster.path) as cluster:
        yield cluster


class Airline:
    """A cluster that holds the airline's agents, and what they were loaded with."""

    def __init__(self, running: RunningCluster, agents: Mapping[str, Mapping[str, Any]]) -> None:
        self.running = running
        self.agents = agents

    async def restart(self) -> None:
        """Stop every node, and start them again on the same data."""
        await self.running.launcher.stop()
        self.running = RunningCluster(self.running.path)
        await self.running.launcher.start()


@pytest.fixture(scope="module")
async def airline(ipc_directory: Path) -> AsyncGenerator[Airline]:
    """10,000 agents of about 21 KB, saved into a cluster with the default's three nodes and 48 shards."""
    agents = dict(copies_of(airline_agents(), COPIES))
    with tempfile.TemporaryDirectory(prefix="dawnchorus-airline-") as directory:
        airline = Airline(RunningCluster(write_topology(Path(directory), shards=16)), agents)
        await airline.running.launcher.start()
        try:
            async with connect(airline.running.path) as cluster:
                await save_all(cluster, agents)
            yield airline
        finally:
            await airline.running.launcher.stop()


async def save_all(cluster: Cluster, agents: Mapping[str, Mapping[str, Any]]) -> None:
    """Save agents in batches, two of them at a time."""
    ids = list(agents)
    starts = iter(range(0, len(ids), BATCH_AGENTS))

    async def save_batches() -> None:
        for start in starts:
            batch = {agent_id: agents[agent_id] for agent_id in ids[start : start + BATCH_AGENTS]}
            results = await cluster.save_many(batch, deadline_s=DEADLINE_S)
            assert list(results) == list(batch)
            assert all(isinstance(result, Saved) for result in results.values())

    await asyncio.gather(save_batches(), save_batches())


def assert_all_right(states: Sequence[AgentState], agents: Mapping[str, Mapping[str, Any]]) -> None:
    """Fail unless every agent is in its place, complete, and each fragment equal."""
    assert [state.agent_id for state in states] == list(agents)
    assert all(state.complete for state in states)
    equal = sum(state[kind] == value for state in states for kind, value in agents[state.agent_id].items())
    assert equal == sum(map(len, agents.values()))


async def test_every_agent_comes_back_complete_and_in_order(airline: Airline) -> None:
    assert len(airline.agents) == 10_000
    async with connect(airline.running.path) as cluster:
        assert_all_right(await cluster.wake_many(airline.agents, deadline_s=DEADLINE_S), airline.agents)


async def test_client_given_any_one_endpoint_wakes_every_agent(airline: Airline) -> None:
    some = dict(list(airline.agents.items())[::97])
    for node in DEFAULT_NODES:
        async with connect(airline.running.endpoint(node)) as cluster:
            assert cluster.topology.name == "test"
            assert_all_right(await cluster.wake_many(some, deadline_s=DEADLINE_S), some)


async def test_agents_lists_every_id_once_in_byte_order(airline: Airline) -> None:
    expected = sorted(airline.agents, key=str.encode)
    async with connect(airline.running.path) as cluster:
        assert [agent_id async for agent_id in cluster.agents()] == expected
        assert [agent_id async for agent_id in cluster.agents("live")] == expected


async def test_ten_thousand_tasks_each_wake_their_own_agent(airline: Airline) -> None:
    async with connect(airline.running.path) as cluster:

        async def wake(agent_id: str) -> AgentState:
            return await cluster.wake(agent_id, deadline_s=DEADLINE_S)

        assert_all_right(await asyncio.gather(*map(wake, airline.agents)), airline.agents)


async def test_a_stream_brings_every_agent_once(airline: Airline) -> None:
    async with connect(airline.running.path) as cluster:
        states = [state async for state in cluster.wake_stream(airline.agents, deadline_s=DEADLINE_S)]
    by_id = {state.agent_id: state for state in states}
    assert len(states) == len(by_id)
    assert_all_right([by_id[agent_id] for agent_id in airline.agents], airline.agents)


async def test_every_agent_comes_back_after_stopping_and_starting(airline: Airline) -> None:
    await airline.restart()
    async with connect(airline.running.path) as cluster:
        assert_all_right(await cluster.wake_many(airline.agents, deadline_s=DEADLINE_S), airline.agents)
        ids = [agent_id async for agent_id in cluster.agents()]
    assert ids == sorted(airline.agents, key=str.encode)


VALUES = [
    b"",
    b"\x00\xff raw bytes",
    b"\x93\x01\x02\x03",  # msgpack of [1, 2, 3], and still bytes
    None,
    True,
    0,
    -(2**63),
    2**63 - 1,
    2**64 - 1,
    1.5,
    float("inf"),
    "",
    "Grüße, 世界 \U0001f426 \x00",
    [],
    {},
    {"nested": {"list": [1, [2, [3, {"deep": None}]]], "é": "ü", "": "empty key"}},
    {"bytes": b"\x00\x01", "mixed": [b"", "", 0, None]},
    ["x" * 100_000],
]


async def test_values_come_back_as_they_went_in(cluster: Cluster) -> None:
    kinds = ["profile", "preference", "session", "context", "history"]
    saves = {
        f"value-{number}": {"profile": number, kinds[1 + number % 4]: value} for number, value in enumerate(VALUES)
    }
    assert all(isinstance(result, Saved) for result in (await cluster.save_many(saves)).values())
    states = await cluster.wake_many(saves, deadline_s=DEADLINE_S)
    for state, (number, value) in zip(states, enumerate(VALUES), strict=True):
        got = state[kinds[1 + number % 4]]
        assert (type(got), got) == (type(value), value)


IDS = [
    "a",
    "/",
    "tenant/42/agent",
    "../../etc/passwd",
    "agent 42 ~1",
    "ünïcødé",
    "агент-世界-\U0001f426",
    "\x00\n\x7f",
    "x" * 256,
    "世" * 85 + "x",  # 256 bytes of UTF-8
    "e\u0301",
    "\u00e9",  # looks the same as the one before
]


async def test_ids_of_every_kind_name_one_agent_each(cluster: Cluster) -> None:
    saves = {agent_id: {"profile": {"my id": agent_id}, "history": agent_id.encode()} for agent_id in IDS}
    assert all(isinstance(result, Saved) for result in (await cluster.save_many(saves)).values())
    for agent_id in IDS:
        state = await cluster.wake(agent_id, deadline_s=DEADLINE_S)
        assert (state.agent_id, state["profile"], state["history"]) == (
            agent_id,
            {"my id": agent_id},
            agent_id.encode(),
        )
    listed = [agent_id async for agent_id in cluster.agents() if agent_id in saves]
    assert listed == sorted(IDS, key=str.encode)


class Profile(msgspec.Struct):
    name: str
    age: int = 0


async def test_registered_type_comes_back(running_cluster: RunningCluster) -> None:
    async with connect(running_cluster.path, types={"profile": Profile}) as cluster:
        await cluster.save("typed", {"profile": Profile("Ada", 36), "context": {"plain": 1}})
        state = await cluster.wake("typed", deadline_s=DEADLINE_S)
        assert state["profile"] == Profile("Ada", 36)
        assert state["context"] == {"plain": 1}


async def test_values_that_would_change_are_rejected_and_unsaved(running_cluster: RunningCluster) -> None:
    def enc_hook(value: Any) -> Any:
        if isinstance(value, Decimal):
            return msgspec.msgpack.Ext(1, str(value).encode())
        raise NotImplementedError

    def ext_hook(code: int, data: memoryview) -> Any:
        return Decimal(bytes(data).decode())

    key = UUID(int=7)
    async with connect(
        running_cluster.path, types={"profile": Profile}, enc_hook=enc_hook, ext_hook=ext_hook
    ) as cluster:
        results = await cluster.save_many(
            {
                "values/keys": {"session": 1, "context": {"a": [{key: 1, str(key): 2}]}},
                "values/set": {"session": 1, "context": {"a": {1}}},
                "values/bytes": {"session": 1, "profile": b"no profile"},
                "values/more": {"session": 1, "profile": {"name": "Ada", "more": 1}},
                "values/taught": {"context": {"price": Decimal("1.50")}, "profile": {"name": "Ada"}},
            }
        )
        for agent_id, place in (
            ("values/keys", 'value["a"][0] has the keys'),
            ("values/set", 'value["a"] is of type set'),
            ("values/bytes", "value does not fit the type registered"),
            ("values/more", 'value["more"] has no field'),
        ):
            assert isinstance(results[agent_id], InvalidRequestError)
            assert place in str(results[agent_id])
            with pytest.raises(AgentNotFound):
                await cluster.wake(agent_id, deadline_s=DEADLINE_S)
        taught = await cluster.wake("values/taught", deadline_s=DEADLINE_S)
        assert (repr(taught["context"]["price"]), taught["profile"]) == ("Decimal('1.50')", Profile("Ada"))
    async with connect(running_cluster.path, allow_lossy_values=True) as cluster:
        await cluster.save("values/set", {"profile": {"a": {key}}})
        assert (await cluster.wake("values/set", deadline_s=DEADLINE_S))["profile"] == {"a": [str(key)]}


async def test_repeated_and_unknown_ids_keep_their_places(cluster: Cluster) -> None:
    await cluster.save("twice", {"profile": 1, "session": 2, "history": 3})
    asked = ["twice", "nobody-at-all", "twice", "", "x" * 257, "twice"]
    states = await cluster.wake_many(asked, deadline_s=DEADLINE_S)
    assert [state.agent_id for state in states] == asked
    assert [state.outcome("profile").name for state in states] == ["OK", "ABSENT", "OK", "FAULT", "FAULT", "OK"]
    assert await cluster.wake_many([]) == []
    none_valid = await cluster.wake_many(["", "x" * 257, ""], deadline_s=DEADLINE_S)
    assert [state.outcome("profile") for state in none_valid] == [Outcome.FAULT] * 3


async def test_deleted_fragments_are_absent(cluster: Cluster) -> None:
    await cluster.save("deleted", {"profile": 1, "session": 2, "context": 3})
    dropped = await cluster.delete("deleted", ["session"])
    state = await cluster.wake("deleted", deadline_s=DEADLINE_S)
    assert list(dropped.versions) == ["session"]
    assert state.outcome("session") is Outcome.ABSENT
    assert state["context"] == 3
    await cluster.delete("deleted")
    with pytest.raises(AgentNotFound):
        await cluster.wake("deleted", deadline_s=DEADLINE_S)
    assert (await cluster.delete("deleted")).versions == dict.fromkeys(cluster.topology.kinds, 0)

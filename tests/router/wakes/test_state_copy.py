"""States as mappings, and outside of their cluster: copied, pickled, in another process."""

import asyncio
import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import msgspec
import pytest

from dawnchorus import (
    AgentState,
    ClusterUnavailable,
    FragmentAbsent,
    FragmentUnavailable,
    Outcome,
    TopologyError,
    WakeIncomplete,
)
from dawnchorus.router.wakes.outcomes import Item
from dawnchorus.wire.cluster.topology import KindSpec
from dawnchorus.wire.protocol.messages import FaultCode, Fetch
from tests.router.wakes.test_agent_state import image, state_of
from tests.support.fake_nodes import FakeNodes, connect, fake_client, fake_cluster, fake_topology, rejecting
from tests.support.internals import leftovers

LONG_S = 20.0


class Profile(msgspec.Struct):
    name: str
    tags: list[str] = []


def taken_apart(state: AgentState) -> list[Any]:
    return [state.agent_id, state["profile"], state.version("profile"), state.outcome("history"), repr(state)]


# --- a mapping of its kinds ---


def test_state_iterates_as_mapping_of_present_kinds() -> None:
    state = state_of([image(profile=1), image(session=2), Outcome.TIMEOUT], fallbacks={"history": 3})
    assert list(state) == state.keys() == ["profile", "session"]
    assert len(state) == 2
    assert dict(state) == {"profile": 1, "session": 2}
    assert (state.values(), state.items()) == ([1, 2], [("profile", 1), ("session", 2)])
    assert "session" in state and "preference" not in state
    assert "history" not in state, "a fallback is shown, and is not there"
    with pytest.raises(FragmentUnavailable, match="not asked for"):
        assert "unasked" in state


def test_as_dict_shows_state_and_omits_no_failure() -> None:
    images: list[Item] = [image(profile={"name": "Ada"}), None, Outcome.TIMEOUT]
    state = state_of(images, fallbacks={"history": ["none"]})
    assert state.as_dict() == {"profile": {"name": "Ada"}, "history": ["none"]}
    assert state.as_dict()["profile"] is state["profile"]
    with pytest.raises(FragmentUnavailable, match="history"):
        state_of(images).as_dict()
    assert state_of([None, None, None]).as_dict() == {}


def test_state_without_any_kind_is_true() -> None:
    state = state_of([None, None, None])
    assert len(state) == 0
    assert state


# --- one view of expiry ---


def test_all_views_agree_on_expiry_after_looking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_ms = 1_000
    monkeypatch.setattr("time.monotonic", lambda: now_ms / 1_000)
    state = state_of([image(profile=1), image(session=["looked at"], expires_ms=2_000), None])
    value = state["session"]
    assert state["session"] is value and state.get("session") is value and state.as_dict()["session"] is value
    now_ms = 2_000
    assert state.outcome("session") is Outcome.EXPIRED
    assert state.get("session", "default") == "default"
    assert "session" not in state and list(state) == ["profile"] and state.as_dict() == {"profile": 1}
    assert state.version("session") == state.vouched_version("session") == 0
    with pytest.raises(FragmentAbsent, match="expired"):
        state["session"]
    assert state.complete


# --- copies ---


def pickled(state: AgentState) -> AgentState:
    other: AgentState = pickle.loads(pickle.dumps(state))
    return other


COPIES: list[Callable[[AgentState], AgentState]] = [copy.copy, copy.deepcopy, pickled]


@pytest.mark.parametrize("copied", COPIES)
def test_copy_shows_stored_values_and_shares_nothing_mutable(
    copied: Callable[[AgentState], AgentState],
) -> None:
    images: list[Item] = [image(profile={"name": "Ada"}, preference=b"raw"), image(session=[1]), Outcome.SHED]
    state = state_of(images, types={"profile": Profile}, fallbacks={"history": []})
    state["profile"].tags.append("changed")
    state["session"].append("changed")
    state["history"].append("changed")
    other = copied(state)
    assert (other["profile"], other["session"], other["history"]) == (Profile("Ada"), [1], [])
    assert other["profile"] is other["profile"]
    assert [other.version(kind) for kind in ("profile", "preference", "session")] == [5, 6, 5]
    assert other.degraded == ("history",) and repr(other) == repr(state)
    with pytest.raises(FragmentUnavailable, match="not asked for"):
        other["unasked"]
    assert repr(copied(other)) == repr(state)


def test_copy_of_corrupt_image_is_fault() -> None:
    other = pickle.loads(pickle.dumps(state_of([b"short", None, None])))
    assert other.outcome("profile") is Outcome.FAULT
    assert other.outcome("session") is Outcome.ABSENT


def test_fragment_still_expires_in_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    wall_s, monotonic_ms = 1_000, 50_000
    monkeypatch.setattr("time.monotonic", lambda: monotonic_ms / 1_000)
    monkeypatch.setattr("time.time_ns", lambda: wall_s * 1_000_000_000)
    state = state_of([image(profile=1), image(session=1, expires_ms=50_000 + 60_000), None])
    pickled = pickle.dumps(state)
    wall_s, monotonic_ms = 1_059, 7  # another host, 59 s later
    assert pickle.loads(pickled)["session"] == 1
    wall_s = 1_060
    other = pickle.loads(pickled)
    assert other.outcome("session") is Outcome.EXPIRED
    assert pickle.loads(pickle.dumps(other)).outcome("session") is Outcome.EXPIRED
    wall_s = 0  # a clock that was set back makes nothing younger than it was
    assert pickle.loads(pickled).outcome("session") is Outcome.OK


@pytest.mark.real
async def test_state_from_process_pool_can_be_expected() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile={"name": "Ada"}, session=1)
        state = await cluster.wake("a", deadline_s=LONG_S)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(pool, taken_apart, state) == taken_apart(state)
        other = pickle.loads(pickle.dumps(state))
        assert other.vouched_version("session") == state.version("session") > 0
        await cluster.save("a", {"session": 2}, expect=other, deadline_s=LONG_S)


async def test_copy_says_it_belongs_to_no_cluster() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["live"].answer = rejecting(FaultCode.INTERNAL, Fetch)
        nodes.put("a", profile=1, session=1)
        state = copy.copy(await cluster.wake("a", deadline_s=LONG_S))
        nodes["live"].answer = nodes["live"].serve
        called: list[AgentState] = []
        with pytest.raises(ClusterUnavailable, match="copy"):
            await state.settle(LONG_S, callback=called.append)
        assert called == [state]
        with pytest.raises(ClusterUnavailable, match="copy"):
            await state.fetch("session", LONG_S)
        assert state["profile"] == 1
        assert not leftovers(cluster)


@pytest.mark.real
async def test_copy_says_so_where_no_loop_runs_too() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["live"].answer = rejecting(FaultCode.INTERNAL, Fetch)
        nodes.put("a", profile=1, session=1)
        state = copy.copy(await cluster.wake("a", deadline_s=LONG_S))
        with pytest.raises(ClusterUnavailable, match="copy"):
            await asyncio.to_thread(state.settle)


async def test_wake_incomplete_takes_its_state_along() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=[2])
        nodes["id"].answer = rejecting(FaultCode.INTERNAL, Fetch)
        with pytest.raises(WakeIncomplete) as raised:
            await cluster.wake("a", deadline_s=LONG_S)
        other = pickle.loads(pickle.dumps(raised.value))
        assert other.state["session"] == [2]
        assert other.state.outcome("profile") is Outcome.FAULT


# --- fallbacks ---


async def faulty_state(types: dict[str, Any], fallback: object) -> AgentState:
    kinds = {"profile": KindSpec("id", fallback=fallback), "session": KindSpec("live")}
    topology = fake_topology(kinds=kinds)
    nodes: FakeNodes
    async with fake_cluster(topology) as nodes, connect(topology, types=types) as cluster:
        nodes.put("a", session=1)
        nodes["id"].answer = rejecting(FaultCode.INTERNAL, Fetch)
        return await cluster.wake("a", deadline_s=LONG_S)


async def test_fallback_has_registered_type_of_its_kind() -> None:
    state = await faulty_state({"profile": Profile}, {"name": "nobody"})
    assert state["profile"] == Profile("nobody")
    assert state["profile"] is state["profile"] is state.get("profile", "default")
    other = await faulty_state({"profile": Profile}, {"name": "nobody"})
    state["profile"].tags.append("changed")
    assert other["profile"] == Profile("nobody")


@pytest.mark.parametrize("fallback", [{}, {"name": 5}, "nobody", None])
async def test_misfitting_fallback_is_rejected_when_cluster_opens(fallback: object) -> None:
    with pytest.raises(TopologyError, match=r"fragments\.profile: fallback does not fit"):
        await faulty_state({"profile": Profile}, fallback)


async def test_get_gives_no_default_for_failed_kind() -> None:
    with_one = await faulty_state({}, {"name": "nobody"})
    assert with_one.get("profile", "default") == {"name": "nobody"}
    without = await faulty_state({}, msgspec.UNSET)
    with pytest.raises(FragmentUnavailable, match="FAULT"):
        without.get("profile", "default")
    assert without.get("session", "default") == 1

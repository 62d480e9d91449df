"""Invalid requests to a real cluster: one clear error each, and nothing lost."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

import dawnchorus.router.dispatch.membership
from dawnchorus import (
    Cluster,
    ClusterUnavailable,
    InvalidRequestError,
    Outcome,
    PlacementError,
    Saved,
    SaveRejected,
    UnknownKindError,
    connect,
)
from dawnchorus.wire.protocol.messages import PROTOCOL, Hello
from tests.support.clusters import RunningCluster
from tests.support.faces import FACES, opened

LONG_S = 20.0
MIB = 1 << 20


@pytest.fixture(params=FACES)
async def cluster(running_cluster: RunningCluster, request: pytest.FixtureRequest) -> AsyncGenerator[Cluster]:
    """A client of the running cluster, by either face."""
    async with opened(request.param, running_cluster.path) as cluster:
        yield cluster


def changed(running_cluster: RunningCluster, tmp_path: Path, before: str, after: str) -> Path:
    """Copy the running cluster's topology file with one text replaced; return its path."""
    text = running_cluster.path.read_text()
    assert before in text
    path = tmp_path / "topology.toml"
    path.write_text(text.replace(before, after))
    return path


async def test_node_rejects_client_of_another_cluster(running_cluster: RunningCluster, tmp_path: Path) -> None:
    path = changed(running_cluster, tmp_path, 'name = "test"', 'name = "other"')
    with pytest.raises(ClusterUnavailable, match=r"this is cluster 'test' \([0-9a-f]{32}\), not 'other'"):
        async with connect(path):
            pass


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, 99])
async def test_node_rejects_client_of_another_protocol_version(
    running_cluster: RunningCluster, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    def another_hello(_protocol: int, cluster: str, client: bytes, digest: str) -> Hello:
        return Hello(protocol, cluster, client, digest)

    monkeypatch.setattr(dawnchorus.router.dispatch.membership, "Hello", another_hello)
    for source in (running_cluster.path, running_cluster.endpoint("live-1")):
        with pytest.raises(ClusterUnavailable, match=f"this node speaks protocol {PROTOCOL}, not {protocol}"):
            async with connect(source):
                pass


async def test_client_with_kind_in_another_store_is_rejected(running_cluster: RunningCluster, tmp_path: Path) -> None:
    path = changed(
        running_cluster, tmp_path, '[fragments.context]\nstore = "live"', '[fragments.context]\nstore = "archive"'
    )
    with pytest.raises(PlacementError, match="kind 'context' is kept in store 'live'"):
        async with connect(path):
            pass


async def test_client_with_kinds_unknown_to_cluster_is_rejected(
    running_cluster: RunningCluster, tmp_path: Path
) -> None:
    path = changed(
        running_cluster, tmp_path, "[fragments.context]", '[fragments.mood]\nstore = "live"\n[fragments.context]'
    )
    with pytest.raises(PlacementError, match="does not know kind 'mood'"):
        async with connect(path):
            pass


async def test_values_over_limits_are_rejected_and_others_saved(cluster: Cluster) -> None:
    results = await cluster.save_many(
        {
            "limit-1": {"profile": bytes(MIB), "session": 1},
            "limit-2": {"profile": bytes(MIB + 1), "session": 1},
            "limit-3": {"profile": bytes(MIB), "preference": bytes(MIB), "session": 1},
            "limit-4": {"profile": 4, "session": 1},
        },
        deadline_s=LONG_S,
    )
    assert isinstance(results["limit-1"], Saved)
    assert isinstance(results["limit-2"], InvalidRequestError)
    # Each fragment is within its limit, but the image of the two in one store is not: only the node can tell.
    assert not isinstance(results["limit-3"], Saved)
    assert isinstance(results["limit-4"], Saved)
    states = {state.agent_id: state for state in await cluster.wake_many(list(results), deadline_s=LONG_S)}
    assert states["limit-1"]["profile"] == bytes(MIB)
    assert "profile" not in states["limit-2"]
    assert "profile" not in states["limit-3"]
    assert states["limit-4"]["profile"] == 4


async def test_image_that_would_outgrow_its_limit_stays_unchanged(cluster: Cluster) -> None:
    await cluster.save("grown", {"profile": b"before"})
    await cluster.save("grown", {"preference": bytes(MIB)}, deadline_s=LONG_S)
    with pytest.raises(SaveRejected, match="identity"):
        await cluster.save("grown", {"profile": bytes(MIB)}, deadline_s=LONG_S)
    assert (await cluster.wake("grown", deadline_s=LONG_S))["profile"] == b"before"


async def test_invalid_ids_and_kinds_affect_no_other_agent(cluster: Cluster) -> None:
    await cluster.save("sound", {"profile": 1})
    for agent_id in ("", "x" * 257, "\ud800"):
        with pytest.raises(InvalidRequestError):
            await cluster.wake(agent_id)
        with pytest.raises(InvalidRequestError):
            await cluster.save(agent_id, {"profile": 1})
        with pytest.raises(InvalidRequestError):
            await cluster.delete(agent_id)
    with pytest.raises(UnknownKindError, match="profile, preference, session, context, history"):
        await cluster.wake("sound", kinds=["nonsense"])
    for deadline_s in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InvalidRequestError, match="deadline"):
            await cluster.wake("sound", deadline_s=deadline_s)
        with pytest.raises(InvalidRequestError, match="deadline"):
            await cluster.wake_many(["sound"], deadline_s=deadline_s)
    assert (await cluster.wake("sound", deadline_s=LONG_S))["profile"] == 1


@pytest.mark.parametrize("nonsense", [5, None, b"sound", 0.5])
async def test_id_of_wrong_type_costs_that_agent_alone(cluster: Cluster, nonsense: Any) -> None:
    with pytest.raises(InvalidRequestError):
        await cluster.wake(nonsense)
    with pytest.raises(InvalidRequestError):
        await cluster.save(nonsense, {"profile": 1})
    saved = await cluster.save_many({"sound": {"profile": 1}, nonsense: {"profile": 2}})
    assert isinstance(saved["sound"], Saved)
    assert isinstance(saved[nonsense], InvalidRequestError)
    for ids in ([nonsense, "sound", nonsense, "sound"], ["sound"] * 700 + [nonsense] * 2):
        states = await cluster.wake_many(ids, deadline_s=LONG_S)
        assert [state.agent_id for state in states] == ids
        assert {state.outcome("profile") for state in states if state.agent_id == nonsense} == {Outcome.FAULT}
        assert {state["profile"] for state in states if state.agent_id == "sound"} == {1}
    streamed = [state async for state in cluster.wake_stream(["sound", nonsense, "sound"], deadline_s=LONG_S)]
    assert {state.agent_id: state.outcome("profile") for state in streamed} == {
        "sound": Outcome.OK,
        nonsense: Outcome.FAULT,
    }
    no_token: Any = nonsense or 1
    with pytest.raises(InvalidRequestError, match="write_id"):
        await cluster.save("sound", {"profile": 1}, write_id=no_token)

"""The contract: names, signatures and meanings that users may rely on. A change here is a change for every user."""

import inspect
from collections.abc import AsyncGenerator

import pytest

import dawnchorus
from dawnchorus import AgentState, Cluster, Outcome, Saved, connect
from tests.support.faces import FACES, opened
from tests.support.fake_nodes import fake_cluster, fake_topology

NAMES = {
    "AgentNotFound",
    "AgentState",
    "Cluster",
    "ClusterUnavailable",
    "ConfigurationError",
    "DataDirectoryError",
    "DawnchorusError",
    "DeadlineExceeded",
    "FragmentAbsent",
    "FragmentUnavailable",
    "FragmentUndecodable",
    "InvalidRequestError",
    "LaunchError",
    "Outcome",
    "PeerFault",
    "PlacementError",
    "ProtocolError",
    "SaveError",
    "SaveIncomplete",
    "SaveRejected",
    "Saved",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "TopologyError",
    "UnknownKindError",
    "WakeIncomplete",
    "connect",
    "connect_sync",
}

BASES = {
    "AgentNotFound": LookupError,
    "ClusterUnavailable": ConnectionError,
    "ConfigurationError": ValueError,
    "DataDirectoryError": dawnchorus.ConfigurationError,
    "DeadlineExceeded": (dawnchorus.SaveError, TimeoutError),
    "FragmentAbsent": KeyError,
    "FragmentUnavailable": LookupError,
    "FragmentUndecodable": ValueError,
    "InvalidRequestError": ValueError,
    "LaunchError": dawnchorus.ConfigurationError,
    "PlacementError": dawnchorus.ConfigurationError,
    "SaveIncomplete": dawnchorus.SaveError,
    "SaveRejected": dawnchorus.SaveError,
    "StoreCorrupt": dawnchorus.StoreError,
    "StoreFull": dawnchorus.StoreError,
    "TopologyError": dawnchorus.ConfigurationError,
    "UnknownKindError": KeyError,
}


def parameters(function: object, kind: object) -> dict[str, object]:
    """Return the parameters of one kind with their defaults, `...` for none; without self."""
    assert callable(function)
    return {
        name: ... if parameter.default is parameter.empty else parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is kind and name != "self"
    }


def test_public_names_exist_and_star_import_gives_them() -> None:
    assert set(dawnchorus.__all__) >= NAMES
    assert all(hasattr(dawnchorus, name) for name in dawnchorus.__all__)
    assert list(dawnchorus.__all__) == sorted(dawnchorus.__all__)


def test_every_error_is_ours_and_a_python_kind() -> None:
    errors = {
        name for name in NAMES if isinstance(value := getattr(dawnchorus, name), type) and issubclass(value, Exception)
    }
    assert errors > set(BASES)
    for name in errors:
        assert issubclass(getattr(dawnchorus, name), dawnchorus.DawnchorusError)
    for name, bases in BASES.items():
        for base in bases if isinstance(bases, tuple) else (bases,):
            assert issubclass(getattr(dawnchorus, name), base), name
    assert not issubclass(dawnchorus.FragmentUnavailable, KeyError), "absent and unavailable are told apart"


@pytest.mark.parametrize(
    ("function", "positional", "keywords"),
    [
        (
            connect,
            {"source": ...},
            {"types": None, "enc_hook": None, "dec_hook": None, "ext_hook": None, "allow_lossy_values": False},
        ),
        (Cluster.wake, {"agent_id": ..., "kinds": None, "deadline_s": None}, {}),
        (Cluster.wake_many, {"ids": ..., "kinds": None, "deadline_s": None}, {}),
        (Cluster.wake_stream, {"ids": ..., "kinds": None, "deadline_s": None}, {}),
        (
            Cluster.save,
            {"agent_id": ..., "fragments": ...},
            {"expect": None, "ttl_s": None, "write_id": None, "deadline_s": None},
        ),
        (Cluster.save_many, {"agents": ...}, {"deadline_s": None}),
        (Cluster.delete, {"agent_id": ..., "kinds": None}, {"expect": None, "deadline_s": None}),
        (Cluster.agents, {"store": None}, {}),
        (AgentState.get, {"kind": ..., "default": None}, {}),
        (AgentState.outcome, {"kind": ...}, {}),
        (AgentState.version, {"kind": ...}, {}),
        (AgentState.detach, {}, {}),
    ],
)
def test_signatures(function: object, positional: dict[str, object], keywords: dict[str, object]) -> None:
    taken = parameters(function, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert list(taken.items())[: len(positional)] == list(positional.items())
    assert all(default is not ... for default in list(taken.values())[len(positional) :]), "more only with defaults"
    named = parameters(function, inspect.Parameter.KEYWORD_ONLY)
    assert {name: named[name] for name in keywords} == keywords
    assert all(default is not ... for default in named.values())


def test_outcomes() -> None:
    assert {outcome.name for outcome in Outcome} >= {
        "OK",
        "ABSENT",
        "EXPIRED",
        "TIMEOUT",
        "UNAVAILABLE",
        "SHED",
        "FAULT",
    }


@pytest.mark.parametrize("face", FACES)
async def test_the_program_of_the_documentation_runs(face: str) -> None:
    topology = fake_topology()
    async with fake_cluster(topology), opened(face, topology) as cluster:
        saved = await cluster.save("agent-42", {"profile": {"name": "Ada"}, "session": b"raw"})
        assert isinstance(saved, Saved)
        assert set(saved.versions) == {"profile", "session"}
        future = cluster.wake("agent-42")
        assert hasattr(future, "add_done_callback"), "wake returns a future, which gather takes as it is"
        state = await future
        assert isinstance(state, AgentState)
        assert state["profile"] == {"name": "Ada"}
        assert state["session"] == b"raw"
        assert state.get("history", "none yet") == "none yet"
        assert state.outcome("history") is Outcome.ABSENT
        assert (state.agent_id, state.complete, state.degraded) == ("agent-42", True, ())
        assert "profile" in state
        assert "history" not in state
        assert state.detach() is state
        states = await cluster.wake_many(["agent-42", "nobody"])
        assert [isinstance(state, AgentState) for state in states] == [True, True]
        stream = cluster.wake_stream(["agent-42"])
        assert isinstance(stream, AsyncGenerator)
        assert [state.agent_id async for state in stream] == ["agent-42"]
        results = await cluster.save_many({"agent-1": {"session": {}}, "agent-2": {"nonsense": {}}})
        assert isinstance(results["agent-1"], Saved)
        assert isinstance(results["agent-2"], dawnchorus.UnknownKindError)
        assert [agent_id async for agent_id in cluster.agents()] == ["agent-1", "agent-42"]
        assert isinstance(await cluster.delete("agent-42"), Saved)
        with pytest.raises(dawnchorus.AgentNotFound):
            await cluster.wake("agent-42")


def test_missing_topology_is_a_topology_error(tmp_path: object) -> None:
    with pytest.raises(dawnchorus.TopologyError, match=r"missing\.toml"):
        connect(f"{tmp_path}/missing.toml")


def test_errors_that_are_key_errors_read_as_sentences() -> None:
    assert str(dawnchorus.FragmentAbsent("agent 'a': session is absent")) == "agent 'a': session is absent"
    assert str(dawnchorus.UnknownKindError("there is no kind 'x'")) == "there is no kind 'x'"

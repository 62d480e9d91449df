"""The arguments of a save: the values they accept, and errors that fail only the caller's own call."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest

from dawnchorus import FragmentUnavailable, InvalidRequestError, Saved, UnknownKindError
from dawnchorus.router.client.kind_registry import Kinds
from dawnchorus.router.client.save_request import Expect, deletions, expectations, operations
from dawnchorus.router.saves.agent_write import SavedVersions
from dawnchorus.router.saves.write_token import WriteToken
from dawnchorus.wire.cluster.topology import KindSpec
from dawnchorus.wire.protocol.messages import DeleteKind, Put
from tests.support.fake_nodes import fake_client, fake_topology

SPECS = {"a": KindSpec("one", required=True), "b": KindSpec("one"), "c": KindSpec("two"), "d": KindSpec("three")}
KINDS = Kinds(fake_topology(kinds=SPECS), None)
TOKEN = WriteToken(b"\x01", {"one": 1})


class Number(int):
    """A number of a library's own class."""


class Name(str):
    """A string of a library's own class."""


def expected(expect: Expect, *written: str) -> dict[str, dict[str, int]]:
    """Return the versions that a save of these kinds of agent "x" expects, by store."""
    return expectations(KINDS, "x", expect, operations(KINDS, dict.fromkeys(written, 1), None, None))


# --- operations ---


def test_dropped_kinds_follow_written_kinds_of_their_store() -> None:
    by_store = operations(KINDS, {"a": 1}, None, ["b", "c"])
    kinds = {
        store: [(type(one), one.kind) for one in some if isinstance(one, Put | DeleteKind)]
        for store, some in by_store.items()
    }
    assert kinds == {"one": [(Put, "a"), (DeleteKind, "b")], "two": [(DeleteKind, "c")]}
    assert operations(KINDS, {}, None, ["c"]) == {"two": [DeleteKind("c")]}


def test_kind_both_written_and_dropped_is_rejected() -> None:
    with pytest.raises(InvalidRequestError, match="both write and drop 'b'"):
        operations(KINDS, {"a": 1, "b": 2}, None, ["b"])
    with pytest.raises(InvalidRequestError, match="the string 'b'"):
        operations(KINDS, {"a": 1}, None, "b")
    with pytest.raises(UnknownKindError):
        operations(KINDS, {"a": 1}, None, ["nonsense"])
    with pytest.raises(InvalidRequestError, match="at least one kind"):
        operations(KINDS, {}, None, [])
    with pytest.raises(InvalidRequestError, match="at least one kind"):
        operations(KINDS, {}, None, None)


@pytest.mark.parametrize("fragments", [None, 5, ["a"], "a", b"a"])
def test_fragments_that_are_no_mapping_are_rejected(fragments: Any) -> None:
    with pytest.raises(InvalidRequestError, match="mapping of kinds"):
        operations(KINDS, fragments, None, None)


# --- expectations ---


def test_expectation_is_mapping_zero_or_none() -> None:
    assert expected(None, "a") == {}
    assert expected(0, "a", "b", "c") == {"one": {"a": 0, "b": 0}, "two": {"c": 0}}
    assert expected({"a": 5, "c": 6}, "a", "b", "c") == {"one": {"a": 5}, "two": {"c": 6}}
    assert expected({"b": 5}, "a") == {"one": {"b": 5}}, "of a kind that is not written, in its store"
    assert expected({}, "a") == {}
    assert expectations(KINDS, "x", 0, deletions(KINDS, None))["one"] == {"a": 0, "b": 0}


@pytest.mark.parametrize("expect", [1, -1, True, False, 0.0, Fraction(0), "a", b"", [0], {"d": 0}])
def test_invalid_expectation_is_rejected(expect: Any) -> None:
    with pytest.raises(InvalidRequestError, match="expect"):
        expected(expect, "a", "c")


@pytest.mark.parametrize("version", [-1, 1 << 64, True, 1.0, Fraction(1), None, "1", b"1"])
def test_invalid_expected_version_is_rejected(version: Any) -> None:
    with pytest.raises(InvalidRequestError, match="is no version"):
        expected({"a": version}, "a")


def test_version_and_name_subclasses_become_plain() -> None:
    [(store, versions)] = expected({Name("a"): Number(7)}, "a").items()
    [(kind, version)] = versions.items()
    assert (store, kind, version) == ("one", "a", 7)
    assert [type(exact) for exact in (kind, version)] == [str, int]


async def test_expected_state_must_know_every_written_kind() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("agent", profile=1, session=2)
        state = await cluster.wake("agent", kinds=["profile", "history"])
        kinds = Kinds(cluster.topology, None)

        def of(agent_id: str, *written: str) -> Mapping[str, Mapping[str, int]]:
            return expectations(kinds, agent_id, state, operations(kinds, dict.fromkeys(written, 1), None, None))

        assert of("agent", "profile") == {"id": {"profile": state.version("profile")}}
        assert of("agent", "history") == {"old": {"history": 0}}
        with pytest.raises(FragmentUnavailable, match="session"):
            of("agent", "profile", "session")
        with pytest.raises(InvalidRequestError, match="agent 'agent' was, not 'another'"):
            of("another", "profile")


def test_save_result_is_expected_like_state() -> None:
    versions = SavedVersions({"a": 5, "b": 6})
    versions.deleted = frozenset({"b"})
    saved = Saved("x", versions, TOKEN)
    assert expected(saved, "a") == {"one": {"a": 5}}
    assert expected(saved, "a", "b") == {"one": {"a": 5, "b": 0}}, "what it deleted is not there"
    assert expected(saved.versions, "a") == {"one": {"a": 5, "b": 0}}
    with pytest.raises(InvalidRequestError, match="did not write c"):
        expected(saved, "a", "c")
    with pytest.raises(InvalidRequestError, match="agent 'y' was"):
        expected(Saved("y", {"a": 5}, TOKEN), "a")

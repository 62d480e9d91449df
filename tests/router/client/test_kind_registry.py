"""The kinds that a router knows: the store of each, the names in a Fetch, and values as bytes."""

from typing import Any

import pytest

from dawnchorus import InvalidRequestError, UnknownKindError
from dawnchorus.router.client.kind_registry import Kinds
from dawnchorus.router.client.value_codec import ValueRules
from dawnchorus.router.ids import check_agent_id, valid_ids
from dawnchorus.wire.cluster.topology import KindSpec
from dawnchorus.wire.protocol.messages import Put
from tests.support.fake_nodes import fake_client, fake_topology, placement_of

SPECS = {"a": KindSpec("one", required=True), "b": KindSpec("one"), "c": KindSpec("two"), "d": KindSpec("three")}
TOPOLOGY = fake_topology(kinds=SPECS)
PLACEMENT = placement_of(TOPOLOGY)
KINDS = Kinds(TOPOLOGY)


def test_all_kinds_read_complete_images_of_every_store() -> None:
    reading = KINDS.read_spec(PLACEMENT, None)
    assert [store.name for store in reading.routes.stores] == ["one", "two", "three"]
    assert reading.kinds is None
    assert {kind: view.store for kind, view in reading.views.items()} == {"a": 0, "b": 0, "c": 1, "d": 2}
    assert reading.required == ("a",)


def test_chosen_kinds_read_only_their_stores() -> None:
    reading = KINDS.read_spec(PLACEMENT, ["d", "b"])
    assert [store.name for store in reading.routes.stores] == ["three", "one"]
    assert reading.kinds == ["d", "b"]
    assert {kind: view.store for kind, view in reading.views.items()} == {"a": -1, "b": 1, "c": -1, "d": 0}
    assert reading.required == ()


def test_all_kinds_of_store_need_no_names() -> None:
    assert KINDS.read_spec(PLACEMENT, ["b", "a", "a"]).kinds is None


@pytest.mark.parametrize("kinds", [["nonsense"], ["a", "nonsense"]])
def test_unknown_kind_is_named_in_error(kinds: list[str]) -> None:
    with pytest.raises(UnknownKindError, match="'nonsense'; the topology has a, b, c, d"):
        KINDS.read_spec(PLACEMENT, kinds)
    with pytest.raises(UnknownKindError):
        KINDS.stores_of(kinds)
    with pytest.raises(UnknownKindError):
        KINDS.by_store(dict.fromkeys(kinds))
    with pytest.raises(UnknownKindError):
        Kinds(TOPOLOGY, ValueRules(dict.fromkeys(kinds, int)))


async def test_single_kind_name_or_no_kind_is_rejected() -> None:
    async with fake_client() as (cluster, nodes):
        for call in (
            lambda: cluster.wake("a", kinds="profile"),
            lambda: cluster.wake_many(["a"], kinds="profile"),
            lambda: cluster.delete("a", kinds="profile"),
        ):
            with pytest.raises(InvalidRequestError, match="'profile'"):
                await call()
        with pytest.raises(InvalidRequestError, match="at least one kind"):
            await cluster.wake("a", kinds=[])
        assert not nodes.fetches()


def test_operations_by_store_begin_with_required_kinds() -> None:
    operations = KINDS.by_store({"b": 1, "c": 2, "a": 3})
    kinds = {store: [put.kind for put in puts if isinstance(put, Put)] for store, puts in operations.items()}
    assert kinds == {
        "one": ["a", "b"],
        "two": ["c"],
    }


class Name(str):
    """A kind's name from a library: equal to the plain name, but msgspec cannot encode it."""


def test_kind_name_subclass_is_kept_as_plain_string() -> None:
    kinds = Kinds(TOPOLOGY)
    for name in (Name("b"), "b"):
        [[put]] = kinds.by_store({name: 1}).values()
        assert isinstance(put, Put)
        assert type(put.kind) is str
    assert {type(kind) for some in kinds.stores_of([Name("c")]).values() for kind in some or ()} == {str}


def test_no_chosen_kinds_selects_all_of_every_store() -> None:
    assert KINDS.stores_of(None) == {"one": None, "two": None, "three": None}
    assert KINDS.stores_of(["b", "a", "d", "b"]) == {"one": ["b", "a"], "three": ["d"]}


@pytest.mark.parametrize("agent_id", ["a", "x" * 256, "世" * 85, "\x00"])
def test_valid_agent_id_becomes_utf8(agent_id: str) -> None:
    assert check_agent_id(agent_id) == agent_id.encode()


@pytest.mark.parametrize("agent_id", ["", "x" * 257, "世" * 86, "\ud800", 5, b"bytes", None])
def test_invalid_agent_id_is_rejected(agent_id: Any) -> None:
    with pytest.raises(InvalidRequestError):
        check_agent_id(agent_id)
    assert valid_ids(["good", agent_id, "fine"]) == (["good", "fine"], [b"good", b"fine"])

"""What a router knows of kinds: where each is kept, what a Fetch names, how values become bytes."""

from typing import Any

import pytest

from dawnchorus import InvalidRequestError, UnknownKindError
from dawnchorus.router.client.kind_registry import Kinds
from dawnchorus.router.client.value_codec import ValueRules
from dawnchorus.router.ids import check_agent_id, sound_ids
from dawnchorus.wire.cluster.topology import KindSpec
from dawnchorus.wire.protocol.messages import Put
from tests.support.fake_nodes import fake_client, fake_topology, placement_of

SPECS = {"a": KindSpec("one", required=True), "b": KindSpec("one"), "c": KindSpec("two"), "d": KindSpec("three")}
TOPOLOGY = fake_topology(kinds=SPECS)
PLACEMENT = placement_of(TOPOLOGY)
KINDS = Kinds(TOPOLOGY)


def test_all_kinds_ask_every_store_for_whole_images() -> None:
    reading = KINDS.read_spec(PLACEMENT, None)
    assert [store.name for store in reading.routes.stores] == ["one", "two", "three"]
    assert reading.kinds is None
    assert {kind: view.store for kind, view in reading.views.items()} == {"a": 0, "b": 0, "c": 1, "d": 2}
    assert reading.required == ("a",)


def test_some_kinds_ask_only_their_stores() -> None:
    reading = KINDS.read_spec(PLACEMENT, ["d", "b"])
    assert [store.name for store in reading.routes.stores] == ["three", "one"]
    assert reading.kinds == ["d", "b"]
    assert {kind: view.store for kind, view in reading.views.items()} == {"a": -1, "b": 1, "c": -1, "d": 0}
    assert reading.required == ()


def test_all_kinds_of_a_store_need_not_be_named() -> None:
    assert KINDS.read_spec(PLACEMENT, ["b", "a", "a"]).kinds is None


@pytest.mark.parametrize("kinds", [["nonsense"], ["a", "nonsense"]])
def test_an_unknown_kind_is_named(kinds: list[str]) -> None:
    with pytest.raises(UnknownKindError, match="'nonsense'; the topology has a, b, c, d"):
        KINDS.read_spec(PLACEMENT, kinds)
    with pytest.raises(UnknownKindError):
        KINDS.stores_of(kinds)
    with pytest.raises(UnknownKindError):
        KINDS.by_store(dict.fromkeys(kinds))
    with pytest.raises(UnknownKindError):
        Kinds(TOPOLOGY, ValueRules(dict.fromkeys(kinds, int)))


async def test_one_name_is_not_taken_for_a_list_of_letters() -> None:
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


def test_a_save_goes_by_store_with_required_kinds_first() -> None:
    operations = KINDS.by_store({"b": 1, "c": 2, "a": 3})
    kinds = {store: [put.kind for put in puts if isinstance(put, Put)] for store, puts in operations.items()}
    assert kinds == {
        "one": ["a", "b"],
        "two": ["c"],
    }


class Name(str):
    """A kind's name as a library may give it: it equals the name, and msgspec encodes none."""


def test_a_name_that_only_equals_a_kinds_does_not_get_into_what_is_kept_for_others() -> None:
    kinds = Kinds(TOPOLOGY)
    for name in (Name("b"), "b"):
        [[put]] = kinds.by_store({name: 1}).values()
        assert isinstance(put, Put)
        assert type(put.kind) is str
    assert {type(kind) for some in kinds.stores_of([Name("c")]).values() for kind in some or ()} == {str}


def test_a_delete_of_all_kinds_means_every_store_whole() -> None:
    assert KINDS.stores_of(None) == {"one": None, "two": None, "three": None}
    assert KINDS.stores_of(["b", "a", "d", "b"]) == {"one": ["b", "a"], "three": ["d"]}


@pytest.mark.parametrize("agent_id", ["a", "x" * 256, "世" * 85, "\x00"])
def test_a_sound_id_is_its_utf8(agent_id: str) -> None:
    assert check_agent_id(agent_id) == agent_id.encode()


@pytest.mark.parametrize("agent_id", ["", "x" * 257, "世" * 86, "\ud800", 5, b"bytes", None])
def test_an_id_that_no_agent_can_have_is_rejected(agent_id: Any) -> None:
    with pytest.raises(InvalidRequestError):
        check_agent_id(agent_id)
    assert sound_ids(["good", agent_id, "fine"]) == (["good", "fine"], [b"good", b"fine"])

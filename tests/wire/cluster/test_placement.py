"""Placements: the first one, bringing it up to date, what contradicts it, and an encoding that detects corruption."""

from typing import Any

import msgspec
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.wire.cluster.placement import (
    Placement,
    ShardPlacement,
    decode_placement,
    encode_placement,
    initial_placement,
    reconcile,
    with_new_generation,
)
from dawnchorus.wire.cluster.topology import KindSpec, NodeSpec, StoreSpec, Topology
from dawnchorus.wire.errors import ConfigurationError, PlacementError
from dawnchorus.wire.protocol.versions import GENERATION_MAX

UUID = "0123456789abcdef" * 2


def make_topology(**changes: Any) -> Topology:
    """Return two kinds in two stores; `live` on three nodes, `archive` on one of them."""
    topology = Topology(
        name="dev",
        data_dir="/srv/dev",
        stores={"live": StoreSpec(shards=5), "archive": StoreSpec(shards=2)},
        kinds={"session": KindSpec("live"), "history": KindSpec("archive")},
        nodes={
            "b": NodeSpec("b", "tcp://127.0.0.1:1", ("live",)),
            "a": NodeSpec("a", "tcp://127.0.0.1:2", ("archive", "live")),
            "c": NodeSpec("c", "tcp://127.0.0.1:3", ("live",)),
        },
    )
    return msgspec.structs.replace(topology, **changes)


def seal(content: dict[str, Any]) -> bytes:
    """Return a document with a right checksum, whatever its content."""
    checksum = f"{xxhash.xxh3_64_intdigest(msgspec.json.encode(content)):016x}"
    return msgspec.json.encode({"checksum": checksum, "placement": content})


def content_of(placement: Placement) -> dict[str, Any]:
    content: dict[str, Any] = msgspec.json.decode(encode_placement(placement))["placement"]
    return content


def test_first_placement_deals_shards_round() -> None:
    placement = initial_placement(make_topology(), UUID)
    assert [placed.node for placed in placement.shards["live"]] == ["b", "a", "c", "b", "a"]
    assert [placed.node for placed in placement.shards["archive"]] == ["a", "a"]
    assert {placed.epoch for shards in placement.shards.values() for placed in shards} == {0}
    assert placement.kinds == {"session": "live", "history": "archive"}
    assert (placement.cluster_uuid, placement.cluster) == (UUID, "dev")
    assert (placement.format, placement.revision, placement.generation) == (1, 0, 0)


def test_store_without_node_cannot_be_placed() -> None:
    topology = make_topology(nodes={"b": NodeSpec("b", "tcp://127.0.0.1:1", ("live",))})
    with pytest.raises(PlacementError, match=r"no node of the topology lists store 'archive'; add it"):
        initial_placement(topology, UUID)


def test_shards_of_node_have_index_and_epoch() -> None:
    placement = initial_placement(make_topology(), UUID)
    assert placement.shards_of("a") == [("live", 1, 0), ("live", 4, 0), ("archive", 0, 0), ("archive", 1, 0)]
    assert placement.shards_of("b") == [("live", 0, 0), ("live", 3, 0)]
    assert placement.shards_of("nobody") == []


def test_every_shard_belongs_to_exactly_one_node() -> None:
    topology = make_topology()
    placement = initial_placement(topology, UUID)
    owned = [entry for node in topology.nodes for entry in placement.shards_of(node)]
    assert len(owned) == len(set(owned)) == 7


def test_an_unchanged_topology_gives_back_the_same_object() -> None:
    placement = initial_placement(make_topology(), UUID)
    assert reconcile(make_topology(), placement) is placement


def test_new_kinds_stores_and_nodes_extend_a_placement() -> None:
    old = make_topology()
    placement = msgspec.structs.replace(initial_placement(old, UUID), revision=9, generation=4)
    new = make_topology(
        stores={"identity": StoreSpec(shards=3), **old.stores},
        kinds={"profile": KindSpec("identity"), "context": KindSpec("live"), **old.kinds},
        nodes={**old.nodes, "d": NodeSpec("d", "tcp://127.0.0.1:4", ("identity", "live"))},
    )
    extended = reconcile(new, placement)
    assert extended.shards == {**placement.shards, "identity": (ShardPlacement("d", 0),) * 3}
    assert extended.kinds == {**placement.kinds, "profile": "identity", "context": "live"}
    assert (extended.cluster_uuid, extended.revision, extended.generation) == (UUID, 9, 4)
    assert reconcile(new, extended) is extended


def test_node_joining_placed_store_gets_no_shards() -> None:
    placement = initial_placement(make_topology(), UUID)
    nodes = {**make_topology().nodes, "d": NodeSpec("d", "tcp://127.0.0.1:4", ("live",))}
    assert reconcile(make_topology(nodes=nodes), placement) is placement


def test_moved_shards_do_not_contradict_topology() -> None:
    placement = initial_placement(make_topology(), UUID)
    moved = msgspec.structs.replace(placement, shards={**placement.shards, "live": (ShardPlacement("c", 7),) * 5})
    nodes = {**make_topology().nodes, "b": NodeSpec("b", "tcp://127.0.0.1:99", ("live",))}
    assert reconcile(make_topology(nodes=nodes), moved) is moved


BASE = make_topology()


@pytest.mark.parametrize(
    ("changes", "problem", "remedy"),
    [
        (
            {"name": "prod"},
            "the placement is of cluster 'dev', the topology of cluster 'prod'",
            'set cluster.name = "dev", or give this cluster a cluster.data_dir of its own',
        ),
        (
            {"stores": {**BASE.stores, "live": StoreSpec(shards=6)}},
            "store 'live' has 5 shards, the topology says 6",
            "set stores.live.shards = 5",
        ),
        (
            {"kinds": {**BASE.kinds, "session": KindSpec("archive")}},
            "kind 'session' is kept in store 'live', the topology moves it to 'archive'",
            'set fragments.session.store = "live"',
        ),
        (
            {"kinds": {"history": KindSpec("archive")}},
            "kind 'session' was removed from the topology",
            'put [fragments.session] back with store = "live"',
        ),
        (
            {"stores": {"live": StoreSpec(shards=5)}, "kinds": {"session": KindSpec("live")}},
            "store 'archive' was removed from the topology",
            "put [stores.archive] back with shards = 2",
        ),
        (
            {"nodes": {name: node for name, node in BASE.nodes.items() if name != "c"}},
            "node 'c' was removed from the topology, but owns 1 shards of store 'live'",
            "put its [[nodes]] section back",
        ),
        (
            {"nodes": {**BASE.nodes, "a": NodeSpec("a", "tcp://127.0.0.1:2", ("archive",))}},
            "node 'a' no longer lists store 'live', but owns 2 of its shards",
            'add "live" to the node\'s stores',
        ),
    ],
)
def test_each_contradiction_is_rejected_with_reason_and_remedy(
    changes: dict[str, Any], problem: str, remedy: str
) -> None:
    placement = initial_placement(BASE, UUID)
    with pytest.raises(PlacementError) as caught:
        reconcile(make_topology(**changes), placement)
    assert problem in str(caught.value)
    assert str(caught.value).endswith(remedy)
    assert isinstance(caught.value, ConfigurationError)


def test_generation_grows_and_nothing_else_changes() -> None:
    placement = initial_placement(make_topology(), UUID)
    assert with_new_generation(placement, "nobody") == msgspec.structs.replace(placement, generation=1)


def test_generations_end_with_bits_of_versions() -> None:
    placement = msgspec.structs.replace(initial_placement(make_topology(), UUID), generation=GENERATION_MAX - 1)
    last = with_new_generation(placement, "nobody")
    assert last.generation == (1 << 24) - 1
    with pytest.raises(PlacementError, match=r"all 16777215 generations .* are used up .*; export its agents"):
        with_new_generation(last, "nobody")


names = st.from_regex(r"[a-z][a-z0-9_-]{0,62}", fullmatch=True)
shard_placements = st.builds(ShardPlacement, node=names, epoch=st.integers(1, (1 << 63) - 1))


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    """Draw any placement that can be kept."""
    shards = draw(st.dictionaries(names, st.lists(shard_placements, min_size=1, max_size=5).map(tuple), max_size=4))
    stores = st.sampled_from(list(shards)) if shards else st.nothing()
    return Placement(
        cluster_uuid=draw(st.uuids()).hex,
        cluster=draw(names),
        revision=draw(st.integers(0, (1 << 63) - 1)),
        generation=draw(st.integers(0, GENERATION_MAX)),
        kinds=draw(st.dictionaries(names, stores, max_size=5 if shards else 0)),
        shards=shards,
    )


@given(placements())
def test_a_placement_survives_its_encoding(placement: Placement) -> None:
    encoded = encode_placement(placement)
    assert decode_placement(encoded) == placement
    assert encoded.endswith(b"}\n")
    assert decode_placement(msgspec.json.format(encoded, indent=0)) == placement


def test_an_encoded_placement_is_readable() -> None:
    lines = encode_placement(initial_placement(make_topology(), UUID)).decode().splitlines()
    assert f'    "cluster_uuid": "{UUID}",' in lines
    assert '      "session": "live",' in lines


@given(placements(), st.data())
def test_flipped_bit_is_noticed_or_harmless(placement: Placement, data: st.DataObject) -> None:
    encoded = bytearray(encode_placement(placement))
    if data.draw(st.booleans()):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del encoded[data.draw(st.integers(0, len(encoded) - 2)) :]
    try:
        decoded = decode_placement(bytes(encoded))
    except PlacementError as error:
        assert str(error).startswith("the placement is corrupt: ")  # noqa: PT017 - either outcome is right
        assert str(error).endswith("; restore it from a backup; the shards were not touched")  # noqa: PT017
    else:
        assert decoded == placement  # a bit of white space


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_corrupt(arbitrary: bytes) -> None:
    with pytest.raises(PlacementError, match="the placement is corrupt"):
        decode_placement(arbitrary)


@pytest.mark.parametrize("encoded", [b"", b"{}", b"null", b"[]", b"[" * 100_000, b'{"checksum": "", "placement": 7}'])
def test_json_of_another_shape_is_corrupt(encoded: bytes) -> None:
    with pytest.raises(PlacementError, match="the placement is corrupt"):
        decode_placement(encoded)


def test_an_edit_by_hand_is_noticed() -> None:
    encoded = encode_placement(initial_placement(make_topology(), UUID))
    with pytest.raises(PlacementError, match="does not match its checksum"):
        decode_placement(encoded.replace(b'"session": "live"', b'"session": "archive"'))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cluster_uuid": "xyz"}, "cluster_uuid 'xyz' is not 32 hexadecimal digits"),
        (
            {"cluster_uuid": UUID.upper()},
            "cluster_uuid '0123456789ABCDEF0123456789ABCDEF' is not 32 hexadecimal digits",
        ),
        ({"revision": -1}, "revision -1 is negative"),
        ({"revision": "1"}, "Expected `int`, got `str`"),
        ({"generation": GENERATION_MAX + 1}, "generation 16777216 is outside 0 to 16777215"),
        ({"kinds": {"session": "nowhere"}}, "kind 'session' is in store 'nowhere', which has no shards"),
        ({"shards": {"live": [], "archive": [["a", 1, None]]}}, "store 'live' has 0 shards"),
        ({"shards": {"live": [["a", 1]] * 1025, "archive": [["a", 1]]}}, "store 'live' has 1025 shards"),
        (
            {"shards": {"live": [["a", -1]], "archive": [["a", 1]]}},
            "store 'live' has a shard without an owner or an ep",
        ),
        ({"shards": {"live": [["", 1]], "archive": [["a", 1]]}}, "store 'live' has a shard without an owner or an ep"),
        ({"shards": {"live": [["a"]], "archive": [["a", 1]]}}, "Expected `array` of at least length 2"),
    ],
)
def test_impossible_values_are_corrupt_despite_checksum(changes: dict[str, Any], problem: str) -> None:
    content = content_of(initial_placement(make_topology(), UUID)) | changes
    with pytest.raises(PlacementError) as caught:
        decode_placement(seal(content))
    assert f"the placement is corrupt: {problem}" in str(caught.value)


def test_missing_field_is_corrupt() -> None:
    content = content_of(initial_placement(make_topology(), UUID))
    del content["shards"]
    with pytest.raises(PlacementError, match="corrupt: Object missing required field `shards`"):
        decode_placement(seal(content))


@pytest.mark.parametrize("number", [0, 2, None, "1"])
def test_another_format_is_rejected(number: Any) -> None:
    content = content_of(initial_placement(make_topology(), UUID)) | {"format": number}
    with pytest.raises(PlacementError, match=r"has format .*, and this version of dawnchorus reads format 1 only"):
        decode_placement(seal(content))


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": {"live": [["a", 1, None, "later"]], "archive": [["a", 1, None]]}},
        {"shards": {"live": [["a", 1, {"to": "b"}]], "archive": [["a", 1, None]]}},
    ],
)
def test_shard_in_unknown_state_is_rejected(changes: dict[str, Any]) -> None:
    content = content_of(initial_placement(make_topology(), UUID)) | changes
    with pytest.raises(
        PlacementError, match="has shards in a state that this version of dawnchorus does not know; use the"
    ):
        decode_placement(seal(content))


def test_fields_that_have_defaults_may_be_missing() -> None:
    placement = initial_placement(make_topology(), UUID)
    content = content_of(placement)
    del content["generation"]
    content["shards"] = {store: [shard[:2] for shard in shards] for store, shards in content["shards"].items()}
    assert decode_placement(seal(content)) == placement


@given(st.dictionaries(st.text(), st.one_of(st.none(), st.integers(-9, 9), st.text(), st.lists(st.integers(0, 9)))))
def test_unknown_fields_are_kept_and_written_back(later: dict[str, Any]) -> None:
    placement = initial_placement(make_topology(), UUID)
    content = content_of(placement)
    later = {name: value for name, value in later.items() if name not in {*content, "life"}}
    decoded = decode_placement(seal(content | later))
    assert decoded.unknown == later
    changed = with_new_generation(decoded, "a")
    assert content_of(changed) == content_of(with_new_generation(placement, "a")) | later

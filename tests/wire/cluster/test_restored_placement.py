"""The placement of a cluster that comes back from a backup."""

from pathlib import Path

import msgspec
import pytest

from dawnchorus.wire.cluster.file_control_store import FileControlStore
from dawnchorus.wire.cluster.placement import (
    GENERATIONS_SKIPPED,
    ShardPlacement,
    decode_placement,
    encode_for_clients,
    encode_placement,
    initial_placement,
    restored,
)
from dawnchorus.wire.cluster.topology import KindSpec, NodeSpec, StoreSpec, Topology
from dawnchorus.wire.errors import PlacementError
from dawnchorus.wire.protocol.versions import GENERATION_MAX


def topology(*nodes: str, shards: int = 4) -> Topology:
    """Return two stores on these nodes."""
    return Topology(
        "test",
        stores={"live": StoreSpec(shards=shards), "archive": StoreSpec(shards=1)},
        kinds={"context": KindSpec("live")},
        nodes={
            name: NodeSpec(name, f"tcp://127.0.0.1:{7000 + n}", ("live", "archive")) for n, name in enumerate(nodes)
        },
    )


PLACEMENT = msgspec.structs.replace(initial_placement(topology("a", "b"), "ab" * 16), generation=9, revision=30)


LIFE = "cd" * 16


def test_restore_passes_over_used_generations() -> None:
    for newest in (3, 9):
        made = restored(topology("a", "b"), PLACEMENT, newest, life=LIFE)
        assert (made.generation, made.revision) == (9 + GENERATIONS_SKIPPED, 30 + GENERATIONS_SKIPPED)
    assert restored(topology("a", "b"), PLACEMENT, 500, life=LIFE, draw=7).generation == 507 + GENERATIONS_SKIPPED


def test_restored_placement_names_its_life() -> None:
    made = restored(topology("a", "b"), PLACEMENT, 1, life=LIFE)
    assert decode_placement(encode_placement(made)) == made
    assert made.life == LIFE != PLACEMENT.life
    assert b"life" not in encode_for_clients(made)
    assert b"life" not in encode_placement(PLACEMENT), "what every version reads stays as it was"
    with pytest.raises(PlacementError, match="life 'second' is not 32 hexadecimal digits"):
        decode_placement(encode_placement(msgspec.structs.replace(made, life="second")))


def test_restored_shards_are_opened_and_keep_owners() -> None:
    made = restored(topology("a", "b", "c"), PLACEMENT, 1, life=LIFE)
    assert made.shards["live"] == tuple(ShardPlacement("ab"[number % 2], 1) for number in range(4))
    assert made.cluster_uuid == PLACEMENT.cluster_uuid


def test_shards_of_gone_node_get_new_epoch() -> None:
    made = restored(topology("b", "c"), PLACEMENT, 1, life=LIFE)
    assert made.shards["live"] == (
        ShardPlacement("b", 2),
        ShardPlacement("b", 1),
        ShardPlacement("b", 2),
        ShardPlacement("b", 1),
    )
    assert made.shards["archive"] == (ShardPlacement("b", 2),)


def test_a_topology_that_contradicts_it_is_rejected() -> None:
    with pytest.raises(PlacementError, match="store 'live' has 4 shards, the topology says 5"):
        restored(topology("a", shards=5), PLACEMENT, 1, life=LIFE)


def test_generations_that_are_used_up_are_rejected() -> None:
    with pytest.raises(PlacementError, match="beyond the last one"):
        restored(topology("a", "b"), PLACEMENT, GENERATION_MAX - 1, life=LIFE)


async def test_restored_placement_is_kept_unchanged(tmp_path: Path) -> None:
    control = FileControlStore.in_directory(tmp_path / "data")
    assert control.put_restored(PLACEMENT)
    assert await control.read() == PLACEMENT
    assert not control.put_restored(msgspec.structs.replace(PLACEMENT, generation=1))
    assert await control.read() == PLACEMENT

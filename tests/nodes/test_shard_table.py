"""Shards: opened by the placement, data of others rejected, lost or corrupt ones named and the rest served."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from dawnchorus.nodes.shard_table import (
    OwnedShard,
    any_shard_on_disk,
    close_shards,
    locked_directory,
    open_shards,
    shard_directory,
)
from dawnchorus.wire.cluster.placement import Placement, initial_placement, with_new_generation
from dawnchorus.wire.cluster.topology import Topology
from dawnchorus.wire.errors import DataDirectoryError, StoreCorrupt, StoreError, StoreFull
from dawnchorus.wire.protocol.messages import Put, SectionStatus, Write
from tests.support.raw_nodes import NODE, make_topology
from tests.support.write_ids import new_write_id

UUID = "ab" * 16


@pytest.fixture
def topology(tmp_path: Path) -> Topology:
    return make_topology(tmp_path)


@contextmanager
def opened(topology: Topology, placement: Placement, node: str = NODE) -> Generator[dict[tuple[str, int], OwnedShard]]:
    shards = open_shards(topology, placement, node)
    try:
        yield shards
    finally:
        close_shards(shards)


def written(topology: Topology) -> Placement:
    """Return a placement whose shards all have been opened, with an agent in each."""
    placement = initial_placement(topology, UUID)
    with opened(topology, placement) as shards:
        placement = with_new_generation(placement, NODE)
        for owned in shards.values():
            assert owned.fragments is not None
            owned.fragments.begin_generation(placement.generation)
            owned.fragments.commit(
                [Write(b"a", new_write_id(), 0, [Put(min(owned.kinds), 0, 0, b"v")])], 1, owned.epoch
            )
    return placement


def test_new_placements_shards_are_made_with_their_identity(topology: Topology) -> None:
    with opened(topology, initial_placement(topology, UUID)) as shards:
        assert list(shards) == [(store, shard) for store in ("identity", "live", "archive") for shard in (0, 1)]
        for (store, shard), owned in shards.items():
            assert (owned.store, owned.shard, owned.epoch, owned.damage) == (store, shard, 1, "")
            assert owned.kinds == frozenset(topology.kinds_of(store))
            assert owned.fragments is not None
            identity = owned.fragments.identity
            assert (identity.cluster_uuid, identity.store, identity.shard) == (UUID, store, shard)
            assert (identity.shards, identity.epoch) == (2, 1)
            assert shard_directory(topology, NODE, store, shard).joinpath("data.mdb").exists()


def test_shards_made_by_an_interrupted_start_are_opened(topology: Topology) -> None:
    for _ in range(2):
        with opened(topology, initial_placement(topology, UUID)) as shards:
            assert all(owned.fragments is not None for owned in shards.values())


def test_a_node_opens_its_own_shards_only(tmp_path: Path) -> None:
    topology = make_topology(tmp_path, nodes={"one": ["identity", "live", "archive"], "two": ["live"]})
    with opened(topology, initial_placement(topology, UUID), "two") as shards:
        assert list(shards) == [("live", 1)]
    assert not (Path(topology.data_dir) / "one").exists()


def test_a_closed_shard_is_not_served(topology: Topology) -> None:
    shards = open_shards(topology, initial_placement(topology, UUID), NODE)
    close_shards(shards)
    assert all(owned.fragments is None for owned in shards.values())
    close_shards(shards)


@pytest.mark.parametrize("loss", ["folder", "file", "empty", "cut", "garbage"])
def test_lost_or_corrupt_shard_named_and_others_served(
    topology: Topology, loss: str, caplog: pytest.LogCaptureFixture
) -> None:
    placement = written(topology)
    directory = shard_directory(topology, NODE, "live", 1)
    data = directory / "data.mdb"
    match loss:
        case "folder":
            shutil.rmtree(directory)
        case "file":
            data.unlink()
        case "empty":
            os.truncate(data, 0)
        case "cut":
            os.truncate(data, data.stat().st_size - 4_096)
        case _:
            data.write_bytes(b"garbage" * 1_000)
    with caplog.at_level(logging.ERROR), opened(topology, placement) as shards:
        corrupt = shards["live", 1]
        assert corrupt.fragments is None
        assert str(directory) in corrupt.damage
        assert corrupt.status().state == corrupt.damage
        assert corrupt.status().version == corrupt.status().agents == 0
        for key, owned in shards.items():
            assert (owned.fragments is None) == (key == ("live", 1))
            assert key == ("live", 1) or (owned.status().state, owned.status().agents) == ("serving", 1)
    [record] = caplog.records
    assert (record.__dict__["store"], record.__dict__["shard"]) == ("live", 1)
    assert record.__dict__["detail"] == corrupt.damage
    assert not directory.exists() or data.exists() == (loss != "file"), "nothing was made in its place"


def test_data_of_another_cluster_is_rejected(topology: Topology) -> None:
    placement = written(topology)
    other = msgspec.structs.replace(placement, cluster_uuid="cd" * 16)
    with pytest.raises(DataDirectoryError, match=f"cluster_uuid '{UUID}', the placement says '{'cd' * 16}'"):
        open_shards(topology, other, NODE)
    with opened(topology, placement) as shards:
        assert all(owned.fragments is not None for owned in shards.values()), "a rejection leaves nothing open"


def test_data_of_another_shard_count_is_rejected(tmp_path: Path) -> None:
    written(make_topology(tmp_path))
    topology = make_topology(tmp_path, shards=3)
    with pytest.raises(DataDirectoryError, match="shards 2, the placement says 3"):
        open_shards(topology, initial_placement(topology, UUID), NODE)


def test_swapped_shards_are_rejected(topology: Topology) -> None:
    placement = written(topology)
    first, second = (shard_directory(topology, NODE, "live", shard) for shard in (0, 1))
    first.rename(first.with_name("aside"))
    second.rename(first)
    first.with_name("aside").rename(second)
    with pytest.raises(DataDirectoryError, match="shard 1, the placement says 0"):
        open_shards(topology, placement, NODE)


def test_shards_of_another_store_are_rejected(topology: Topology) -> None:
    placement = written(topology)
    shutil.rmtree(shard_directory(topology, NODE, "live", 0))
    shutil.copytree(shard_directory(topology, NODE, "archive", 0), shard_directory(topology, NODE, "live", 0))
    with pytest.raises(DataDirectoryError, match="store 'archive', the placement says 'live'"):
        open_shards(topology, placement, NODE)


def test_shard_in_another_nodes_directory_counts_as_lost(tmp_path: Path) -> None:
    topology = make_topology(tmp_path, nodes={NODE: ["identity", "live", "archive"], "other": ["live"]})
    placement = initial_placement(topology, UUID)
    with opened(topology, placement), opened(topology, placement, "other"):
        placement = with_new_generation(with_new_generation(placement, NODE), "other")
    mine, others = shard_directory(topology, NODE, "live", 0), shard_directory(topology, "other", "live", 0)
    mine.rename(others)
    with opened(topology, placement) as shards:
        assert shards["live", 0].fragments is None
        assert "missing" in shards["live", 0].damage
    assert others.joinpath("data.mdb").exists()
    assert not mine.exists()


def test_file_in_place_of_a_store_is_rejected(topology: Topology) -> None:
    store = shard_directory(topology, NODE, "live", 0).parent
    store.parent.mkdir(parents=True)
    store.write_text("no folder")
    with pytest.raises(DataDirectoryError, match=r"live/0000: cannot be made: Not a directory"):
        open_shards(topology, initial_placement(topology, UUID), NODE)


@pytest.mark.parametrize(
    ("error", "status", "damage"),
    [
        (StoreCorrupt("bad page"), SectionStatus.CORRUPT, "bad page"),
        (StoreFull("no space"), SectionStatus.DISK_FULL, ""),
        (StoreError("odd"), SectionStatus.INTERNAL, ""),
    ],
)
def test_shard_errors_become_section_status_and_log_line(
    error: StoreError, status: SectionStatus, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    owned = OwnedShard("live", 3, 1, frozenset(), None)
    assert owned.note(error) == status
    assert owned.damage == damage
    assert [record.__dict__["detail"] for record in caplog.records] == [str(error)]


# --- any shard on disk ---


def test_data_directory_without_shards_has_none(topology: Topology) -> None:
    assert any_shard_on_disk(topology) is None
    directory = Path(topology.data_dir) / NODE / "live" / "0000"
    directory.mkdir(parents=True)
    assert any_shard_on_disk(topology) is None


def test_a_shard_of_any_node_is_found(topology: Topology) -> None:
    written(topology)
    directory = shard_directory(topology, NODE, "archive", 0)
    assert any_shard_on_disk(topology) == str(directory)
    directory.parent.parent.rename(Path(topology.data_dir) / "a-node-that-is-no-more")
    assert any_shard_on_disk(topology) == str(directory).replace(NODE, "a-node-that-is-no-more")


@pytest.mark.parametrize("length", [0, 100, 3 * 4_096])
def test_corrupt_shard_counts_as_one(topology: Topology, length: int) -> None:
    written(topology)
    for data in Path(topology.data_dir).glob("*/*/*/data.mdb"):
        os.truncate(data, length)
    assert any_shard_on_disk(topology) == str(shard_directory(topology, NODE, "archive", 0))


# --- the lock ---

HOLDER = """
import sys
from pathlib import Path
from dawnchorus.nodes.shard_table import locked_directory
with locked_directory(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_directory_stays_locked_until_its_holder_ends(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "node"
    command = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        in_use = f"{directory}: in use by process {holder.pid}; end it first"
        with pytest.raises(DataDirectoryError, match=in_use), locked_directory(directory):
            pytest.fail("two hold it")
        holder.kill()
        holder.wait()
    for _ in range(2):
        with locked_directory(directory):
            assert directory.joinpath("lock").read_text() == f"{os.getpid()}\n"
            with pytest.raises(DataDirectoryError, match="in use"), locked_directory(directory):
                pytest.fail("it is held twice")


@pytest.mark.parametrize("directory", ["file", "file/below", "/proc/no-such-folder"])
def test_unwritable_directory_is_rejected(tmp_path: Path, directory: str) -> None:
    (tmp_path / "file").write_text("no folder")
    reason = r"cannot be written: .*; make it writable, or give the cluster another data_dir"
    with pytest.raises(DataDirectoryError, match=reason), locked_directory(tmp_path / directory):
        pytest.fail("it is held")

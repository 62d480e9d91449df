"""Restoring: a backup becomes the data folder of a stopped cluster again, whole or some shards of it.

Nothing that is there is overwritten. A whole restore goes into a data folder without data: shards first, each built
aside and renamed, the placement last. Shards without a placement are refused by every node, and a marker says whose
they are, so that a restore that died is repeated by running it again. Single shards are healed in place: each is built
aside, the damaged folder is kept under another name, and the new one takes its place.

Versions only grow: a restored cluster passes over GENERATIONS_SKIPPED generations, and where the former placement is
there, goes on from it; each start of a node takes a generation of its own in any case.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import xxhash

from ..fragment_stores.lmdb_file import DATA_FILE, has_data
from ..fragment_stores.lmdb_restore import give_identity
from ..fragment_stores.protocol import FORMAT, ShardIdentity
from ..fragment_stores.verifying import FileVerifier
from ..nodes.shards import shard_folder
from ..wire.control_store import PLACEMENT_FILE, FileControlStore
from ..wire.errors import BackupDamaged, ConfigurationError, DataFolderError, PlacementError
from ..wire.folders import make_folder_durably
from ..wire.placement import Placement, reconcile, restored
from ..wire.private_files import private_opener
from ..wire.topology import Topology
from ..wire.versions import generation_of
from .manifest import PIECE_BYTES, Manifest, ShardCopy, sync_folder
from .verifying import shards_of_data_folder, verify_shard

__all__ = ["heal_shards", "restore_all"]

MARKER_FILE: Final = "restore-in-progress.json"
"""Says that the shards of a data folder without a placement come from a restore that has not ended."""

_ASIDE: Final = ".restoring"

Tell = Callable[[ShardCopy, int], None]


def restore_all(topology: Topology, folder: Path, manifest: Manifest, backup: Path, tell: Tell) -> Placement:
    """Build the data folder `folder` of a stopped cluster, whose locks the caller holds; return its placement.

    The backup's files have been found whole. `tell` hears how many bytes of which were copied.

    Raises:
        DataFolderError: the folder holds data.
        PlacementError: the topology contradicts the backup.
        BackupDamaged: a file has changed meanwhile.
    """
    newest = max(generation_of(int(copy.version)) for copy in manifest.shards)
    placement = restored(topology, manifest.read_placement(), newest)
    _require_no_data(folder)
    marker = folder / MARKER_FILE
    with open(marker, "wb", opener=private_opener) as file:
        file.write(msgspec.json.encode({"cluster_uuid": placement.cluster_uuid, "backup": str(backup)}))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)
    for copy in manifest.shards:
        target = shard_folder(topology, placement.shards[copy.store][copy.shard].node, copy.store, copy.shard)
        shutil.rmtree(target, ignore_errors=True)  # what an earlier restore had built
        _build(backup, copy, target, placement, tell)
        _rename(_aside(target), target)
    if not FileControlStore.in_folder(folder).put_restored(placement):
        raise DataFolderError(f"{folder}: another placement was made meanwhile; the restored one was not put in")
    marker.unlink()
    return placement


def heal_shards(
    topology: Topology,
    folder: Path,
    manifest: Manifest,
    backup: Path,
    shards: Sequence[tuple[str, int]],
    tell: Tell,
) -> list[Path]:
    """Replace damaged or missing shards of a stopped cluster, whose locks the caller holds, with those of its backup.

    Returns the folders under which the damaged ones are kept.

    Raises:
        ConfigurationError: it is another cluster's backup, or a shard of the data folder is sound.
        BackupDamaged: a file has changed meanwhile.
    """
    control = FileControlStore.in_folder(folder)
    placement = _read_placement(topology, control, manifest)
    copies = {(copy.store, copy.shard): copy for copy in manifest.shards}
    for key in shards:
        if key not in copies:
            raise ConfigurationError(f"the backup has no shard {key[0]}/{key[1]}")
    _require_damaged(topology, placement, shards)
    newest = max(generation_of(int(copy.version)) for copy in manifest.shards)
    asyncio.run(_take_generation_beyond(control, newest))
    kept: list[Path] = []
    for store, shard in shards:
        target = shard_folder(topology, placement.shards[store][shard].node, store, shard)
        _build(backup, copies[store, shard], target, placement, tell)
        if target.exists():
            kept.append(target.with_name(f"{target.name}.damaged-{time.time_ns() // 1_000_000}"))
            _rename(target, kept[-1])
        _rename(_aside(target), target)
    return kept


def _require_no_data(folder: Path) -> None:
    if (folder / PLACEMENT_FILE).exists():
        raise DataFolderError(
            f"{folder}: holds a cluster already, and nothing of it is overwritten; give the cluster another data_dir,"
            " move the folder away, or heal single damaged shards with --shard STORE/N"
        )
    if not (folder / MARKER_FILE).exists():
        for data in sorted(folder.glob(f"*/*/*/{DATA_FILE}")):
            raise DataFolderError(
                f"{folder}: holds a shard already ({data.parent}), and no placement; nothing is overwritten: give the"
                " cluster another data_dir, or move the folder away"
            )


def _read_placement(topology: Topology, control: FileControlStore, manifest: Manifest) -> Placement:
    placement = asyncio.run(control.read())
    if placement is None:
        raise PlacementError(f"{control.path}: there is no placement, so no single shard can be healed; restore all")
    if placement.cluster_uuid != manifest.cluster_uuid:
        raise ConfigurationError(
            f"the backup is of cluster {manifest.cluster_uuid}, the data folder of {placement.cluster_uuid}"
        )
    return reconcile(topology, placement)


def _require_damaged(topology: Topology, placement: Placement, shards: Sequence[tuple[str, int]]) -> None:
    """Refuse to replace a sound shard: what was saved since the backup would be lost."""
    with FileVerifier() as verifier:
        for expected in shards_of_data_folder(topology, placement):
            if (expected.store, expected.shard) not in shards or not has_data(expected.path.parent):
                continue
            if not verify_shard(verifier, expected)[0]:
                raise ConfigurationError(
                    f"{expected.path.parent}: shard {expected.store}/{expected.shard} is sound, and has what was saved"
                    " since the backup; to go back to the backup all the same, move its folder away first"
                )


async def _take_generation_beyond(control: FileControlStore, generation: int) -> None:
    for _attempt in range(1_000):  # nobody else runs: the first one wins
        placement = await control.read()
        assert placement is not None, "it was read under the launcher's lock"
        wanted = msgspec.structs.replace(placement, generation=max(placement.generation, generation) + 1)
        if await control.compare_and_swap(placement.revision, wanted):
            return
    raise PlacementError(f"{control.path}: something changes the placement all the time")


def _build(backup: Path, copy: ShardCopy, target: Path, placement: Placement, tell: Tell) -> None:
    """Put a shard's copy beside the place where it belongs, durably, with the identity that it has there."""
    aside = _aside(target)
    shutil.rmtree(aside, ignore_errors=True)
    make_folder_durably(aside)
    checksum = xxhash.xxh3_128()
    source = backup / copy.file
    with open(source, "rb") as file, open(aside / DATA_FILE, "wb", opener=private_opener) as built:
        while piece := file.read(PIECE_BYTES):
            checksum.update(piece)
            built.write(piece)
            tell(copy, len(piece))
        built.flush()
        os.fsync(built.fileno())
    if checksum.hexdigest() != copy.checksum:
        raise BackupDamaged(f"{source}: changed while it was read")
    owners = placement.shards[copy.store]
    epoch = owners[copy.shard].serving_epoch
    give_identity(aside, ShardIdentity(FORMAT, placement.cluster_uuid, copy.store, copy.shard, len(owners), epoch))
    for named in (aside, *aside.parents[:3]):  # store, node and data folder: a file is no safer than its folders' names
        sync_folder(named)


def _aside(target: Path) -> Path:
    return target.with_name(target.name + _ASIDE)


def _rename(source: Path, target: Path) -> None:
    os.rename(source, target)
    sync_folder(target.parent)

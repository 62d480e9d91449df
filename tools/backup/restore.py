"""The restore of a stopped cluster's data directory from a backup, all of it or some shards.

Nothing that is there is overwritten. A complete restore goes into a data directory without data. It builds each shard
beside its place, under a name that only a restore uses; when all are there, durably, they are renamed into their
places, and the placement is put in last. A marker says how far it has come (`wire.cluster.restore_marker`), and no
node starts on it:

    building    run again, with this backup or another: what was built goes, and it begins anew
    placing     run again with this backup: it goes on, with the placement that it began with; no other backup is taken

Single shards are healed in place: each is built aside, the corrupt directory is kept under another name, and the new
one takes its place.

Versions only grow: a restored cluster passes over GENERATIONS_SKIPPED generations, and where the former placement is
there, goes on from it; each start of a node takes a generation and an origin of its own in any case
(`wire.protocol.versions`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import xxhash

from ...fragment_stores.engine import FORMAT, ShardIdentity
from ...nodes.shard_table import shard_directory
from ...wire.cluster.file_control_store import PLACEMENT_FILE, FileControlStore
from ...wire.cluster.placement import (
    GENERATIONS_SKIPPED,
    Placement,
    decode_placement,
    encode_placement,
    reconcile,
    restored,
)
from ...wire.cluster.restore_marker import (
    MARKER_FILE,
    RestoreMarker,
    read_marker,
    remove_marker,
    require_no_restore,
    write_marker,
)
from ...wire.cluster.topology import Topology
from ...wire.durable_files import make_directory_durably, sync_directory
from ...wire.errors import BackupCorrupt, ConfigurationError, DataDirectoryError, PlacementError, StoreFull
from ...wire.private_files import private_opener
from ...wire.protocol.versions import generation_of
from .manifest import PIECE_BYTES, Manifest, ShardCopy, digest_of
from .shard_check import Verifiers, require_files, shards_of_data_directory, verify_shard

__all__ = ["heal_shards", "restore_all"]

_ASIDE: Final = ".restoring"

Tell = Callable[[ShardCopy, int], None]


def restore_all(topology: Topology, directory: Path, manifest: Manifest, backup: Path, tell: Tell) -> Placement:
    """Build the data directory `directory` of a stopped cluster, whose locks the caller holds; return its placement.

    The backup's files have been found whole. `tell` hears how many bytes of which were copied.

    Raises:
        DataDirectoryError: the directory holds data, or another backup's restore that was interrupted while it was put
            in place.
        PlacementError: the topology contradicts the backup.
        BackupCorrupt: a file has changed meanwhile.
        StoreFull: no space is left; what was built has been removed.
    """
    with _naming_the_disk(directory):
        marker = _read_own_marker(directory, manifest)
        if marker is None or marker.phase != "placing":
            marker = _build_all(topology, directory, manifest, backup, tell)
        return _place_all(topology, directory, manifest, marker)


def _read_own_marker(directory: Path, manifest: Manifest) -> RestoreMarker | None:
    """Return the marker of a restore that this one may go on with, or begin anew."""
    marker = read_marker(directory)
    if marker is None or marker.phase == "building":
        return marker
    if not marker.phase:
        # Of an earlier version, which built shards in their places: whose they are now, nobody can tell.
        _require_no_data(directory, manifest, " (a restore by an earlier version was interrupted here)")
        return marker
    if (marker.cluster_uuid, marker.manifest) != (manifest.cluster_uuid, digest_of(manifest)):
        raise DataDirectoryError(
            f"{directory}: a restore of another backup ({marker.backup}, of cluster {marker.cluster_uuid}) was"
            " interrupted while it was put in place; run that one again to its end, or move the data directory away"
        )
    return marker


def _build_all(topology: Topology, directory: Path, manifest: Manifest, backup: Path, tell: Tell) -> RestoreMarker:
    """Build every shard beside its place; return the marker that says so, which is there by then."""
    newest = max(generation_of(int(copy.version)) for copy in manifest.shards)
    placement = restored(
        topology,
        manifest.read_placement(),
        newest,
        life=secrets.token_hex(16),
        draw=secrets.randbelow(GENERATIONS_SKIPPED),
    )
    _require_no_data(directory, manifest)
    for leftover in directory.glob(f"*/*/*{_ASIDE}"):
        shutil.rmtree(leftover)
    marker = RestoreMarker(
        manifest.cluster_uuid, str(backup), "building", digest_of(manifest), encode_placement(placement)
    )
    write_marker(directory, marker)
    try:
        for copy in manifest.shards:
            _build(backup, copy, _place(topology, placement, copy), placement, tell)
    except BaseException:
        # Also where no space is left: nobody should have to look for what a restore has begun.
        for copy in manifest.shards:
            shutil.rmtree(_aside(_place(topology, placement, copy)), ignore_errors=True)
        with contextlib.suppress(OSError):
            remove_marker(directory)
        raise
    marker = msgspec.structs.replace(marker, phase="placing")
    write_marker(directory, marker)
    return marker


def _place_all(topology: Topology, directory: Path, manifest: Manifest, marker: RestoreMarker) -> Placement:
    """Rename every shard into its place, put the placement in, and take the marker away: all may have begun before."""
    placement = decode_placement(marker.placement)
    control = FileControlStore.in_directory(directory)
    there = asyncio.run(control.read())
    if there != placement:
        if there is not None:
            raise DataDirectoryError(
                f"{directory}: holds a cluster already, and a restore's {MARKER_FILE}; {_NOT_OVERWRITTEN}"
            )
        reconcile(topology, placement)
        for copy in manifest.shards:
            target = _place(topology, placement, copy)
            files = require_files(copy.engine)
            if _aside(target).exists():
                if files.has_data(target):
                    raise DataDirectoryError(f"{directory}: holds a shard already ({target}); {_NOT_OVERWRITTEN}")
                _rename(_aside(target), target)
            elif not files.has_data(target) or not files.is_copy(target, _identity(placement, copy), int(copy.version)):
                raise DataDirectoryError(
                    f"{target}: is not as the interrupted restore had built it; {_NOT_OVERWRITTEN}"
                )
        if not control.put_restored(placement):
            raise DataDirectoryError(
                f"{directory}: another placement was made meanwhile; the restored one was not put in"
            )
    remove_marker(directory)
    return placement


_NOT_OVERWRITTEN: Final = (
    "nothing is overwritten: give the cluster another data_dir, or move the directory away and restore again"
)


@contextlib.contextmanager
def _naming_the_disk(directory: Path) -> Generator[None]:
    """Translate what the disk says while a restore writes."""
    try:
        yield
    except OSError as error:
        where = error.filename or directory
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StoreFull(f"{where}: {error.strerror}; make room, and run the restore again") from error
        raise DataDirectoryError(f"{where}: cannot be written: {error.strerror}; run the restore again then") from error


def heal_shards(
    topology: Topology,
    directory: Path,
    manifest: Manifest,
    backup: Path,
    shards: Sequence[tuple[str, int]],
    tell: Tell,
) -> list[Path]:
    """Replace corrupt or missing shards of a stopped cluster, whose locks the caller holds, with those of its backup.

    Returns the directories under which the corrupt ones are kept.

    Raises:
        ConfigurationError: it is another cluster's backup, or a shard of the data directory is sound.
        BackupCorrupt: a file has changed meanwhile.
        StoreFull: no space is left; the corrupt shard is where it was.
    """
    require_no_restore(directory)
    with _naming_the_disk(directory):
        return _heal(topology, directory, manifest, backup, shards, tell)


def _heal(
    topology: Topology,
    directory: Path,
    manifest: Manifest,
    backup: Path,
    shards: Sequence[tuple[str, int]],
    tell: Tell,
) -> list[Path]:
    control = FileControlStore.in_directory(directory)
    placement = _read_placement(topology, control, manifest)
    copies = {(copy.store, copy.shard): copy for copy in manifest.shards}
    for key in shards:
        if key not in copies:
            raise ConfigurationError(f"the backup has no shard {key[0]}/{key[1]}")
    _require_corrupt(topology, placement, shards)
    newest = max(generation_of(int(copy.version)) for copy in manifest.shards)
    asyncio.run(_take_generation_beyond(control, newest))
    kept: list[Path] = []
    for store, shard in shards:
        target = shard_directory(topology, placement.shards[store][shard].node, store, shard)
        _build(backup, copies[store, shard], target, placement, tell)
        if target.exists():
            kept.append(target.with_name(f"{target.name}.corrupt-{time.time_ns() // 1_000_000}"))
            _rename(target, kept[-1])
        _rename(_aside(target), target)
    return kept


def _require_no_data(directory: Path, manifest: Manifest, note: str = "") -> None:
    if (directory / PLACEMENT_FILE).exists():
        raise DataDirectoryError(
            f"{directory}: holds a cluster already, and nothing of it is overwritten; give the cluster another"
            " data_dir, move the directory away, or heal single corrupt shards with --shard STORE/N"
        )
    engines = [require_files(engine) for engine in {copy.engine: None for copy in manifest.shards}]
    for shard in sorted(directory.glob("*/*/*")):
        if not shard.name.endswith(_ASIDE) and any(engine.has_data(shard) for engine in engines):
            raise DataDirectoryError(
                f"{directory}: holds a shard already ({shard}), and no placement{note}; {_NOT_OVERWRITTEN}"
            )


def _read_placement(topology: Topology, control: FileControlStore, manifest: Manifest) -> Placement:
    placement = asyncio.run(control.read())
    if placement is None:
        raise PlacementError(f"{control.path}: there is no placement, so no single shard can be healed; restore all")
    if placement.cluster_uuid != manifest.cluster_uuid:
        raise ConfigurationError(
            f"the backup is of cluster {manifest.cluster_uuid}, the data directory of {placement.cluster_uuid}"
        )
    return reconcile(topology, placement)


def _require_corrupt(topology: Topology, placement: Placement, shards: Sequence[tuple[str, int]]) -> None:
    """Reject to replace a sound shard: what was saved since the backup would be lost."""
    with Verifiers() as verifiers:
        for expected in shards_of_data_directory(topology, placement):
            files = require_files(expected.engine)
            if (expected.store, expected.shard) not in shards or not files.has_data(expected.path.parent):
                continue
            if not verify_shard(verifiers, expected)[0]:
                raise ConfigurationError(
                    f"{expected.path.parent}: shard {expected.store}/{expected.shard} is sound, and has what was saved"
                    " since the backup; to go back to the backup all the same, move its directory away first"
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
    make_directory_durably(aside)
    checksum = xxhash.xxh3_128()
    source = backup / copy.file
    files = require_files(copy.engine)
    with open(source, "rb") as file, open(aside / files.data_file, "wb", opener=private_opener) as built:
        while piece := file.read(PIECE_BYTES):
            checksum.update(piece)
            built.write(piece)
            tell(copy, len(piece))
        built.flush()
        os.fsync(built.fileno())
    if checksum.hexdigest() != copy.checksum:
        raise BackupCorrupt(f"{source}: changed while it was read")
    files.give_identity(aside, _identity(placement, copy))
    for named in (
        aside,
        *aside.parents[:3],
    ):  # store, node and data directory: a file is no safer than its directories' names
        sync_directory(named)


def _identity(placement: Placement, copy: ShardCopy) -> ShardIdentity:
    owners = placement.shards[copy.store]
    epoch = owners[copy.shard].serving_epoch
    return ShardIdentity(FORMAT, placement.cluster_uuid, copy.store, copy.shard, len(owners), epoch)


def _place(topology: Topology, placement: Placement, copy: ShardCopy) -> Path:
    return shard_directory(topology, placement.shards[copy.store][copy.shard].node, copy.store, copy.shard)


def _aside(target: Path) -> Path:
    return target.with_name(target.name + _ASIDE)


def _rename(source: Path, target: Path) -> None:
    os.rename(source, target)
    sync_directory(target.parent)

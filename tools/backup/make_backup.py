"""A backup, as the client makes it: a directory with a marker, a copy of each shard by its node, the manifest last.

The copies are made one after the other, each by the shard's own node, so that the pace asked for is that of the whole.
Each shard is one moment of its own: a save that touches two stores may be in one copy and not in the other, as it may
be for a wake. Every save acknowledged before the backup began is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Collection, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from ...router.client.cluster import Cluster
from ...wire.cluster.placement import encode_placement
from ...wire.durable_files import make_directory_durably, sync_directory
from ...wire.errors import ClusterUnavailable, DataDirectoryError
from ...wire.private_files import private_opener
from ...wire.protocol.backup_messages import BACKUP_FILE_PATTERN, BACKUP_MARKER_FILE, BackupMarker, BackupReply
from ...wire.protocol.messages import SectionStatus, ShardStatus, StatusReply
from ..console.output import ProgressBar, format_bytes
from .manifest import FORMAT, Manifest, ShardCopy, write_manifest

__all__ = ["make_backup"]

STATUS_DEADLINE_S: Final = 5.0

_SHARD_DEADLINE_S: Final = 60.0
_BYTES_S_MIN: Final = 2 << 20
"""A copy has this long, and a second for so many bytes, or four times what its pace asks for."""

_ATTEMPTS: Final = 5
"""How often a shard's copy is begun anew where its node broke off."""

_SHOW_EVERY_S: Final = 0.2

_SERVING: Final = "serving"


async def make_backup(
    cluster: Cluster, topology: str, directory: Path, rate_bytes_s: int, bar: ProgressBar
) -> Manifest:
    """Copy every shard into `directory`, which is made; `topology` is the text of the topology file.

    `rate_bytes_s`: 0 for no limit. A backup that fails is removed again.

    Raises:
        ClusterUnavailable: a node does not answer, a shard is not served, or could not be copied.
        DataDirectoryError: the directory cannot be made, or holds something.
    """
    shards = await _served_shards(cluster)
    began_at = _now()
    with _marked_directory(directory, cluster.placement.cluster_uuid):
        copies = await _copy_all(cluster, shards, directory, rate_bytes_s, bar)
        placement = cluster.placement
        manifest = Manifest(
            FORMAT,
            placement.cluster,
            placement.cluster_uuid,
            began_at,
            _now(),
            topology,
            msgspec.Raw(encode_placement(placement)),
            copies,
        )
        write_manifest(directory, manifest)
    _remove_copies(directory, [copy.file for copy in copies])
    return manifest


async def _served_shards(cluster: Cluster) -> list[ShardStatus]:
    """Return every shard of the cluster, in the order of stores and shards; reject where one cannot be copied."""
    answers = await cluster.status(STATUS_DEADLINE_S)
    served: dict[tuple[str, int], ShardStatus] = {}
    problems: list[str] = []
    for node, answer in answers.items():
        if not isinstance(answer, StatusReply):
            problems.append(f"node {node!r} does not answer: {answer}")
            continue
        for shard in answer.shards:
            served[shard.store, shard.shard] = shard
            if shard.state != _SERVING:
                problems.append(f"shard {shard.store}/{shard.shard} is not served: {shard.state}")
    if problems:
        raise ClusterUnavailable("nothing was backed up: " + "; ".join(problems))
    placed = [(store, shard) for store, owners in cluster.placement.shards.items() for shard in range(len(owners))]
    missing = [f"{store}/{shard}" for store, shard in placed if (store, shard) not in served]
    if missing:
        raise ClusterUnavailable(f"nothing was backed up: no node serves {', '.join(missing)}")
    return [served[key] for key in placed]


async def _copy_all(
    cluster: Cluster, shards: list[ShardStatus], directory: Path, rate_bytes_s: int, bar: ProgressBar
) -> tuple[ShardCopy, ...]:
    copies: dict[tuple[str, int], ShardCopy] = {}
    total = sum(shard.disk_bytes for shard in shards)

    async def show() -> None:
        while True:
            size = _bytes_in(directory)
            current = shards[min(len(copies), len(shards) - 1)]
            text = f"{current.store}/{current.shard}, {format_bytes(size)}"
            bar.show(text, min(size, total), total)
            await asyncio.sleep(_SHOW_EVERY_S)

    showing = asyncio.create_task(show())
    try:
        for shard in shards:
            copies[shard.store, shard.shard] = await _copy(cluster, shard, directory, rate_bytes_s)
    finally:
        showing.cancel()
    return tuple(copies.values())


async def _copy(cluster: Cluster, shard: ShardStatus, directory: Path, rate_bytes_s: int) -> ShardCopy:
    pace = min(rate_bytes_s / 4, _BYTES_S_MIN) if rate_bytes_s else _BYTES_S_MIN
    deadline_s = _SHARD_DEADLINE_S + shard.disk_bytes / pace
    for attempt in range(_ATTEMPTS):
        file = f"{shard.store}-{shard.shard:04d}{f'-{attempt}' if attempt else ''}.mdb"
        path = directory / file
        try:
            answer = await cluster.back_up_shard(
                shard.store, shard.shard, str(path), rate_bytes_s=rate_bytes_s, deadline_s=deadline_s
            )
        except ClusterUnavailable:
            if attempt + 1 == _ATTEMPTS:
                raise
            continue
        _require_copied(answer, shard, path)
        engine = cluster.topology.stores[shard.store].engine
        version = str(answer.version)
        return ShardCopy(shard.store, shard.shard, file, version, answer.agents, answer.bytes, answer.checksum, engine)
    raise AssertionError("the last attempt returns or raises")


def _require_copied(answer: BackupReply, shard: ShardStatus, path: Path) -> None:
    name = f"shard {shard.store}/{shard.shard}"
    if answer.status != SectionStatus.OK:
        try:
            status = SectionStatus(answer.status).name
        except ValueError:
            status = f"status {answer.status}"
        raise ClusterUnavailable(f"{name} was not copied: {answer.detail or status}")
    try:
        size = path.stat().st_size
    except OSError:
        size = -1
    if size != answer.bytes:
        raise ClusterUnavailable(f"{name}: its node has written a copy that is not here: is {path} on the node's host?")


@contextlib.contextmanager
def _marked_directory(directory: Path, cluster_uuid: str) -> Generator[None]:
    """Make a directory that nodes may write copies into while the block runs; empty it again where the block fails."""
    try:
        make_directory_durably(directory)
        if any(directory.iterdir()):
            raise DataDirectoryError(f"{directory}: is not empty; give a directory that is empty or does not exist")
        marker = directory / BACKUP_MARKER_FILE
        with open(marker, "xb", opener=private_opener) as file:
            file.write(msgspec.json.encode(BackupMarker(cluster_uuid)))
            file.flush()
            os.fsync(file.fileno())
        sync_directory(directory.parent)
    except OSError as error:
        raise DataDirectoryError(f"{directory}: cannot be written: {error.strerror}") from error
    try:
        yield
    except BaseException:
        marker.unlink(missing_ok=True)  # a node that still writes a copy gives up
        _remove_copies(directory, ())
        with contextlib.suppress(OSError):  # something of a node's is there still
            directory.rmdir()
        raise
    marker.unlink(missing_ok=True)


def _remove_copies(directory: Path, kept: Collection[str]) -> None:
    """Remove copies that are not part of the backup: those of attempts that broke off."""
    for file_name in os.listdir(directory):
        if BACKUP_FILE_PATTERN.fullmatch(file_name) and file_name not in kept:
            (directory / file_name).unlink(missing_ok=True)


def _bytes_in(directory: Path) -> int:
    size = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # renamed a moment ago
                size += entry.stat().st_size
    return size


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

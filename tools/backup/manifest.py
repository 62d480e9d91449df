"""The manifest of a backup: what it holds, and by what each file is known to be intact.

A backup is a directory: one LMDB file a shard, and `backup.json`, which is written last. Without it a backup is
incomplete, whatever else is there. The manifest is a checksummed JSON document, as the placement is; a shard's file is
known by its size and its XXH3-128.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import xxhash

from ...wire.checksummed_json import CorruptDocument, decode_document, encode_document
from ...wire.cluster.placement import Placement, decode_placement
from ...wire.durable_files import replace_file
from ...wire.errors import BackupCorrupt, PlacementError
from ...wire.protocol.backup_messages import BACKUP_FILE_PATTERN, BACKUP_MARKER_FILE

__all__ = [
    "MANIFEST_FILE",
    "Manifest",
    "ShardCopy",
    "digest_of",
    "read_manifest",
    "require_complete",
    "write_manifest",
]

MANIFEST_FILE: Final = "backup.json"

FORMAT: Final = 1

PIECE_BYTES: Final = 1 << 20


class ShardCopy(msgspec.Struct, frozen=True):
    """One shard's file. `version` is a string: it exceeds what JSON's numbers hold for certain (2^53)."""

    store: str
    shard: int
    file: str
    version: str
    agents: int
    bytes: int
    checksum: str
    engine: str = "lmdb"


class Manifest(msgspec.Struct, frozen=True):
    """A complete backup. Times are UTC (RFC 3339); every save acknowledged before `began_at` is in it."""

    format: int
    cluster: str
    cluster_uuid: str
    began_at: str
    ended_at: str
    topology: str
    placement: msgspec.Raw
    shards: tuple[ShardCopy, ...]

    def read_placement(self) -> Placement:
        """Return the placement as it was.

        Raises:
            BackupCorrupt: it cannot be read.
        """
        try:
            return decode_placement(bytes(self.placement))
        except PlacementError as error:
            raise BackupCorrupt(f"{MANIFEST_FILE}: {error}") from error


_DOCUMENT: Final = "backup"
_encoder: Final = msgspec.json.Encoder()
_manifest_decoder: Final = msgspec.json.Decoder(Manifest)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write it, complete or not at all, and durably: from then on the backup is one."""
    shown = encode_document(_DOCUMENT, _encoder.encode(manifest))
    replace_file(directory / MANIFEST_FILE, shown, directory / f".{MANIFEST_FILE}.partial")


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of the backup in a directory.

    Raises:
        BackupCorrupt: it is missing, corrupt, or of another format; the message says what to do.
    """
    path = directory / MANIFEST_FILE
    try:
        encoded = path.read_bytes()
    except FileNotFoundError:
        detail = f"{directory}: not a complete backup: it has no {MANIFEST_FILE}, which is written last"
        if (directory / BACKUP_MARKER_FILE).exists():
            detail += f"; {BACKUP_MARKER_FILE} says that it was never finished"
        raise BackupCorrupt(f"{detail}; use another backup") from None
    except OSError as error:
        raise BackupCorrupt(f"{path}: cannot be read: {error.strerror}") from error
    try:
        content = decode_document(_DOCUMENT, encoded)
        if content.fields.get("format") != FORMAT:
            known = f"this version of dawnchorus reads format {FORMAT} only; use the version that wrote it"
            raise BackupCorrupt(f"{path}: the backup has format {content.fields.get('format')!r}, and {known}")
        manifest = _manifest_decoder.decode(content.encoded)
    except (CorruptDocument, msgspec.DecodeError) as error:
        raise BackupCorrupt(f"{path}: corrupt: {error}; use another backup") from error
    _require_all_shards(manifest, path)
    return manifest


def digest_of(manifest: Manifest) -> str:
    """Return 32 hexadecimal digits that tell a backup from every other, wherever it is kept."""
    return xxhash.xxh3_128_hexdigest(_encoder.encode(manifest))


def require_complete(directory: Path, manifest: Manifest, tell: Callable[[ShardCopy, int], None]) -> None:
    """Read every file of a backup and reject it where one is missing, too short or too long, or changed.

    `tell` hears of which file how many bytes more were read.

    Raises:
        BackupCorrupt: the message names the first such file.
    """
    for copy in manifest.shards:
        path = directory / copy.file
        try:
            size = path.stat().st_size
        except OSError as error:
            raise BackupCorrupt(f"{path}: cannot be read: {error.strerror}; use another backup") from error
        if size != copy.bytes:
            how = "truncated" if size < copy.bytes else "corrupt"
            raise BackupCorrupt(f"{path}: {how}: it has {size:,} bytes, and was written with {copy.bytes:,}")
    for copy in manifest.shards:
        path = directory / copy.file
        checksum = xxhash.xxh3_128()
        try:
            with open(path, "rb") as file:
                while piece := file.read(PIECE_BYTES):
                    checksum.update(piece)
                    tell(copy, len(piece))
        except OSError as error:
            raise BackupCorrupt(f"{path}: cannot be read: {error.strerror}; use another backup") from error
        if checksum.hexdigest() != copy.checksum:
            raise BackupCorrupt(f"{path}: corrupt: it does not match its checksum; use another backup")


def _require_all_shards(manifest: Manifest, path: Path) -> None:
    placed = {
        (store, shard) for store, shards in manifest.read_placement().shards.items() for shard in range(len(shards))
    }
    listed = {(copy.store, copy.shard) for copy in manifest.shards}
    if listed != placed or len(manifest.shards) != len(placed):
        missing = ", ".join(f"{store}/{shard}" for store, shard in sorted(placed - listed)) or "none"
        raise BackupCorrupt(f"{path}: it does not list each shard of its cluster once; missing: {missing}")
    for copy in manifest.shards:
        if BACKUP_FILE_PATTERN.fullmatch(copy.file) is None:
            raise BackupCorrupt(f"{path}: {copy.file!r} is not the name of a shard's file")

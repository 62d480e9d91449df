"""The manifest of a backup: what it holds, and by what each file is known to be whole.

A backup is a folder: one LMDB file a shard, and `backup.json`, which is written last. Without it a backup is
incomplete, whatever else is there. The manifest carries a checksum of itself (XXH3-64 of its content as compact JSON),
as the placement does; a shard's file is known by its size and its XXH3-128.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import xxhash

from ...wire.cluster.placement import Placement, decode_placement
from ...wire.durable_files import replace_file
from ...wire.errors import BackupDamaged, PlacementError
from ...wire.protocol.backup_messages import BACKUP_FILE_PATTERN, BACKUP_MARKER_FILE

__all__ = [
    "MANIFEST_FILE",
    "Manifest",
    "ShardCopy",
    "digest_of",
    "read_manifest",
    "require_whole",
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
    """A whole backup. Times are UTC (RFC 3339); every save acknowledged before `began_at` is in it."""

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
            BackupDamaged: it cannot be read.
        """
        try:
            return decode_placement(bytes(self.placement))
        except PlacementError as error:
            raise BackupDamaged(f"{MANIFEST_FILE}: {error}") from error


class _Document(msgspec.Struct, frozen=True):
    checksum: str
    backup: msgspec.Raw


_encoder: Final = msgspec.json.Encoder()
_document_decoder: Final = msgspec.json.Decoder(_Document)
_content_decoder: Final = msgspec.json.Decoder(dict[str, Any])
_manifest_decoder: Final = msgspec.json.Decoder(Manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it, whole or not at all, and durably: from then on the backup is one."""
    content = _compact(_encoder.encode(manifest))
    document = _encoder.encode(_Document(_checksum(content), msgspec.Raw(content)))
    shown = msgspec.json.format(document, indent=2) + b"\n"
    replace_file(folder / MANIFEST_FILE, shown, folder / f".{MANIFEST_FILE}.partial")


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the backup in a folder.

    Raises:
        BackupDamaged: it is missing, damaged, or of another format; the message says what to do.
    """
    path = folder / MANIFEST_FILE
    try:
        encoded = path.read_bytes()
    except FileNotFoundError:
        detail = f"{folder}: not a whole backup: it has no {MANIFEST_FILE}, which is written last"
        if (folder / BACKUP_MARKER_FILE).exists():
            detail += f"; {BACKUP_MARKER_FILE} says that it was never finished"
        raise BackupDamaged(f"{detail}; use another backup") from None
    except OSError as error:
        raise BackupDamaged(f"{path}: cannot be read: {error.strerror}") from error
    try:
        document = _document_decoder.decode(encoded)
        content = _content_decoder.decode(document.backup)
        if document.checksum != _checksum(_compact(bytes(document.backup))):
            raise BackupDamaged(f"{path}: damaged: it does not match its checksum; use another backup")
        if content.get("format") != FORMAT:
            known = f"this version of dawnchorus reads format {FORMAT} only; use the version that wrote it"
            raise BackupDamaged(f"{path}: the backup has format {content.get('format')!r}, and {known}")
        manifest = _manifest_decoder.decode(document.backup)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BackupDamaged(f"{path}: damaged: {error}; use another backup") from error
    _require_all_shards(manifest, path)
    return manifest


def digest_of(manifest: Manifest) -> str:
    """Return 32 hexadecimal digits that tell a backup from every other, wherever it lies."""
    return xxhash.xxh3_128_hexdigest(_encoder.encode(manifest))


def require_whole(folder: Path, manifest: Manifest, tell: Callable[[ShardCopy, int], None]) -> None:
    """Read every file of a backup and refuse it where one is missing, too short or too long, or changed.

    `tell` hears of which file how many bytes more were read.

    Raises:
        BackupDamaged: the message names the first such file.
    """
    for copy in manifest.shards:
        path = folder / copy.file
        try:
            size = path.stat().st_size
        except OSError as error:
            raise BackupDamaged(f"{path}: cannot be read: {error.strerror}; use another backup") from error
        if size != copy.bytes:
            how = "truncated" if size < copy.bytes else "damaged"
            raise BackupDamaged(f"{path}: {how}: it has {size:,} bytes, and was written with {copy.bytes:,}")
    for copy in manifest.shards:
        path = folder / copy.file
        checksum = xxhash.xxh3_128()
        try:
            with open(path, "rb") as file:
                while piece := file.read(PIECE_BYTES):
                    checksum.update(piece)
                    tell(copy, len(piece))
        except OSError as error:
            raise BackupDamaged(f"{path}: cannot be read: {error.strerror}; use another backup") from error
        if checksum.hexdigest() != copy.checksum:
            raise BackupDamaged(f"{path}: damaged: it does not match its checksum; use another backup")


def _require_all_shards(manifest: Manifest, path: Path) -> None:
    placed = {
        (store, shard) for store, shards in manifest.read_placement().shards.items() for shard in range(len(shards))
    }
    listed = {(copy.store, copy.shard) for copy in manifest.shards}
    if listed != placed or len(manifest.shards) != len(placed):
        missing = ", ".join(f"{store}/{shard}" for store, shard in sorted(placed - listed)) or "none"
        raise BackupDamaged(f"{path}: it does not list each shard of its cluster once; missing: {missing}")
    for copy in manifest.shards:
        if BACKUP_FILE_PATTERN.fullmatch(copy.file) is None:
            raise BackupDamaged(f"{path}: {copy.file!r} is not the name of a shard's file")


def _compact(content: bytes) -> bytes:
    return msgspec.json.format(content, indent=-1)


def _checksum(content: bytes) -> str:
    return f"{xxhash.xxh3_64_intdigest(content):016x}"

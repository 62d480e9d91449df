"""Backup and its answer; `wire.protocol.messages` has them in its unions, and says how messages are made."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from .request_header import Number, RequestHeader

__all__ = ["BACKUP_FILE_PATTERN", "BACKUP_MARKER_FILE", "Backup", "BackupMarker", "BackupReply"]

BACKUP_MARKER_FILE: Final = "backup-in-progress.json"
"""The file that marks a directory as receiving a backup of one cluster now: a node writes nowhere else."""

BACKUP_FILE_PATTERN: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}-[0-9]{4}(-[0-9]{1,3})?\.mdb", re.ASCII)
"""Names that a shard's copy may have: store, shard, and a number if it was begun more than once."""


class BackupMarker(msgspec.Struct, frozen=True):
    """The content of the marker file, as JSON."""

    cluster_uuid: str


class Backup(RequestHeader, array_like=True, frozen=True, gc=False, tag=12):
    """Write a copy of one shard to `path`, a new file in a directory with a marker on the node's host.

    `rate_bytes_s`: no faster than this, 0 for as fast as possible.
    """

    store: str
    shard: int
    epoch: int
    path: str
    rate_bytes_s: Number = 0


class BackupReply(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=13):
    """Answers Backup. The file holds everything up to `version`; `checksum` is its XXH3-128, 32 hexadecimal digits."""

    request: int
    status: int
    version: int = 0
    agents: int = 0
    bytes: int = 0
    checksum: str = ""
    detail: str = ""

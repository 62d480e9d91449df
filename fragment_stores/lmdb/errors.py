"""Exceptions of LMDB as the errors of this project."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

import lmdb
import msgspec

from ...wire.errors import StoreCorrupt, StoreError, StoreFull
from .file_format import unreadable_format

__all__ = ["FAILURES", "MAP_BYTES", "MAP_BYTES_MAX", "translate"]

FAILURES: Final = (lmdb.Error, OSError, msgspec.DecodeError, UnicodeDecodeError)
"""The failures of a shard's file: of LMDB, of the system, and rows that cannot be decoded."""

MAP_BYTES: Final = 64 << 30
"""Address space of one environment, sparse: 48 of them open in 15 ms and cost 1.3 MiB of memory."""

MAP_BYTES_MAX: Final = 1 << 40
"""The largest map of one shard, reached by doubling: a process has 128 TiB of addresses, a cluster fewer shards."""

_FULL_BYTES: Final = 1 << 20
"""A disk with less room than this is full: LMDB says EIO of a write that found room for a part (mdb_page_flush)."""


def translate(error: Exception, path: Path) -> StoreError:
    """Return the error of ours that one of FAILURES, met at the shard in directory `path`, is."""
    if isinstance(error, msgspec.DecodeError | UnicodeDecodeError):
        return StoreCorrupt(f"{path}: a row of the log is corrupt: {error}; restore a backup")
    if isinstance(error, lmdb.MapFullError):
        return StoreFull(f"{path}: the map is full, and may not grow or cannot grow now")
    code = error.errno if isinstance(error, OSError) else getattr(error, "code", 0)
    if code in (errno.ENOSPC, errno.EDQUOT) or (code == errno.EIO and _is_disk_full(path)):
        return StoreFull(f"{path}: no space left on the disk")
    if isinstance(error, lmdb.MemoryError) or code == errno.ENOMEM:
        return StoreError(
            f"{path}: the system gives no {MAP_BYTES >> 30} GiB of address space for the map; raise `ulimit -v`"
        )
    if isinstance(error, lmdb.Error) and (foreign := unreadable_format(path)):
        return StoreError(foreign)
    corrupt = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)
    if isinstance(error, (*corrupt, lmdb.NotFoundError)):
        return StoreCorrupt(f"{path}: the data is corrupt: {error}; restore a backup")
    return StoreError(f"{path}: {error}")


def _is_disk_full(path: Path) -> bool:
    try:
        facts = os.statvfs(path)
    except OSError:
        return False
    return facts.f_bavail * facts.f_frsize < _FULL_BYTES

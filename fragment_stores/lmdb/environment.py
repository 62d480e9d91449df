"""Environments of LMDB, opened only over a file that is there and complete.

LMDB reads through a memory map: a page that the file has lost is no error to it but the end of the process (SIGBUS).
And it makes a new environment of an empty file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final, TypedDict

import lmdb

from ...wire.durable_files import make_directory_durably
from ...wire.errors import DataDirectoryError, StoreCorrupt
from ...wire.private_files import FILE_MODE

__all__ = ["DATA_FILE", "has_data", "make_directory", "open_environment", "read_ahead", "require_complete"]

DATA_FILE: Final = "data.mdb"

_WALK: Final = """
import lmdb, os, sys
environment = lmdb.open(sys.argv[1], max_dbs=4, readonly=True, lock=False, create=False)
environment.copyfd(os.open(os.devnull, os.O_WRONLY), compact=True)
"""
"""A program that reads every page in use of the environment in a directory, and is killed if one is missing."""

_WALK_SECONDS_MAX: Final = 600.0
"""The longest that it may take: 64 GiB at 100 MB/s."""


NEW_ENGINE: Final = 0
"""LMDB 0.x: py-lmdb 3 bundles 1.0 as well, and LMDB_DEFAULT_LIB_VERSION in the environment chooses. Files of 1.0 are
served, but _lookup.c does not read them: wakes are slower."""


class _Engine(TypedDict, total=False):
    lib_version: int


_READERS_MAX: Final = 512
_SPARE_READERS: Final = 8
"""Read transactions kept for reuse: the loop has one open, two while a scan meets a fetch."""

_READ_AHEAD_BYTES_MAX: Final = 1 << 30
"""Read ahead at most this much of one shard's file: more would evict what other shards just read."""


def open_environment(path: Path, map_bytes: int, *, durable: bool) -> lmdb.Environment:
    """Open the environment of a shard for its node; a new one is of LMDB 0.9, whatever py-lmdb would choose.

    Raises:
        lmdb.Error, OSError: it cannot be opened.
    """
    options: _Engine = {} if has_data(path) else {"lib_version": NEW_ENGINE}
    return lmdb.open(
        str(path),
        mode=FILE_MODE,
        map_size=map_bytes,
        max_dbs=4,
        max_readers=_READERS_MAX,
        max_spare_txns=_SPARE_READERS,
        readahead=False,
        sync=durable,
        **options,
    )


def read_ahead(path: Path) -> None:
    """Ask the operating system to read the file ahead (posix_fadvise(2), POSIX_FADV_WILLNEED)."""
    descriptor = os.open(path / DATA_FILE, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, _READ_AHEAD_BYTES_MAX, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a shard's directory, durably.

    Raises:
        DataDirectoryError: something else is in its place, or its parent cannot be written.
    """
    try:
        make_directory_durably(path)
    except OSError as error:
        raise DataDirectoryError(
            f"{path}: cannot be made: {error.strerror}; make its place a writable directory"
        ) from error


def has_data(path: Path) -> bool:
    """Return whether a shard was ever written in this directory."""
    try:
        return os.stat(path / DATA_FILE).st_size > 0
    except OSError:
        return False


def require_complete(environment: lmdb.Environment, path: Path) -> None:
    """Reject an environment of which pages in use are missing at the file's end.

    An intact file may be shorter than its last page's number says: LMDB does not write pages that were allocated and
    freed in one transaction. So if it is, another process reads all pages in use, by LMDB's compacting copy.

    Raises:
        StoreCorrupt: they are.
    """
    size = os.stat(path / DATA_FILE).st_size
    page_bytes = environment.stat()["psize"]
    if size >= (environment.info()["last_pgno"] + 1) * page_bytes:
        return
    whole = False
    if size % page_bytes == 0:
        try:
            walk = [sys.executable, "-P", "-c", _WALK, str(path)]
            whole = subprocess.run(walk, capture_output=True, timeout=_WALK_SECONDS_MAX, check=False).returncode == 0
        except subprocess.TimeoutExpired:
            whole = False
    if not whole:
        raise StoreCorrupt(f"{path}: {DATA_FILE} has lost its end: it has only {size:,} bytes; restore a backup")

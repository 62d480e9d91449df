"""The LMDB that a file was written by, as its first page says, whether this py-lmdb can read it or not.

LMDB 0.9 and 1.0 have formats of their own, and there were others in between. A file of one that is not installed is not
corrupt, and no backup has to be restored: another py-lmdb reads it.

Format: MDB_page and MDB_meta of LMDB's mdb.c: magic number and version follow the page's header, of 16 bytes in 0.9, of
24 in 1.0.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import lmdb

from .environment import DATA_FILE

__all__ = ["unreadable_format"]

_MAGIC: Final = 0xBEEFC0DE
_MAGIC_AND_VERSION: Final = struct.Struct("=II")
_PAGE_HEADERS_BYTES: Final = (16, 24)

_ENGINES: Final = {1: 0, 3: 1}
"""The major version of LMDB that reads a format."""

_NAMES: Final = {1: "LMDB 0.9", 2: "a version of LMDB before 1.0 that was never released", 3: "LMDB 1.0"}


def unreadable_format(path: Path) -> str:
    """Return a message on a file, or the one in a shard's directory, whose format py-lmdb does not read; else ""."""
    version = _format_of(path / DATA_FILE if path.is_dir() else path)
    if version is None or _is_readable(version):
        return ""
    name = _NAMES.get(version, "another version of LMDB")
    return (
        f"{path}: written in format {version} of {name}, which the installed py-lmdb {lmdb.__version__} does not read;"
        " nothing is wrong with it: install a py-lmdb that does, or convert it with that LMDB's mdb_dump and mdb_load"
    )


def _format_of(file: Path) -> int | None:
    """Return the number of a file's format, None if it is no LMDB file."""
    try:
        with file.open("rb") as opened:
            page = opened.read(_PAGE_HEADERS_BYTES[-1] + _MAGIC_AND_VERSION.size)
    except OSError:
        return None
    for header_bytes in _PAGE_HEADERS_BYTES:
        if len(page) >= header_bytes + _MAGIC_AND_VERSION.size:
            magic, version = _MAGIC_AND_VERSION.unpack_from(page, header_bytes)
            if magic == _MAGIC:
                return int(version)
    return None


def _is_readable(version: int) -> bool:
    engine = _ENGINES.get(version)
    if engine is None:
        return False
    try:
        lmdb.version(lib_version=engine)
    except lmdb.Error:
        return False
    return True

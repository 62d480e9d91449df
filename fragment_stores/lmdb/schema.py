"""The databases of a shard's environment.

images   agent id -> image
log      version, 8 bytes big-endian -> LogRow; in the same transaction as the write, trimmed to a length
expiry   expires_ms, 8 bytes big-endian, + agent id -> nothing; one row for all fragments of an agent that expire then.
         A write that ends a fragment takes its row away. Earlier versions did not: what they left goes when it is due
meta     "identity" -> ShardIdentity; "clock" -> version and clock_ms, 8 bytes each, big-endian;
         "trimmed" -> the newest version whose row has gone from the log, 8 bytes, big-endian
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import lmdb

__all__ = ["IMAGES", "Databases", "open_databases"]

IMAGES: Final = b"images"
"""The name of the database of images, under which LMDB keeps its record (MDB_db) in the main database."""


@dataclass(frozen=True, slots=True)
class Databases:
    """The open databases of one environment. Each is an lmdb._Database: py-lmdb gives the type no public name."""

    main: Any
    """LMDB's own: it holds the records of the others."""
    images: Any
    log: Any
    expiry: Any
    meta: Any
    page_bytes: int


def open_databases(environment: lmdb.Environment, *, create: bool) -> Databases:
    """Open them; `create` makes those that are missing.

    Raises:
        lmdb.Error: one cannot be opened.
    """
    return Databases(
        main=environment.open_db(None),
        images=environment.open_db(IMAGES, create=create),
        log=environment.open_db(b"log", create=create),
        expiry=environment.open_db(b"expiry", create=create),
        meta=environment.open_db(b"meta", create=create),
        page_bytes=environment.stat()["psize"],
    )

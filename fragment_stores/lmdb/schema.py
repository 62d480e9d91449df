"""The layout of a shard's environment: its databases, and the keys, rows and numbers in them.

images   agent id -> image
log      version, 8 bytes big-endian -> LogRow; in the same transaction as the write, trimmed to a length
expiry   expires_ms, 8 bytes big-endian, + agent id -> nothing; one row for all fragments of an agent that expire then.
         A write that ends a fragment removes its row. Earlier versions did not: rows left by them go when due
meta     "identity" -> ShardIdentity; "clock" -> version and clock_ms, 8 bytes each, big-endian;
         "trimmed" -> the newest version whose row has gone from the log, 8 bytes, big-endian
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import lmdb
import msgspec

from ..engine import LogRow, ShardIdentity

__all__ = [
    "CLOCK_KEY",
    "DATABASES",
    "EXPIRY",
    "IDENTITY_KEY",
    "IMAGES",
    "LOG",
    "META",
    "TRIMMED_KEY",
    "Clock",
    "Databases",
    "decode_clock",
    "encode_clock",
    "encoder",
    "expiry_row",
    "identity_decoder",
    "open_databases",
    "row_decoder",
    "version_key",
    "version_of_key",
]

IMAGES: Final = b"images"
"""The name of the database of images, under which LMDB keeps its record (MDB_db) in the main database."""
LOG: Final = b"log"
EXPIRY: Final = b"expiry"
META: Final = b"meta"

DATABASES: Final = (IMAGES, LOG, EXPIRY, META)

IDENTITY_KEY: Final = b"identity"
CLOCK_KEY: Final = b"clock"
TRIMMED_KEY: Final = b"trimmed"

_CLOCK: Final = struct.Struct(">QQ")

encoder: Final = msgspec.msgpack.Encoder()
row_decoder: Final = msgspec.msgpack.Decoder(LogRow)
identity_decoder: Final = msgspec.msgpack.Decoder(ShardIdentity)

Clock = tuple[int, int]
"""A shard's version and time."""


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
        log=environment.open_db(LOG, create=create),
        expiry=environment.open_db(EXPIRY, create=create),
        meta=environment.open_db(META, create=create),
        page_bytes=environment.stat()["psize"],
    )


def encode_clock(version: int, clock_ms: int) -> bytes:
    """Return the value under CLOCK_KEY."""
    return _CLOCK.pack(version, clock_ms)


def decode_clock(value: bytes | memoryview | None) -> Clock | None:
    """Return the version and the time that the value under CLOCK_KEY says, None if it says none."""
    if value is None or len(value) != _CLOCK.size:
        return None
    version, clock_ms = _CLOCK.unpack(value)
    return version, clock_ms


def version_key(version: int) -> bytes:
    """Return the key of a version's row in the log, which is also the value under TRIMMED_KEY."""
    return version.to_bytes(8, "big")


def version_of_key(key: bytes | memoryview) -> int:
    """Return the version of a key of the log, 0 of an empty one."""
    return int.from_bytes(key, "big")


def expiry_row(expires_ms: int, agent: bytes) -> bytes:
    """Return the key of the row that says that something of an agent expires then."""
    return expires_ms.to_bytes(8, "big") + agent

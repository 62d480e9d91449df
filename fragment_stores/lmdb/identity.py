"""The identity and the clock of a shard, as its environment holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lmdb
import msgspec

from ...wire.errors import DataDirectoryError, StoreCorrupt
from ..engine import ShardIdentity
from .environment import DATA_FILE, require_complete
from .errors import translate
from .schema import CLOCK_KEY, IDENTITY_KEY, META, Clock, decode_clock, encode_clock, encoder, identity_decoder

__all__ = ["decode_identity", "read_identity", "require_clock", "require_identity", "take_identity"]


def read_identity(path: Path) -> ShardIdentity | None:
    """Return whose shard is in this directory, None if there is none.

    Raises:
        StoreCorrupt, StoreError: there is one that cannot be read.
    """
    if not (path / DATA_FILE).exists():
        return None
    try:
        environment = lmdb.open(str(path), max_dbs=4, readonly=True, lock=False, create=False)
    except (lmdb.Error, OSError) as error:
        raise translate(error, path) from error
    try:
        require_complete(environment, path)
        meta = environment.open_db(META, create=False)
        with environment.begin(meta) as transaction:
            known = transaction.get(IDENTITY_KEY)
            return None if known is None else decode_identity(known, path)
    except lmdb.NotFoundError:
        return None
    except lmdb.Error as error:
        raise translate(error, path) from error
    finally:
        environment.close()


def decode_identity(known: bytes, path: Path) -> ShardIdentity:
    """Return the identity that the shard in directory `path` has stored.

    Raises:
        StoreCorrupt: it is none.
    """
    try:
        return identity_decoder.decode(known)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreCorrupt(f"{path}: cannot tell whose shard this is: {error}; restore a backup") from error


def require_identity(known: ShardIdentity, expected: ShardIdentity, path: Path) -> None:
    """Reject the data in directory `path` if it is not what the placement says.

    Raises:
        DataDirectoryError: it is not.
    """
    if known == expected:
        return
    for field in ShardIdentity.__struct_fields__:
        here, there = getattr(known, field), getattr(expected, field)
        if here != there:
            raise DataDirectoryError(
                f"{path}: the shard on disk has {field} {here!r}, the placement says {there!r}: it is not touched;"
                " give the cluster its own data_dir, or put the shard's own data back"
            )


def require_clock(transaction: lmdb.Transaction[Any], meta: Any, path: Path) -> Clock:
    """Return a shard's version and time; `meta` is its database.

    Raises:
        StoreCorrupt: they are missing.
    """
    clock = decode_clock(transaction.get(CLOCK_KEY, db=meta))
    if clock is None:
        raise StoreCorrupt(f"{path}: the shard's clock is missing; restore a backup")
    return clock


def take_identity(
    transaction: lmdb.Transaction[Any], meta: Any, identity: ShardIdentity, path: Path, *, create: bool
) -> Clock:
    """Require that a shard is the one expected, or give it the identity if it has none; return its version and time.

    Raises:
        DataDirectoryError: it is another one.
        StoreCorrupt: it does not say whose it is, and none may be made.
    """
    known = transaction.get(IDENTITY_KEY, db=meta)
    if known is not None:
        require_identity(decode_identity(known, path), identity, path)
    elif create:
        transaction.put(IDENTITY_KEY, encoder.encode(identity), db=meta)
        transaction.put(CLOCK_KEY, encode_clock(0, 0), db=meta)
    else:
        raise StoreCorrupt(f"{path}: the shard does not say whose it is; restore a backup")
    return require_clock(transaction, meta, path)

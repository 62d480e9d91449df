"""The identity of a shard, as its environment says itself."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import lmdb
import msgspec

from ...wire.errors import DataFolderError, StoreDamaged
from ..engine import ShardIdentity
from .environment import DATA_FILE, require_whole
from .errors import translate

__all__ = ["decode_identity", "read_identity", "require_identity"]

_decoder: Final = msgspec.msgpack.Decoder(ShardIdentity)


def read_identity(path: Path) -> ShardIdentity | None:
    """Return whose shard lies in this folder, None where there is none.

    Raises:
        StoreDamaged, StoreError: there is one that cannot be read.
    """
    if not (path / DATA_FILE).exists():
        return None
    try:
        environment = lmdb.open(str(path), max_dbs=4, readonly=True, lock=False, create=False)
    except (lmdb.Error, OSError) as error:
        raise translate(error, path) from error
    try:
        require_whole(environment, path)
        meta = environment.open_db(b"meta", create=False)
        with environment.begin(meta) as transaction:
            known = transaction.get(b"identity")
            return None if known is None else decode_identity(known, path)
    except lmdb.NotFoundError:
        return None
    except lmdb.Error as error:
        raise translate(error, path) from error
    finally:
        environment.close()


def decode_identity(known: bytes, path: Path) -> ShardIdentity:
    """Return the identity that the shard in folder `path` has written down.

    Raises:
        StoreDamaged: it is none.
    """
    try:
        return _decoder.decode(known)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreDamaged(f"{path}: cannot tell whose shard this is: {error}; restore a backup") from error


def require_identity(known: ShardIdentity, expected: ShardIdentity, path: Path) -> None:
    """Refuse the data in folder `path` where it is not what the placement says.

    Raises:
        DataFolderError: it is not.
    """
    if known == expected:
        return
    for field in ShardIdentity.__struct_fields__:
        here, there = getattr(known, field), getattr(expected, field)
        if here != there:
            raise DataFolderError(
                f"{path}: the shard on disk has {field} {here!r}, the placement says {there!r}: it is not touched;"
                " give the cluster its own data_dir, or put the shard's own data back"
            )

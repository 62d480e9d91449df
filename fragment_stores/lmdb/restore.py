"""The restore of a shard from its copy."""

from __future__ import annotations

from pathlib import Path

import lmdb
import msgspec

from ...wire.errors import StoreCorrupt
from ...wire.private_files import FILE_MODE
from ..engine import ShardIdentity
from .errors import MAP_BYTES, translate
from .identity import read_identity
from .schema import CLOCK_KEY, IDENTITY_KEY, META, decode_clock, encoder

__all__ = ["give_identity", "is_copy"]


def is_copy(directory: Path, identity: ShardIdentity, version: int) -> bool:
    """Return whether a shard is in a directory as it was restored, and nothing was written to it since.

    Raises:
        StoreCorrupt, StoreError: it cannot be read.
    """
    if read_identity(directory) != identity:
        return False
    try:
        with lmdb.open(str(directory), max_dbs=4, readonly=True, lock=False, create=False) as environment:
            meta = environment.open_db(META, create=False)
            with environment.begin(meta) as transaction:
                clock = decode_clock(transaction.get(CLOCK_KEY))
    except (lmdb.Error, OSError) as error:
        raise translate(error, directory) from error
    return clock is not None and clock[0] == version


def give_identity(directory: Path, identity: ShardIdentity) -> None:
    """Let a copy in a directory of its own be the shard that it is restored as: its epoch may have grown.

    Raises:
        StoreCorrupt: the copy is not of this cluster, store and shard.
        StoreError: it cannot be opened here.
    """
    known = read_identity(directory)
    if known is None or msgspec.structs.replace(known, epoch=identity.epoch) != identity:
        raise StoreCorrupt(f"{directory}: the copy is of another shard: {known}")
    if known == identity:
        return
    try:
        with lmdb.open(str(directory), mode=FILE_MODE, map_size=MAP_BYTES, max_dbs=4) as environment:
            meta = environment.open_db(META, create=False)
            with environment.begin(meta, write=True) as transaction:
                transaction.put(IDENTITY_KEY, encoder.encode(identity))
    except (lmdb.Error, OSError) as error:
        raise translate(error, directory) from error

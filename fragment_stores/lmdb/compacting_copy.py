"""LMDB's compacting copy (mdb_env_copyfd2, MDB_CP_COMPACT), delivered in pieces.

LMDB writes to a file descriptor; here that is a pipe, so that the receiver sets the pace: while it does not read, LMDB
waits, and a copy never takes more of the disk than it should. One read transaction is held for as long as it lasts:
pages freed by commits meanwhile are not used again, and the shard's file may grow by what is written in that time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import lmdb

from ..engine import CopiedShard
from .errors import translate
from .identity import require_clock
from .schema import Databases

__all__ = ["copy_shard"]

PIECE_BYTES: Final = 1 << 20
"""Bytes of a piece, and of the pipe: LMDB writes a megabyte at a time, and this is the most that Linux lets an ordinary
process have (pipe-max-size, pipe(7))."""


def copy_shard(
    environment: lmdb.Environment, databases: Databases, path: Path, sink: Callable[[bytes], None]
) -> CopiedShard:
    """Deliver a copy of the shard in directory `path` to `sink`; return its content, read in the same transaction.

    Raises:
        StoreCorrupt, StoreError: the data cannot be read. Whatever `sink` raises.
    """
    try:
        with environment.begin() as transaction:
            version, _ = require_clock(transaction, databases.meta, path)
            copied = CopiedShard(version, transaction.stat(databases.images)["entries"])
            _copy_environment(environment, transaction, sink)
    except lmdb.Error as error:
        raise translate(error, path) from error
    return copied


def _copy_environment(
    environment: lmdb.Environment, transaction: lmdb.Transaction[bytes], sink: Callable[[bytes], None]
) -> None:
    """Deliver the environment's file, as it is in this read transaction and without free pages, to `sink`."""
    source, target = os.pipe2(os.O_CLOEXEC)
    failures: list[lmdb.Error] = []

    def copy() -> None:
        try:
            environment.copyfd(target, compact=True, txn=transaction)
        except lmdb.Error as error:
            failures.append(error)
        finally:
            os.close(target)

    copying = threading.Thread(target=copy, name="copy", daemon=True)
    with contextlib.suppress(OSError):  # the user has many pipes already: a smaller one suffices
        fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, PIECE_BYTES)
    copying.start()
    try:
        while piece := os.read(source, PIECE_BYTES):
            sink(piece)
    finally:
        os.close(source)  # if `sink` raised, LMDB finds a broken pipe and ends
        copying.join()
    if failures:
        raise failures[0]

"""A shard in one LMDB environment.

Four databases in it:
    images   agent id -> image
    log      version, 8 bytes big-endian -> LogRow; in the same transaction as the write, trimmed to a length
    expiry   expires_ms, 8 bytes big-endian, + agent id -> nothing
    meta     "identity" -> ShardIdentity; "clock" -> version and clock_ms, 8 bytes each, big-endian

Reads go from the memory map into the reply without a copy; a view lives as long as its transaction. The one writer's
commit is durable when it returns: LMDB syncs the data pages before the meta page that makes them visible (copy on
write, no log; http://www.lmdb.tech/doc/). A process that is killed leaves nothing to recover but a reader's slot, which
the next open clears.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import lmdb
import msgspec

from ..wire.errors import (
    DataFolderError,
    DawnchorusError,
    InvalidRequestError,
    ProtocolError,
    StoreDamaged,
    StoreError,
    StoreFull,
)
from ..wire.limits import AGENT_ID_BYTES_MAX
from ..wire.messages import Drop, Operation, Put, Refusal, Write
from ..wire.versions import first_version
from .lmdb_file import DATA_FILE, has_data, make_folder, require_whole
from .merge import merge
from .protocol import LogRow, ShardIdentity, StoreStatistics

__all__ = ["LMDBSnapshot", "LMDBStore", "read_identity"]

MAP_BYTES: Final = 64 << 30
"""Address space of one environment, sparse: 48 of them open in 15 ms and cost 1.3 MiB of memory."""

LOG_ROWS_MAX: Final = 100_000
"""Rows of the log that are kept: about 8 MB a shard, and more than an hour of retries at 25 saves a second a shard."""

_READERS_MAX: Final = 512
_SPARE_READERS: Final = 8
"""Read transactions kept for reuse: the loop has one open, two while a scan meets a fetch."""

_WARM_UP_BYTES_MAX: Final = 1 << 30
"""Read ahead at most this much of one shard's file: more would push out what other shards just read."""

_CLOCK: Final = struct.Struct(">QQ")

_encoder = msgspec.msgpack.Encoder()
_identity_decoder = msgspec.msgpack.Decoder(ShardIdentity)
_row_decoder = msgspec.msgpack.Decoder(LogRow)


class LMDBSnapshot:
    """A read transaction on one shard."""

    __slots__ = ("_log", "_path", "_transaction", "version")

    def __init__(self, transaction: lmdb.Transaction[memoryview], log: Any, path: Path, version: int) -> None:
        self._transaction = transaction
        self._path = path
        self._log = log  # an lmdb._Database: py-lmdb gives its type no public name
        self.version = version

    def images(self, agents: Sequence[bytes]) -> list[bytes | memoryview]:
        """Return the image of each agent, empty where there is none; 0.2 to 0.45 us each when warm."""
        try:
            return list(map(self._transaction.get, agents, repeat(b"")))
        except lmdb.BadValsizeError as error:
            raise InvalidRequestError("an agent id is empty") from error
        except lmdb.Error as error:
            raise _translate(error, self._path) from error

    def agents_after(self, position: bytes, agents_max: int) -> list[bytes]:
        """Return ids in byte order, those greater than `position`, at most `agents_max`."""
        found: list[bytes] = []
        if len(position) > AGENT_ID_BYTES_MAX:
            raise InvalidRequestError("a position is an agent id: this one is too long")
        try:
            with self._transaction.cursor() as cursor:
                # A zero byte more is the next key in byte order.
                here = cursor.set_range(position + b"\0") if position else cursor.first()
                while here and len(found) < agents_max:
                    found.append(bytes(cursor.key()))
                    here = cursor.next()
        except lmdb.Error as error:
            raise _translate(error, self._path) from error
        return found

    def log_after(self, version: int, rows_max: int) -> list[tuple[int, LogRow]]:
        """Return committed writes in order, those with greater versions, at most `rows_max`."""
        rows: list[tuple[int, LogRow]] = []
        try:
            with self._transaction.cursor(self._log) as cursor:
                here = cursor.set_range((version + 1).to_bytes(8, "big"))
                while here and len(rows) < rows_max:
                    rows.append((int.from_bytes(cursor.key(), "big"), _row_decoder.decode(cursor.value())))
                    here = cursor.next()
        except lmdb.Error as error:
            raise _translate(error, self._path) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StoreDamaged(f"{self._path}: a row of the log is damaged: {error}") from error
        return rows

    def close(self) -> None:
        """End the transaction; every view that it gave is invalid from now on."""
        self._transaction.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LMDBStore:
    """One shard: one environment in one folder, open once in one process."""

    def __init__(self, path: Path, identity: ShardIdentity, *, create: bool) -> None:
        """Open the shard in folder `path`.

        `identity` is what the placement says of it; `create` permits to make it where it does not exist yet.

        Raises:
            StoreDamaged: it is missing though it should exist, or is damaged.
            DataFolderError: it is another shard's or cluster's, or the folder cannot be made.
            StoreFull, StoreError: it cannot be opened here.
        """
        self.path = path
        if create:
            make_folder(path)
        elif not has_data(path):
            raise StoreDamaged(f"{path}: the shard's data is missing though it was written before; restore a backup")
        try:
            self._environment = lmdb.open(
                str(path),
                map_size=MAP_BYTES,
                max_dbs=4,
                max_readers=_READERS_MAX,
                max_spare_txns=_SPARE_READERS,
                readahead=False,
            )
        except (lmdb.Error, OSError) as error:
            raise _translate(error, path) from error
        try:
            self._open_databases(identity, create=create)
        except (lmdb.Error, OSError) as error:
            self._environment.close()
            raise _translate(error, path) from error
        except DawnchorusError:
            self._environment.close()
            raise

    def _open_databases(self, identity: ShardIdentity, *, create: bool) -> None:
        environment = self._environment
        require_whole(environment, self.path)
        environment.reader_check()
        self._images = environment.open_db(b"images", create=create)
        self._log = environment.open_db(b"log", create=create)
        self._expiry = environment.open_db(b"expiry", create=create)
        self._meta = environment.open_db(b"meta", create=create)
        with environment.begin(write=create) as transaction:
            known = transaction.get(b"identity", db=self._meta)
            if known is None:
                if not create:
                    raise StoreDamaged(f"{self.path}: the shard does not say whose it is; restore a backup")
                transaction.put(b"identity", _encoder.encode(identity), db=self._meta)
                transaction.put(b"clock", _CLOCK.pack(0, 0), db=self._meta)
            else:
                _require_identity(_decode_identity(known, self.path), identity, self.path)
            clock = transaction.get(b"clock", db=self._meta)
            if clock is None or len(clock) != _CLOCK.size:
                raise StoreDamaged(f"{self.path}: the shard's clock is missing; restore a backup")
            self.version, self._clock_ms = _CLOCK.unpack(clock)
            self._log_rows = transaction.stat(self._log)["entries"]
        self.identity = identity

    def begin_generation(self, generation: int) -> None:
        """Take versions of this generation from now on."""
        floor = first_version(generation)
        if floor <= self.version:
            raise StoreDamaged(
                f"{self.path}: the shard has version {self.version}, newer than generation {generation} of the"
                " placement: the placement file is older than the data; restore the newest one"
            )
        self.version = floor

    def snapshot(self) -> LMDBSnapshot:
        """Return the present moment for reading; 1.5 us."""
        # The version is read before the transaction begins, so the transaction is never older than it says.
        version = self.version
        try:
            transaction = self._environment.begin(self._images, buffers=True)
        except lmdb.Error as error:
            raise _translate(error, self.path) from error
        return LMDBSnapshot(transaction, self._log, self.path, version)

    def commit(self, writes: Sequence[Write], now_ms: int) -> list[int | Refusal]:
        """Apply writes in order in one transaction, synced on return."""
        clock_ms = max(now_ms, self._clock_ms)
        version = self.version
        log_rows = self._log_rows
        results: list[int | Refusal] = []
        try:
            with self._environment.begin(self._images, write=True, buffers=True) as transaction:
                for write in writes:
                    result = self._apply(transaction, write, version + 1, clock_ms)
                    if isinstance(result, int) and result:
                        version = result
                        log_rows += 1
                    results.append(result)
                if version == self.version:
                    transaction.abort()
                    return results
                log_rows -= self._trim(transaction, log_rows - LOG_ROWS_MAX)
                transaction.put(b"clock", _CLOCK.pack(version, clock_ms), db=self._meta)
        except (lmdb.Error, OSError) as error:
            raise _translate(error, self.path) from error
        self.version, self._clock_ms, self._log_rows = version, clock_ms, log_rows
        return results

    def _apply(
        self, transaction: lmdb.Transaction[memoryview], write: Write, version: int, clock_ms: int
    ) -> int | Refusal:
        try:
            before = transaction.get(write.agent) if 0 < len(write.agent) <= 511 else None
            merged = merge(before, write, version, clock_ms)
        except ProtocolError as error:
            return Refusal(f"the agent's image is damaged: {error}")
        if isinstance(merged, Refusal):
            return merged
        if merged is before:
            return 0
        if merged is None:
            transaction.delete(write.agent)
        else:
            transaction.put(write.agent, merged)
        row = LogRow(write.agent, write.write_id, [_log_entry(operation) for operation in write.operations])
        # Versions only grow, so each row goes behind the last: LMDB appends without a search.
        transaction.put(version.to_bytes(8, "big"), _encoder.encode(row), append=True, db=self._log)
        return version

    def _trim(self, transaction: lmdb.Transaction[memoryview], rows: int) -> int:
        if rows <= 0:
            return 0
        with transaction.cursor(self._log) as cursor:
            cursor.first()
            trimmed = 0
            while trimmed < rows and cursor.delete():
                trimmed += 1
        return trimmed

    def warm_up(self) -> None:
        """Ask the operating system to read the file ahead (posix_fadvise(2), POSIX_FADV_WILLNEED)."""
        descriptor = os.open(self.path / DATA_FILE, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, _WARM_UP_BYTES_MAX, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)

    def statistics(self) -> StoreStatistics:
        """Return the sizes of the shard."""
        with self._environment.begin() as transaction:
            agents = transaction.stat(self._images)["entries"]
        used = os.stat(self.path / DATA_FILE).st_blocks * 512
        return StoreStatistics(agents, self._log_rows, used)

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()


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
        raise _translate(error, path) from error
    try:
        require_whole(environment, path)
        meta = environment.open_db(b"meta", create=False)
        with environment.begin(meta) as transaction:
            known = transaction.get(b"identity")
            return None if known is None else _decode_identity(known, path)
    except lmdb.NotFoundError:
        return None
    except lmdb.Error as error:
        raise _translate(error, path) from error
    finally:
        environment.close()


def _log_entry(operation: Operation) -> tuple[int, str]:
    if isinstance(operation, Put):
        return 1, operation.kind
    if isinstance(operation, Drop):
        return 2, operation.kind
    return 3, ""


def _decode_identity(known: bytes, path: Path) -> ShardIdentity:
    try:
        return _identity_decoder.decode(known)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreDamaged(f"{path}: cannot tell whose shard this is: {error}; restore a backup") from error


def _require_identity(known: ShardIdentity, expected: ShardIdentity, path: Path) -> None:
    if known == expected:
        return
    for field in ShardIdentity.__struct_fields__:
        here, there = getattr(known, field), getattr(expected, field)
        if here != there:
            raise DataFolderError(
                f"{path}: the shard on disk has {field} {here!r}, the placement says {there!r}: it is not touched;"
                " give the cluster its own data_dir, or put the shard's own data back"
            )


def _translate(error: lmdb.Error | OSError, path: Path) -> StoreError:
    if isinstance(error, lmdb.MapFullError):
        return StoreFull(f"{path}: the map of {MAP_BYTES >> 30} GiB is full")
    code = error.errno if isinstance(error, OSError) else error.code
    if code == errno.ENOSPC:
        return StoreFull(f"{path}: no space left on the disk")
    if isinstance(error, lmdb.MemoryError) or code == errno.ENOMEM:
        return StoreError(
            f"{path}: the system gives no {MAP_BYTES >> 30} GiB of address space for the map; raise `ulimit -v`"
        )
    damaged = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.PanicError)
    if isinstance(error, (*damaged, lmdb.VersionMismatchError, lmdb.NotFoundError)):
        return StoreDamaged(f"{path}: the data is damaged: {error}; restore a backup")
    return StoreError(f"{path}: {error}")

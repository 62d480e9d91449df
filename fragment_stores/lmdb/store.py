"""A shard in LMDB, in the roles that a node asks for.

Reads go from the memory map into the reply without a copy; a view lives as long as its transaction. The one writer's
commit is durable when it returns: LMDB syncs the data pages before the meta page that makes them visible (copy on
write, no log; http://www.lmdb.tech/doc/). A process that is killed leaves nothing to recover but a reader's slot, which
the next open clears.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import lmdb

from ...wire.errors import EpochMismatch, StoreCorrupt, StoreError
from ...wire.protocol.messages import Rejection, Write
from ...wire.protocol.versions import first_version, generation_of
from ..engine import CopiedShard, LogRow, ShardIdentity, StoreStatistics
from .cold_reads import ColdReads
from .commit_work import CommitWork
from .compacting_copy import copy_shard
from .environment import DATA_FILE, has_data, make_directory, read_ahead
from .errors import FAILURES, translate
from .expiry import due_rows, first_expiry_ms
from .schema import CLOCK_KEY, encode_clock
from .shard_file import LMDBFile
from .snapshot import LMDBSnapshot, join_batches

__all__ = ["LMDBStore"]

LOG_ROWS_MAX: Final = 16_384
"""Rows of the log that are kept. Each costs about 200 bytes of the node's memory (its write id): 3 MiB a shard; ten
minutes of retries at 25 saves a second a shard."""

_turn: Final = threading.Lock()
"""Held by the thread that works in a write transaction, and left before its sync: the threads that commit to several
shards wait for the disk together and for the interpreter one by one, or reads had 2.75 times their p99."""

_cold_reads: Final = ColdReads()
"""The cold reads of this process: its shards share the loop that must not wait, and the disk."""


class LMDBStore(LMDBFile):
    """One shard: its reads, commits, log and copies."""

    def __init__(
        self,
        path: Path,
        identity: ShardIdentity,
        *,
        create: bool,
        durable: bool = True,
        cold_reads: ColdReads = _cold_reads,
    ) -> None:
        """Open the shard in directory `path`.

        `identity` is what the placement says of it; `create` permits to make it if it does not exist yet. With
        `durable` every commit is synced when it returns; without, `sync` does it: a crash of the process then loses
        nothing, one of the machine what was not synced, and may leave the file corrupt (mdb_env_open, MDB_NOSYNC).

        Raises:
            StoreCorrupt: it is missing though it should exist, or is corrupt.
            DataDirectoryError: it is another shard's or cluster's, or the directory cannot be made.
            StoreFull, StoreError: it cannot be opened here.
        """
        super().__init__(path, identity, durable=durable, cold_reads=cold_reads)
        self.read = self._reader.read
        if create:
            make_directory(path)
        elif not has_data(path):
            raise StoreCorrupt(f"{path}: the shard's data is missing though it was written before; restore a backup")
        self._open(create=create)

    def begin_generation(self, generation: int, origin: int = 0) -> None:
        """Take versions of this generation from now on, from `origin`."""
        floor = first_version(generation, origin)
        if generation <= generation_of(self.version):
            raise StoreCorrupt(
                f"{self.path}: the shard has version {self.version}, newer than generation {generation} of the"
                " placement: the placement file is older than the data; restore the newest one"
            )
        self.version = floor

    def snapshot(self) -> LMDBSnapshot:
        """Return the present moment for reading; waits while the environment is opened again."""
        return self._reader.snapshot()

    join = staticmethod(join_batches)

    def agents_after(self, position: bytes, agents_max: int, prefix: bytes = b"") -> Future[list[bytes]]:
        """Return ids in byte order, those greater than `position`, at most `agents_max`, while they have the prefix."""
        return self._reader.agents_after(position, agents_max, prefix)

    def log_after(self, version: int, rows_max: int) -> list[tuple[int, LogRow]]:
        """Return committed writes in order, those with greater versions, at most `rows_max`."""
        with self.snapshot() as snapshot:
            return snapshot.log_after(version, rows_max)

    def log_trimmed(self) -> int:
        """Return the newest version whose row has gone from the log, 0 if none has."""
        with self.snapshot() as snapshot:
            return snapshot.log_trimmed()

    def pin_log(self, position: int) -> AbstractContextManager[None]:
        """Keep the rows after a position in the log."""
        return self._pins.pin(position)

    def write_copy(self, sink: Callable[[bytes], None]) -> CopiedShard:
        """Deliver a compacted copy to `sink`, from one read transaction."""
        with self._gate.passed():
            return copy_shard(self._environment, self._databases, self.path, sink)

    def commit(self, writes: Sequence[Write], now_ms: int, epoch: int) -> list[int | Rejection]:
        """Apply writes in order in one transaction, synced on return."""
        if epoch != self.identity.epoch:
            raise EpochMismatch(f"{self.path}: the shard has epoch {self.identity.epoch}, the writes have {epoch}")

        def apply(work: CommitWork) -> bool:
            work.apply_all(writes, self._applied, self._trimmed)
            return bool(work.rows)

        return self._transact(apply, now_ms).results

    def _transact(self, fill: Callable[[CommitWork], bool], now_ms: int) -> CommitWork:
        """Run `fill` in one write transaction, and commit it if it returns True; again if the map had to grow."""
        while True:
            work = None
            try:
                # The turn ends before the transaction does: its commit, and so its sync, is outside.
                with self._environment.begin(self._databases.images, write=True, buffers=True) as transaction, _turn:
                    clock_ms = max(now_ms, self.clock_ms)
                    work = CommitWork(transaction, self._databases, self.version, clock_ms, self.next_expiry_ms)
                    if not fill(work):
                        transaction.abort()
                        return work
                    if not work.add_rows():
                        raise StoreCorrupt(
                            f"{self.path}: the data is corrupt: the log has a row newer than the shard's clock, version"
                            f" {self.version}; restore a backup"
                        )
                    work.trim_log(self._pins, self._log_rows + len(work.rows) - LOG_ROWS_MAX)
                    transaction.put(CLOCK_KEY, encode_clock(work.version, work.clock_ms), db=self._databases.meta)
            except lmdb.MapFullError as error:
                if not self._grow():
                    raise translate(error, self.path) from error
            except FAILURES as error:
                if not self._is_committed_nevertheless(work) or work is None:
                    raise translate(error, self.path) from error
                return work
            else:
                self._take_over(work)
                return work

    def _is_committed_nevertheless(self, work: CommitWork | None) -> bool:
        """Return whether a commit that failed is in the file nevertheless; an abandoned environment is opened again.

        If the meta page could not be written, LMDB tries to restore the former one, and that may fail, too.

        Raises:
            StoreCorrupt, StoreError: it cannot be determined.
        """
        try:
            self._environment.begin().abort()
        except lmdb.Error:
            if not self._reopen(self._map_bytes):
                raise StoreError(f"{self.path}: a write failed, and the file cannot be opened again yet") from None
            if work is not None and work.rows and self.version == work.version:
                self.sync()
                return True
        return False

    def sweep(self, before_ms: int, rows_max: int, now_ms: int) -> tuple[int, int]:
        """Remove fragments that expired by `before_ms`, in one logged commit."""
        try:
            with self._gate.passed(), self._environment.begin(self._databases.expiry, buffers=True) as transaction:
                cursor = transaction.cursor()
                due = due_rows(cursor, before_ms, rows_max)
                if not due:  # commits have removed the rows that were first
                    self.next_expiry_ms = first_expiry_ms(cursor)
        except lmdb.Error as error:
            raise translate(error, self.path) from error
        if not due:
            return 0, 0
        removed = 0

        def sweep(work: CommitWork) -> bool:
            nonlocal removed
            removed = work.sweep_all(due, before_ms)
            return True

        self._transact(sweep, now_ms)
        return len(due), removed

    def postpone_expiry(self, since_ms: int, by_ms: int, now_ms: int) -> int:
        """Let fragments written at `since_ms` or later expire `by_ms` later."""
        postponed = 0

        def postpone_all(work: CommitWork) -> bool:
            nonlocal postponed
            postponed = work.postpone_all(since_ms, by_ms)
            return postponed > 0

        self._transact(postpone_all, now_ms)
        return postponed

    def sync(self) -> None:
        """Make every commit durable (mdb_env_sync)."""
        try:
            self._environment.sync(True)
        except lmdb.Error as error:
            raise translate(error, self.path) from error

    def warm_up(self) -> None:
        """Ask the operating system to read the file ahead (posix_fadvise(2), POSIX_FADV_WILLNEED)."""
        read_ahead(self.path)

    def statistics(self) -> StoreStatistics:
        """Return the sizes of the shard."""
        try:
            with self._reader.snapshot_at_once() as snapshot:
                agents = snapshot.agents()
            used = os.stat(self.path / DATA_FILE).st_blocks * 512
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.path / DATA_FILE} is not there any more: the data directory was moved or unmounted under its"
                " node; put it back, and restart the node"
            ) from error
        except FAILURES as error:
            raise translate(error, self.path) from error
        return StoreStatistics(agents, self._log_rows, used)

"""A shard in one LMDB environment.

Reads go from the memory map into the reply without a copy; a view lives as long as its transaction. The one writer's
commit is durable when it returns: LMDB syncs the data pages before the meta page that makes them visible (copy on
write, no log; http://www.lmdb.tech/doc/). A process that is killed leaves nothing to recover but a reader's slot, which
the next open clears.

The environment is closed and opened again, while nobody reads, where its map is full and may grow, and where LMDB has
given it up because the meta page could not be written (MDB_PANIC): what that commit came to is then read from the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import lmdb
import msgspec

from ...wire.durable_files import sync_folder
from ...wire.errors import DawnchorusError, ProtocolError, StoreDamaged, StoreError
from ...wire.protocol.image import decode_image
from ...wire.protocol.messages import Drop, Refusal, Write
from ...wire.protocol.versions import first_version, generation_of
from ..apply_write import merge
from ..engine import NO_TURN, CopiedShard, ShardIdentity, StoreStatistics
from .compacting_copy import copy_shard
from .environment import DATA_FILE, has_data, make_folder, open_environment, read_ahead, require_whole
from .errors import FAILURES, MAP_BYTES, MAP_BYTES_MAX, translate
from .expiry import due_rows, postpone
from .identity import decode_identity, read_identity, require_identity
from .log_pins import LogPins
from .readers_writer_lock import Gate
from .rows import CLOCK, CommitWork, log_row, misused_id, trim_log, undecidable
from .schema import open_databases
from .snapshot import LMDBSnapshot, row_decoder

__all__ = ["LMDBSnapshot", "LMDBStore", "read_identity"]

LOG_ROWS_MAX: Final = 16_384
"""Rows of the log that are kept. Each costs about 200 bytes of the node's memory (its write id): 3 MiB a shard; ten
minutes of retries at 25 saves a second a shard."""

_KEY_BYTES_MAX: Final = 511
"""LMDB's longest key; a read with a longer one is an error, not an absence."""

_REOPEN_PATIENCE_S: Final = 0.1
"""How long reopening waits for readers to end, and new ones for it: the loop's take milliseconds, backups minutes."""


_encoder = msgspec.msgpack.Encoder()


class LMDBStore:
    """One shard: one environment in one folder, open once in one process."""

    def __init__(self, path: Path, identity: ShardIdentity, *, create: bool, durable: bool = True) -> None:
        """Open the shard in folder `path`.

        `identity` is what the placement says of it; `create` permits to make it where it does not exist yet. With
        `durable` every commit is synced when it returns; without, `sync` does it: the death of the process then loses
        nothing, that of the machine what was not synced, and may leave the file damaged (mdb_env_open, MDB_NOSYNC).

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
        self.identity = identity
        self._durable = durable
        self._gate = Gate()
        self._pins = LogPins()
        self._map_bytes = MAP_BYTES
        self._open(create=create)
        self._pins.note(self._trimmed)

    def _open(self, *, create: bool) -> None:
        try:
            self._environment = open_environment(self.path, self._map_bytes, durable=self._durable)
        except (lmdb.Error, OSError) as error:
            raise translate(error, self.path) from error
        self._map_bytes = self._environment.info()["map_size"]  # at least what the file has
        try:
            require_whole(self._environment, self.path)
            self._open_databases(create=create)
            if create:  # the placement is about to say that the shard exists
                self._environment.sync(True)
                sync_folder(self.path)
        except FAILURES as error:
            self._environment.close()
            raise translate(error, self.path) from error
        except DawnchorusError:
            self._environment.close()
            raise

    def _open_databases(self, *, create: bool) -> None:
        environment, identity = self._environment, self.identity
        environment.reader_check()
        self._databases = databases = open_databases(environment, create=create)
        with environment.begin(write=create) as transaction:
            known = transaction.get(b"identity", db=databases.meta)
            if known is None:
                if not create:
                    raise StoreDamaged(f"{self.path}: the shard does not say whose it is; restore a backup")
                transaction.put(b"identity", _encoder.encode(identity), db=databases.meta)
                transaction.put(b"clock", CLOCK.pack(0, 0), db=databases.meta)
            else:
                require_identity(decode_identity(known, self.path), identity, self.path)
            clock = transaction.get(b"clock", db=databases.meta)
            if clock is None or len(clock) != CLOCK.size:
                raise StoreDamaged(f"{self.path}: the shard's clock is missing; restore a backup")
            self.version, self.clock_ms = CLOCK.unpack(clock)
            self._log_rows = transaction.stat(databases.log)["entries"]
            self._indexed = transaction.stat(databases.expiry)["entries"] > 0  # 1 us: not for each commit
            self._trimmed = int.from_bytes(transaction.get(b"trimmed", b"", db=databases.meta), "big")
            self._applied = {
                row_decoder.decode(row).write_id: int.from_bytes(key, "big")
                for key, row in transaction.cursor(databases.log)
            }
            self._applied.pop(b"", None)  # the sweeper's writes have no id

    def _reopen(self, map_bytes: int) -> bool:
        """Close the environment and open it again; return False where a reader stays inside.

        Raises:
            StoreDamaged, StoreError: it cannot be opened, and stays closed until it can.
        """
        with self._gate.alone(_REOPEN_PATIENCE_S) as alone:
            if alone:
                version, clock_ms = self.version, self.clock_ms
                before, self._map_bytes = self._map_bytes, map_bytes
                self._environment.close()
                try:
                    self._open(create=False)
                except StoreError:
                    if map_bytes == before:
                        raise
                    self._map_bytes = before  # it may not grow so far: ulimit -v
                    self._open(create=False)
                # A generation counts from its beginning, whether it has written anything or not.
                self.version, self.clock_ms = max(version, self.version), max(clock_ms, self.clock_ms)
        return alone

    def begin_generation(self, generation: int, origin: int = 0) -> None:
        """Take versions of this generation from now on, from `origin`."""
        floor = first_version(generation, origin)
        if generation <= generation_of(self.version):
            raise StoreDamaged(
                f"{self.path}: the shard has version {self.version}, newer than generation {generation} of the"
                " placement: the placement file is older than the data; restore the newest one"
            )
        self.version = floor

    def snapshot(self) -> LMDBSnapshot:
        """Return the present moment for reading; 2 us."""
        self._gate.enter()
        # The version is read before the transaction begins, so the transaction is never older than it says.
        version = self.version
        try:
            transaction = self._environment.begin(self._databases.images, buffers=True)
        except lmdb.Error as error:
            self._gate.leave()
            raise translate(error, self.path) from error
        return LMDBSnapshot(transaction, self._databases, self.path, version, self._gate.leave)

    def pin_log(self, position: int) -> AbstractContextManager[None]:
        """Keep the rows after a position in the log."""
        return self._pins.pin(position)

    def write_copy(self, sink: Callable[[bytes], None]) -> CopiedShard:
        """Hand a compacted copy to `sink`, from one read transaction."""
        with self._gate.passed():
            return copy_shard(self._environment, self._databases.images, self._databases.meta, self.path, sink)

    def commit(
        self, writes: Sequence[Write], now_ms: int, turn: AbstractContextManager[object] = NO_TURN
    ) -> list[int | Refusal]:
        """Apply writes in order in one transaction, synced on return; `turn` is held until the sync begins."""

        def apply_all(transaction: lmdb.Transaction[memoryview], work: CommitWork) -> bool:
            for write in writes:
                before = self._applied.get(write.write_id) or work.applied.get(write.write_id)
                if before is not None:
                    work.results.append(self._first_result(transaction, write, before, work))
                elif write.repeated and write.seen < self._trimmed:
                    work.results.append(undecidable(self._trimmed))
                else:
                    work.results.append(self._apply(transaction, write, work))
            return bool(work.rows)

        return self._transact(apply_all, now_ms, turn).results

    def _transact(
        self,
        fill: Callable[[lmdb.Transaction[memoryview], CommitWork], bool],
        now_ms: int,
        turn: AbstractContextManager[object] = NO_TURN,
    ) -> CommitWork:
        """Run `fill` in one write transaction, and commit it where it returns True; again where the map had to grow."""
        while True:
            work = CommitWork(self.version, max(now_ms, self.clock_ms), indexed=self._indexed)
            try:
                # The turn ends before the transaction does: its commit, and so its sync, is outside.
                with self._environment.begin(self._databases.images, write=True, buffers=True) as transaction, turn:
                    if not fill(transaction, work):
                        transaction.abort()
                        return work
                    # Versions only grow, so the rows go behind the last: LMDB appends without a search.
                    with transaction.cursor(self._databases.log) as log:
                        # A row that is not behind the last is passed over without an error.
                        _, added = log.putmulti(work.rows, append=True)
                    if added != len(work.rows):
                        raise StoreDamaged(
                            f"{self.path}: the data is damaged: the log has a row newer than the shard's clock, version"
                            f" {self.version}; restore a backup"
                        )
                    rows = self._log_rows + len(work.rows) - LOG_ROWS_MAX
                    work.forgotten = trim_log(transaction, self._databases, self._pins, rows)
                    transaction.put(b"clock", CLOCK.pack(work.version, work.clock_ms), db=self._databases.meta)
            except lmdb.MapFullError as error:
                if self._map_bytes >= MAP_BYTES_MAX or not self._grow():
                    raise translate(error, self.path) from error
            except FAILURES as error:
                if not self._is_committed_nevertheless(work):
                    raise translate(error, self.path) from error
                return work
            else:
                self._take_over(work)
                return work

    def _grow(self) -> bool:
        """Double the map; return whether it has grown."""
        before = self._map_bytes
        return self._reopen(min(2 * before, MAP_BYTES_MAX)) and self._map_bytes > before

    def _is_committed_nevertheless(self, work: CommitWork) -> bool:
        """Return whether a commit that failed is in the file all the same; an environment given up is opened again.

        Where the meta page could not be written, LMDB tries to put back what was there, and that may fail, too.

        Raises:
            StoreDamaged, StoreError: it cannot be told.
        """
        try:
            self._environment.begin().abort()
        except lmdb.Error:
            if not self._reopen(self._map_bytes):
                raise StoreError(f"{self.path}: a write failed, and the file cannot be opened again yet") from None
            if work.rows and self.version == work.version:
                self.sync()
                return True
        return False

    def _take_over(self, work: CommitWork) -> None:
        """Let what one transaction has come to be the store's state: it is committed."""
        self.version, self.clock_ms, self._indexed = work.version, work.clock_ms, work.indexed
        self._applied.update(work.applied)
        self._log_rows += len(work.rows) - len(work.forgotten)
        for version, write_id in work.forgotten:
            self._trimmed = version
            self._applied.pop(write_id, None)

    def _first_result(
        self, transaction: lmdb.Transaction[memoryview], write: Write, version: int, work: CommitWork
    ) -> int | Refusal:
        """Return what a write that was applied before, maybe in this very transaction, is answered with."""
        row: bytes | memoryview | None
        if version > self.version:
            row = work.rows[version - self.version - 1][1]
        else:
            row = transaction.get(version.to_bytes(8, "big"), db=self._databases.log)
        misused = None if row is None else misused_id(row_decoder.decode(row), write)
        return version if misused is None else misused

    def _apply(self, transaction: lmdb.Transaction[memoryview], write: Write, work: CommitWork) -> int | Refusal:
        version = work.version + 1
        begun: set[int] = set()
        ended: set[int] | None = set() if work.indexed else None
        try:
            before = transaction.get(write.agent) if 0 < len(write.agent) <= _KEY_BYTES_MAX else None
            merged = merge(before, write, version, work.clock_ms, begun, ended)
        except ProtocolError as error:
            return Refusal(f"the agent's image is damaged: {error}")
        if isinstance(merged, Refusal):
            return merged
        if merged is before:
            return 0
        row = log_row(write, before, work.clock_ms)  # before the image is replaced, of which it may be a view
        if merged is None:
            transaction.delete(write.agent)
        else:
            transaction.put(write.agent, merged)
        for expires_ms in ended or ():  # a row that stayed would be there until its time is over
            transaction.delete(expires_ms.to_bytes(8, "big") + write.agent, db=self._databases.expiry)
        for expires_ms in begun:
            work.indexed = True
            transaction.put(expires_ms.to_bytes(8, "big") + write.agent, b"", db=self._databases.expiry)
        work.rows.append((version.to_bytes(8, "big"), _encoder.encode(row)))
        work.version = version
        if write.write_id:
            work.applied[write.write_id] = version
        return version

    def sweep(self, before_ms: int, rows_max: int, now_ms: int) -> tuple[int, int]:
        """Remove fragments that expired by `before_ms`, in one logged commit."""
        try:
            with self._gate.passed(), self._environment.begin(self._databases.expiry, buffers=True) as transaction:
                due = due_rows(transaction.cursor(), before_ms, rows_max)
        except lmdb.Error as error:
            raise translate(error, self.path) from error
        if not due:
            return 0, 0
        removed = 0

        def sweep_all(transaction: lmdb.Transaction[memoryview], work: CommitWork) -> bool:
            nonlocal removed
            agents = dict.fromkeys(due.values())
            removed = sum([self._sweep_agent(transaction, agent, before_ms, work) for agent in agents])
            for row in due:
                transaction.delete(row, db=self._databases.expiry)
            work.indexed = transaction.stat(self._databases.expiry)["entries"] > 0
            return True

        self._transact(sweep_all, now_ms)
        return len(due), removed

    def _sweep_agent(
        self, transaction: lmdb.Transaction[memoryview], agent: bytes, before_ms: int, work: CommitWork
    ) -> int:
        image = transaction.get(agent)
        if image is None:
            return 0
        try:
            fragments = decode_image(image)
        except ProtocolError:
            return 0  # damaged: whoever wakes the agent is told, and verify names it
        gone = [kind for kind, fragment in fragments.items() if 0 < fragment.expires_ms <= before_ms]
        if gone:
            self._apply(transaction, Write(agent, b"", 0, [Drop(kind) for kind in gone]), work)
        return len(gone)

    def postpone_expiry(self, since_ms: int, by_ms: int, now_ms: int) -> int:
        """Let fragments written at `since_ms` or later expire `by_ms` later."""
        postponed = 0

        def postpone_all(transaction: lmdb.Transaction[memoryview], _: CommitWork) -> bool:
            nonlocal postponed
            postponed = postpone(transaction, self._databases, since_ms, by_ms)
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
            with self._gate.passed(), self._environment.begin() as transaction:
                agents = transaction.stat(self._databases.images)["entries"]
            used = os.stat(self.path / DATA_FILE).st_blocks * 512
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.path / DATA_FILE} is not there any more: the data directory was moved or unmounted under its"
                " node; put it back, and restart the node"
            ) from error
        except FAILURES as error:
            raise translate(error, self.path) from error
        return StoreStatistics(agents, self._log_rows, used)

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()

"""The file of a shard in LMDB: its environment, what is known of it, and opening it again.

The environment is closed and opened again, while it has no readers, if its map is full and may grow, and if LMDB has
abandoned it because the meta page could not be written (MDB_PANIC): that commit's outcome is then read from the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import lmdb

from ...wire.durable_files import sync_directory
from ...wire.errors import DawnchorusError, StoreError
from ..engine import ShardIdentity
from ..log_pins import LogPins
from .cold_reads import ColdReads
from .commit_work import CommitWork
from .environment import open_environment, require_complete
from .errors import FAILURES, MAP_BYTES, MAP_BYTES_MAX, translate
from .expiry import first_expiry_ms
from .identity import take_identity
from .reader import LMDBReader
from .readers_writer_lock import Gate
from .schema import TRIMMED_KEY, open_databases, row_decoder, version_of_key

__all__ = ["LMDBFile"]

_REOPEN_PATIENCE_S: Final = 0.1
"""The longest that reopening waits for readers to end, and new ones for it: the loop's take ms, backups minutes."""

_CLOSE_PATIENCE_S: Final = 1.0
"""The longest that closing waits for threads that read from the disk."""


class LMDBFile:
    """One environment in one directory, open once in one process."""

    def __init__(self, path: Path, identity: ShardIdentity, *, durable: bool, cold_reads: ColdReads) -> None:
        """Make it; nothing is opened yet."""
        self.path = path
        self.identity = identity
        self._durable = durable
        self._gate = Gate()
        self._reader = LMDBReader(path, self._gate, cold_reads)
        self._pins = LogPins()
        self._map_bytes = MAP_BYTES

    @property
    def version(self) -> int:
        """The newest committed version."""
        return self._reader.version

    @version.setter
    def version(self, version: int) -> None:
        self._reader.version = version

    def _open(self, *, create: bool) -> None:
        try:
            self._environment = open_environment(self.path, self._map_bytes, durable=self._durable)
        except (lmdb.Error, OSError) as error:
            raise translate(error, self.path) from error
        self._map_bytes = self._environment.info()["map_size"]  # at least what the file has
        try:
            require_complete(self._environment, self.path)
            self._open_databases(create=create)
            if create:  # the placement is about to say that the shard exists
                self._environment.sync(True)
                sync_directory(self.path)
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
        self._reader.attach(environment, databases)
        with environment.begin(write=create) as transaction:
            clock = take_identity(transaction, databases.meta, identity, self.path, create=create)
            self.version, self.clock_ms = clock
            self._log_rows = transaction.stat(databases.log)["entries"]
            self.next_expiry_ms = first_expiry_ms(transaction.cursor(databases.expiry))
            self._trimmed = version_of_key(transaction.get(TRIMMED_KEY, b"", db=databases.meta))
            self._applied = {
                row_decoder.decode(row).write_id: version_of_key(key) for key, row in transaction.cursor(databases.log)
            }
            self._applied.pop(b"", None)  # the sweeper's writes have no id
        self._pins.note(self._trimmed)

    def _reopen(self, map_bytes: int) -> bool:
        """Close the environment and open it again; return False if a reader stays inside.

        Raises:
            StoreCorrupt, StoreError: it cannot be opened, and stays closed until it can.
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
                    self._map_bytes = before  # it may not grow that far: ulimit -v
                    self._open(create=False)
                # A generation counts from its beginning, whether it has written anything or not.
                self.version, self.clock_ms = max(version, self.version), max(clock_ms, self.clock_ms)
        return alone

    def _grow(self) -> bool:
        """Double the map; return whether it has grown."""
        before = self._map_bytes
        if before >= MAP_BYTES_MAX:
            return False
        return self._reopen(min(2 * before, MAP_BYTES_MAX)) and self._map_bytes > before

    def _take_over(self, work: CommitWork) -> None:
        """Make the state of a committed transaction the store's."""
        self.version, self.clock_ms, self.next_expiry_ms = work.version, work.clock_ms, work.next_expiry_ms
        self._applied.update(work.applied)
        self._log_rows += len(work.rows) - len(work.forgotten)
        for version, write_id in work.forgotten:
            self._trimmed = version
            self._applied.pop(write_id, None)

    def close(self) -> None:
        """Close the environment; it stays open under a reader: the process is about to end, and must not crash."""
        with self._gate.alone(_CLOSE_PATIENCE_S) as alone:
            if alone:
                self._environment.close()

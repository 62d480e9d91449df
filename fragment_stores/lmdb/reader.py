"""The reading half of a shard in LMDB: snapshots of the environment that is open at the time.

The event loop never waits here: a read that meets a page which is not in memory (`cold_reads`), or an environment that
is being opened again (`readers_writer_lock`), is pending.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from time import monotonic

import lmdb

from ...wire.errors import StoreError
from ..image_batch import ImageBatch, PendingBatch
from .cold_reads import CHECKS, SLOW_S, ColdReads
from .errors import translate
from .readers_writer_lock import Gate
from .schema import Databases
from .snapshot import LMDBSnapshot

__all__ = ["LMDBReader"]


class LMDBReader:
    """Reads of one shard; any thread may use it."""

    def __init__(self, path: Path, gate: Gate, cold_reads: ColdReads) -> None:
        self._path = path
        self._gate = gate
        self._cold_reads = cold_reads
        self.version = 0
        """The newest version that was committed."""

    def attach(self, environment: lmdb.Environment, databases: Databases) -> None:
        """Read from this environment from now on; the gate is held alone, or there are no readers yet."""
        self._environment = environment
        self._databases = databases

    def snapshot(self) -> LMDBSnapshot:
        """Return the present moment for reading, once the environment is open; 2 us."""
        self._gate.enter()
        return self._begin()

    def snapshot_at_once(self) -> LMDBSnapshot:
        """Return the present moment without waiting.

        Raises:
            StoreError: the environment is being opened again.
        """
        if not self._gate.try_enter():
            raise StoreError(f"{self._path}: is being opened again; ask a moment later")
        return self._begin()

    def _begin(self) -> LMDBSnapshot:
        """Return the present moment; the caller has passed the gate."""
        # The version is read before the transaction begins, so the transaction is never older than it says.
        version = self.version
        try:
            transaction = self._environment.begin(self._databases.images, buffers=True)
        except lmdb.Error as error:
            self._gate.leave()
            raise translate(error, self._path) from error
        return LMDBSnapshot(transaction, self._databases, self._path, version, self._gate.leave)

    def read(
        self, agents: Sequence[bytes], kinds: frozenset[str] | None = None, known: Sequence[int] | None = None
    ) -> ImageBatch | PendingBatch:
        """Find the present image of each agent."""
        if not self._gate.try_enter():
            return self._gate.opening()
        began = monotonic()
        checks = CHECKS if began < self._cold_reads.suspicious_until else 0
        snapshot = self._begin()
        try:
            batch = snapshot.read(agents, kinds, known, checks)
        except BlockingIOError:
            return self._cold_reads.submit(len(agents), partial(self._warm, agents))
        now = monotonic()
        if now - began > SLOW_S:
            self._cold_reads.note_slow(now)
        return batch

    def _warm(self, agents: Sequence[bytes]) -> None:
        with self.snapshot() as snapshot:
            snapshot.warm(agents)

    def agents_after(self, position: bytes, agents_max: int, prefix: bytes) -> Future[list[bytes]]:
        """List ids in another thread: a page of them may be cold as well."""

        def list_ids() -> list[bytes]:
            with self.snapshot() as snapshot:
                return snapshot.agents_after(position, agents_max, prefix)

        return self._cold_reads.run(agents_max, list_ids)

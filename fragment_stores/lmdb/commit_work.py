"""One write transaction on a shard in LMDB, as its writes are applied to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import lmdb

from ...wire.errors import ProtocolError
from ...wire.protocol.image import decode_image
from ...wire.protocol.messages import DeleteKind, Rejection, Write
from ..apply_write import apply_write
from ..log_pins import LogPins
from ..log_rows import indeterminate, log_row, misused_id
from .expiry import first_expiry_ms, postpone
from .schema import TRIMMED_KEY, Databases, encoder, expiry_row, row_decoder, version_key, version_of_key

__all__ = ["CommitWork"]

_KEY_BYTES_MAX: Final = 511
"""LMDB's longest key; a read with a longer one is an error, not an absence."""

TRIM_ROWS_MAX: Final = 65_536
"""Rows trimmed in one commit, about 100 ms: more than a commit brings, fewer than a pin may have kept."""


class CommitWork:
    """The state of one transaction so far; the transaction's default database is that of the images."""

    __slots__ = (
        "_databases",
        "_transaction",
        "applied",
        "clock_ms",
        "first_version",
        "forgotten",
        "next_expiry_ms",
        "results",
        "rows",
        "version",
    )

    def __init__(
        self,
        transaction: lmdb.Transaction[memoryview],
        databases: Databases,
        version: int,
        clock_ms: int,
        next_expiry_ms: int,
    ) -> None:
        self._transaction = transaction
        self._databases = databases
        self.first_version = version
        """The shard's version before the transaction."""
        self.version = version
        self.clock_ms = clock_ms
        self.rows: list[tuple[bytes, bytes]] = []
        """The rows that it adds to the log, by version, oldest first; put at once: 0.06 us a row, one by one 0.3."""
        self.results: list[int | Rejection] = []
        self.applied: dict[bytes, int] = {}
        """Version by write id."""
        self.forgotten: list[tuple[int, bytes]] = []
        """Version and write id of each row that it takes from the log."""
        self.next_expiry_ms = next_expiry_ms
        """Before this time nothing expires; 0 if the expiry index has no row, so that no write can end one."""

    def apply_all(self, writes: Sequence[Write], known: dict[bytes, int], trimmed: int) -> None:
        """Apply writes in order; `known` are the versions of earlier ones by their ids, as far back as `trimmed`."""
        for write in writes:
            before = known.get(write.write_id) or self.applied.get(write.write_id)
            if before is not None:
                self.results.append(self._first_result(write, before))
            elif write.repeated and write.seen < trimmed:
                self.results.append(indeterminate(trimmed))
            else:
                self.results.append(self.apply(write))

    def apply(self, write: Write) -> int | Rejection:
        """Apply one write that was not applied before; return its result."""
        transaction, expiry = self._transaction, self._databases.expiry
        version = self.version + 1
        begun: set[int] = set()
        ended: set[int] | None = set() if self.next_expiry_ms else None
        try:
            before = transaction.get(write.agent) if 0 < len(write.agent) <= _KEY_BYTES_MAX else None
            image = apply_write(before, write, version, self.clock_ms, begun, ended)
        except ProtocolError as error:
            return Rejection(f"the agent's image is corrupt: {error}")
        if isinstance(image, Rejection):
            return image
        if image is before:
            return 0
        row = log_row(write, before, self.clock_ms)  # before the image is replaced, of which it may be a view
        if image is None:
            transaction.delete(write.agent)
        else:
            transaction.put(write.agent, image)
        for expires_ms in ended or ():  # a row that stayed would be there until its time has passed
            transaction.delete(expiry_row(expires_ms, write.agent), db=expiry)
        for expires_ms in begun:
            self.next_expiry_ms = min(self.next_expiry_ms or expires_ms, expires_ms)
            transaction.put(expiry_row(expires_ms, write.agent), b"", db=expiry)
        self.rows.append((version_key(version), encoder.encode(row)))
        self.version = version
        if write.write_id:
            self.applied[write.write_id] = version
        return version

    def _first_result(self, write: Write, version: int) -> int | Rejection:
        """Return the answer to a write that was applied before, perhaps in this very transaction."""
        row: bytes | memoryview | None
        if version > self.first_version:
            row = self.rows[version - self.first_version - 1][1]
        else:
            row = self._transaction.get(version_key(version), db=self._databases.log)
        misused = None if row is None else misused_id(row_decoder.decode(row), write)
        return version if misused is None else misused

    def sweep_all(self, due: dict[bytes, bytes], before_ms: int) -> int:
        """Remove what expired by `before_ms` of the agents of these expiry rows, and the rows; return how much."""
        expiry = self._databases.expiry
        removed = sum([self._sweep_agent(agent, before_ms) for agent in dict.fromkeys(due.values())])
        for row in due:
            self._transaction.delete(row, db=expiry)
        self.next_expiry_ms = first_expiry_ms(self._transaction.cursor(expiry))
        return removed

    def _sweep_agent(self, agent: bytes, before_ms: int) -> int:
        image = self._transaction.get(agent)
        if image is None:
            return 0
        try:
            fragments = decode_image(image)
        except ProtocolError:
            return 0  # corrupt: a wake of the agent reports it, and verify names it
        gone = [kind for kind, fragment in fragments.items() if 0 < fragment.expires_ms <= before_ms]
        if gone:
            self.apply(Write(agent, b"", 0, [DeleteKind(kind) for kind in gone]))
        return len(gone)

    def postpone_all(self, since_ms: int, by_ms: int) -> int:
        """Let fragments written at `since_ms` or later expire `by_ms` later; return how many."""
        postponed = postpone(self._transaction, self._databases, since_ms, by_ms)
        self.next_expiry_ms = first_expiry_ms(self._transaction.cursor(self._databases.expiry))
        return postponed

    def add_rows(self) -> bool:
        """Put the rows into the log; return whether each was appended behind the last one, as versions only grow."""
        with self._transaction.cursor(self._databases.log) as log:
            # LMDB appends without a search, and passes over a row that is not behind the last, without an error.
            _, added = log.putmulti(self.rows, append=True)
        return added == len(self.rows)

    def trim_log(self, pins: LogPins, rows: int) -> None:
        """Delete the oldest rows of the log, so many, as far as they are not pinned."""
        if rows <= 0:
            return
        with pins.lock, self._transaction.cursor(self._databases.log) as cursor:
            limit = pins.trim_limit()
            here = cursor.first()
            while here and len(self.forgotten) < min(rows, TRIM_ROWS_MAX):
                version = version_of_key(cursor.key())
                if version > limit:
                    break
                self.forgotten.append((version, row_decoder.decode(cursor.value()).write_id))
                here = cursor.delete()
            if self.forgotten:
                pins.note(self.forgotten[-1][0])
        if self.forgotten:
            self._transaction.put(TRIMMED_KEY, version_key(self.forgotten[-1][0]), db=self._databases.meta)

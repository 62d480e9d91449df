"""What a transaction on a shard in LMDB works on: its rows, and what it has come to so far."""

from __future__ import annotations

import struct
from typing import Final

import lmdb

from ..wire.messages import Drop, Erase, Put, Refusal, RefusalCode, Write

__all__ = ["CLOCK", "CommitWork", "due_rows", "of_another_agent", "operations_of", "undecidable"]


CLOCK: Final = struct.Struct(">QQ")
"""A shard's version and time, under "clock" in its `meta`."""


class CommitWork:
    """What one transaction has come to so far."""

    __slots__ = ("applied", "clock_ms", "forgotten", "indexed", "results", "rows", "version")

    def __init__(self, version: int, clock_ms: int) -> None:
        self.version = version
        self.clock_ms = clock_ms
        self.rows: list[tuple[bytes, bytes]] = []
        """What it adds to the log, by version, oldest first; put there all at once: 0.06 us a row, one by one 0.3."""
        self.results: list[int | Refusal] = []
        self.applied: dict[bytes, int] = {}
        """Version by write id."""
        self.forgotten: list[tuple[int, bytes]] = []
        """Version and write id of each row that it takes from the log."""
        self.indexed = False
        """Whether the expiry index has any row: where it has none, no write can end one."""


def due_rows(cursor: lmdb.Cursor[memoryview], before_ms: int, rows_max: int) -> dict[bytes, bytes]:
    """Return the agents of the first expiry rows that are due, by row."""
    due: dict[bytes, bytes] = {}
    here = cursor.first()
    while here and len(due) < rows_max:
        row = bytes(cursor.key())
        if int.from_bytes(row[:8], "big") > before_ms:
            break
        due[row] = row[8:]
        here = cursor.next()
    return due


def undecidable(trimmed: int) -> Refusal:
    """Return the refusal of a repeated write that the log does not reach back to."""
    reason = f"it may have been applied before, and the shard's log only reaches back to version {trimmed}"
    return Refusal(reason, RefusalCode.UNDECIDABLE)


def of_another_agent(write: Write) -> Refusal:
    """Return the refusal of a write whose id names a write to another agent."""
    return Refusal(f"write id {write.write_id.hex()} is that of a write to another agent")


def operations_of(write: Write) -> list[tuple[int, str]]:
    """Return a write's operations as its row in the log has them. Nearly all are puts, so that is asked first."""
    return [
        (1, operation.kind) if isinstance(operation, Put) else _deletion(operation) for operation in write.operations
    ]


def _deletion(operation: Drop | Erase) -> tuple[int, str]:
    return (2, operation.kind) if isinstance(operation, Drop) else (3, "")

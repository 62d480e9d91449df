"""Rows that a transaction on a shard in LMDB reads and writes, and its results so far."""

from __future__ import annotations

import struct
from typing import Final

import lmdb

from ...wire.protocol.messages import Refusal, RefusalCode, Write
from ...wire.protocol.write_digest import PUT, operations_digest, outline
from ..apply_write import removed_kinds
from ..engine import LogRow
from .log_pins import LogPins
from .schema import Databases
from .snapshot import row_decoder

__all__ = ["CLOCK", "CommitWork", "log_row", "misused_id", "trim_log", "undecidable"]


TRIM_ROWS_MAX: Final = 65_536
"""Rows trimmed in one commit, about 100 ms: more than a commit brings, fewer than a pin may have kept."""

CLOCK: Final = struct.Struct(">QQ")
"""A shard's version and time, under "clock" in its `meta`."""


class CommitWork:
    """What one transaction has come to so far."""

    __slots__ = ("applied", "clock_ms", "forgotten", "indexed", "results", "rows", "version")

    def __init__(self, version: int, clock_ms: int, *, indexed: bool) -> None:
        self.version = version
        self.clock_ms = clock_ms
        self.rows: list[tuple[bytes, bytes]] = []
        """What it adds to the log, by version, oldest first; put there all at once: 0.06 us a row, one by one 0.3."""
        self.results: list[int | Refusal] = []
        self.applied: dict[bytes, int] = {}
        """Version by write id."""
        self.forgotten: list[tuple[int, bytes]] = []
        """Version and write id of each row that it takes from the log."""
        self.indexed = indexed
        """Whether the expiry index may have a row: where it has none, no write can end one."""


def trim_log(
    transaction: lmdb.Transaction[memoryview], databases: Databases, pins: LogPins, rows: int
) -> list[tuple[int, bytes]]:
    """Delete the oldest rows of the log, as far as nobody has pinned them; return the version and write id of each."""
    forgotten: list[tuple[int, bytes]] = []
    if rows <= 0:
        return forgotten
    with pins.lock, transaction.cursor(databases.log) as cursor:
        limit = pins.trim_limit()
        here = cursor.first()
        while here and len(forgotten) < min(rows, TRIM_ROWS_MAX):
            version = int.from_bytes(cursor.key(), "big")
            if version > limit:
                break
            forgotten.append((version, row_decoder.decode(cursor.value()).write_id))
            here = cursor.delete()
        if forgotten:
            pins.note(forgotten[-1][0])
    if forgotten:
        transaction.put(b"trimmed", forgotten[-1][0].to_bytes(8, "big"), db=databases.meta)
    return forgotten


def undecidable(trimmed: int) -> Refusal:
    """Return the refusal of a repeated write that the log does not reach back to."""
    reason = f"it may have been applied before, and the shard's log only reaches back to version {trimmed}"
    return Refusal(reason, RefusalCode.UNDECIDABLE)


def misused_id(row: LogRow, write: Write) -> Refusal | None:
    """Return the refusal of a write whose id was that of another write, None where it is the same one again."""
    if row.agent != write.agent:
        return Refusal(f"write id {write.write_id.hex()} is that of a write to another agent")
    if row.digest and row.digest != (
        write.digest or operations_digest(write.operations)
    ):  # rows written before there were digests have none
        return Refusal(
            f"write id {write.write_id.hex()} is that of an earlier write of other kinds or values; give another one"
        )
    return None


def log_row(write: Write, image: memoryview | bytes | None, now_ms: int) -> LogRow:
    """Return what the log keeps of a write; `image` is the agent's before it, `now_ms` the time of the commit."""
    operations, digest = outline(write.operations)
    if not write.write_id:  # the sweeper's: nobody asks again
        return LogRow(write.agent, b"", operations)
    removed = None if operations[-1][0] == PUT else removed_kinds(image, write, now_ms)
    return LogRow(write.agent, write.write_id, operations, write.digest or digest, removed)

"""Rules on a shard's log that are the same for every engine: pure.

The log gives idempotent retries: a write whose id it still has was applied, and is answered as it was then.
"""

from __future__ import annotations

from ..wire.protocol.messages import Rejection, RejectionCode, Write
from ..wire.protocol.write_digest import PUT, operations_digest, outline
from .apply_write import removed_kinds
from .engine import LogRow

__all__ = ["indeterminate", "log_row", "misused_id"]


def log_row(write: Write, image: memoryview | bytes | None, now_ms: int) -> LogRow:
    """Return what the log keeps of a write; `image` is the agent's before it, `now_ms` the time of the commit."""
    operations, digest = outline(write.operations)
    if not write.write_id:  # the sweeper's: it is never repeated
        return LogRow(write.agent, b"", operations)
    removed = None if operations[-1][0] == PUT else removed_kinds(image, write, now_ms)
    return LogRow(write.agent, write.write_id, operations, write.digest or digest, removed)


def misused_id(row: LogRow, write: Write) -> Rejection | None:
    """Return the rejection of a write whose id was that of another write, None if it is the same one again."""
    if row.agent != write.agent:
        return Rejection(f"write id {write.write_id.hex()} is that of a write to another agent")
    if row.digest and row.digest != (
        write.digest or operations_digest(write.operations)
    ):  # rows written before there were digests have none
        return Rejection(
            f"write id {write.write_id.hex()} is that of an earlier write of other kinds or values; give another one"
        )
    return None


def indeterminate(trimmed: int) -> Rejection:
    """Return the rejection of a repeated write that the log does not reach back to."""
    reason = f"it may have been applied before, and the shard's log only reaches back to version {trimmed}"
    return Rejection(reason, RejectionCode.INDETERMINATE)

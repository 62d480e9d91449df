"""Codes for the end of a request, of a section of it, and of a write. Numbers are never reused."""

from __future__ import annotations

import enum

__all__ = ["FaultCode", "RejectionCode", "SectionStatus", "fault_code"]


class SectionStatus(enum.IntEnum):
    """How one section of a request ended: one bad shard fails its section, not the message."""

    OK = 0
    MOVED = 1
    """The node does not own the shard, or not under this epoch."""
    SEALED = 2
    """The shard takes no writes at the moment."""
    CORRUPT = 3
    """The shard's data cannot be trusted."""
    DISK_FULL = 4
    OVERLOADED = 5
    TOO_LATE = 6
    """The budget was spent before the work began; nothing was done."""
    INTERNAL = 7


class FaultCode(enum.IntEnum):
    """Why a request failed as a whole."""

    BAD_REQUEST = 1
    NO_HELLO = 2
    WRONG_CLUSTER = 3
    UNSUPPORTED = 4
    OVERLOADED = 5
    INTERNAL = 6


class RejectionCode(enum.IntEnum):
    """Why a write was not applied."""

    INVALID = 1
    """It is outside the limits, or not for this store."""
    CONFLICT = 2
    """Other versions are there than it expects; `found` has them."""
    INDETERMINATE = 3
    """It may have been applied before, and the log no longer reaches back far enough to tell."""


def fault_code(code: int) -> FaultCode:
    """Return the code of a Fault; one that is not known here is an error of the node."""
    try:
        return FaultCode(code)
    except ValueError:
        return FaultCode.INTERNAL

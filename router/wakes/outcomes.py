"""Outcomes of reading a fragment: pure."""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

__all__ = ["WHOLE", "Item", "Outcome"]


class Outcome(enum.Enum):
    """How the reading of one fragment ended."""

    OK = "ok"
    ABSENT = "absent"
    """Never written, or deleted."""
    EXPIRED = "expired"
    TIMEOUT = "timeout"
    """Its node did not answer by the deadline."""
    UNAVAILABLE = "unavailable"
    """Its node is not connected, or does not own the shard."""
    SHED = "shed"
    """Its node, or the router, rejected it for overload."""
    FAULT = "fault"
    """Its data is corrupt, or its node failed at it."""


WHOLE: Final = frozenset({Outcome.OK, Outcome.ABSENT, Outcome.EXPIRED})
"""Outcomes that are certain: a state with no other is complete."""

Item: TypeAlias = bytes | Outcome | None
"""The answer of one store for one agent: its image, why there is none, or None: the agent has none there."""

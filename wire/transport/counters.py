"""Counters of a request server: totals since its start."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["ServerCounters"]


@dataclass(slots=True)
class ServerCounters:
    """One server's totals; its owner adds those of its own work."""

    hellos: int = 0
    turned_away: int = 0
    """Routers that were asked to come later: there were as many as may be, or no descriptors to spare."""
    faults: int = 0
    """Requests answered with a Fault."""
    malformed_frames: int = 0
    """Frames that are no request: dropped, or answered with Fault BAD_REQUEST if their number could be read."""
    late: int = 0
    """Requests dropped because their budget was spent; a Commit is answered (TOO_LATE)."""
    cancelled: int = 0
    """Requests dropped because their router said that it no longer waits for them."""
    shed: int = 0
    """Requests rejected because their peer, or the writer, had too much waiting."""
    dropped_replies: int = 0
    """Replies that could not be delivered to their peer: gone, or not reading."""
    internal_errors: int = 0
    """Errors of this program; each is in the log with its trace."""

    def as_dict(self) -> dict[str, int]:
        """Return the totals by name."""
        return asdict(self)

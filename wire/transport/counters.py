"""Counters of a node: totals since its start, by the names of StatusReply's `counters`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Counters"]


@dataclass(slots=True)
class Counters:
    """One node's totals."""

    fetches: int = 0
    """Fetch requests served whole."""
    images: int = 0
    """Agents looked up, found or not."""
    image_bytes: int = 0
    """Bytes of Images frames."""
    commits: int = 0
    """Commit requests answered."""
    writes: int = 0
    """Writes applied and durable."""
    refused_writes: int = 0
    expired: int = 0
    """Expired fragments that the sweeper removed."""
    scans: int = 0
    backups: int = 0
    """Shards copied for a backup."""
    hellos: int = 0
    turned_away: int = 0
    """Routers that were told to come later: there were as many as may be, or no descriptors to spare."""
    faults: int = 0
    """Requests answered with a Fault."""
    garbage: int = 0
    """Frames that are no request: dropped, or answered with Fault BAD_REQUEST where their number could be read."""
    late: int = 0
    """Requests dropped because their budget was spent; a Commit is told so (TOO_LATE)."""
    cancelled: int = 0
    """Requests dropped because their router said that nobody waits for them."""
    shed: int = 0
    """Requests refused because their peer, or the writer, had too much waiting."""
    dropped_replies: int = 0
    """Replies that could not be handed to their peer: gone, or not reading."""
    internal_errors: int = 0
    """Mistakes of this program; each is in the log with its trace."""

    def as_dict(self) -> dict[str, int]:
        """Return the totals by name."""
        return asdict(self)

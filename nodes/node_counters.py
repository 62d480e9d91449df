"""Counters of a node: totals since its start, by the names of StatusReply's `counters`."""

from __future__ import annotations

from dataclasses import dataclass

from ..wire.transport.counters import ServerCounters

__all__ = ["NodeCounters"]


@dataclass(slots=True)
class NodeCounters(ServerCounters):
    """One node's totals: those of its request server, and of its own work."""

    fetches: int = 0
    """Fetch requests served completely."""
    images: int = 0
    """Agents looked up, found or not."""
    image_bytes: int = 0
    """Bytes of FetchReply frames."""
    pending_reads: int = 0
    """Times that a fetch had to wait for a disk or a network."""
    commits: int = 0
    """Commit requests answered."""
    writes: int = 0
    """Writes applied and durable."""
    rejected_writes: int = 0
    expired: int = 0
    """Expired fragments that the sweeper removed."""
    scans: int = 0
    backups: int = 0
    """Shards copied for a backup."""

"""Replies that are made a frame at a time, and may have to wait in between: those to a Fetch and a Scan.

While all that is left of a reply is pending, its call is parked (`wire.transport.request_server`); the first read
that is done resumes it, from any thread.
"""

from __future__ import annotations

from collections.abc import Callable

from ..wire.protocol.messages import encode
from ..wire.transport.request_queue import Call
from .node_clock import Clock
from .node_counters import NodeCounters
from .read_path import Read
from .scans import ShardScan

__all__ = ["FetchFrames", "ScanFrames"]


class _Resumption:
    """A callback that resumes a parked call when the first of its pending reads is done."""

    __slots__ = ("_call", "_resume", "_used")

    def __init__(self, resume: Callable[[Call], None], call: Call) -> None:
        self._resume = resume
        self._call = call
        self._used = False

    def __call__(self, _done: object) -> None:
        if not self._used:  # twice does no harm, if threads meet here
            self._used = True
            self._resume(self._call)


class FetchFrames:
    """The frames that answer one Fetch, counted."""

    __slots__ = ("_clock", "_counters", "_read", "_resume")

    def __init__(self, read: Read, clock: Clock, counters: NodeCounters, resume: Callable[[Call], None]) -> None:
        self._read = read
        self._clock = clock
        self._counters = counters
        self._resume = resume

    def next_frame(self, call: Call) -> tuple[bytes, bool] | None:
        """Return the next FetchReply frame, and whether it was the last; None while its reads are pending."""
        made = self._read.next_frame(self._clock.monotonic_ms())
        if made is None:
            self._counters.pending_reads += 1
            self._read.when_ready(_Resumption(self._resume, call))
            return None
        self._counters.image_bytes += len(made[0])
        if made[1]:
            self._counters.fetches += 1
            self._counters.images += self._read.agents_read
        return made


class ScanFrames:
    """The one frame that answers a Scan."""

    __slots__ = ("_counters", "_resume", "_scan")

    def __init__(self, scan: ShardScan, counters: NodeCounters, resume: Callable[[Call], None]) -> None:
        self._scan = scan
        self._counters = counters
        self._resume = resume

    def next_frame(self, call: Call) -> tuple[bytes, bool] | None:
        """Return the ScanReply frame, None while it is pending."""
        answer = self._scan.answer()
        if answer is None:
            self._scan.when_ready(_Resumption(self._resume, call))
            return None
        self._counters.scans += 1
        return encode(answer), True

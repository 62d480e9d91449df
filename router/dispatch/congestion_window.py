"""The congestion window of one node: how much a router has on its way to it. Pure.

A window of bytes that are expected back, and a number of requests (the bulkhead: a node that answers nothing holds no
more of the router than this). The window adapts as TCP's does: an answer that took more than its share of the request's
budget makes it smaller than what was on its way, once for all that was on its way then; answers in good time make it
larger again, by four requests for each round of them. So an overloaded node gets as much as it can answer in time, and
the rest waits or is shed in the router at no cost. (Additive increase, multiplicative decrease: D.-M. Chiu and R. Jain,
Analysis of the increase and decrease algorithms for congestion avoidance, 1989; the increase for each answer is that of
RFC 5681, section 3.1.)
"""

from __future__ import annotations

import math
from typing import Final

from ...wire.cluster.topology import AdmissionSpec

__all__ = ["WINDOW_BYTES_MAX", "Window"]

WINDOW_BYTES_MAX: Final = 12 << 20
"""Bytes expected from one node at once: about twelve frames, of the sixteen that a node queues for one peer; at 1.6
GB/s 7 ms of the wire, so that neither side waits for the other."""

_WINDOW_BYTES_MIN: Final = 16 << 10
"""A few single wakes: less would not tell whether the node has recovered."""

_PATIENCE_S: Final = 0.01
"""An answer within this time is never slow, however short its deadline: a few turns of a busy loop take as long."""

_DECREASE: Final = 0.7
_INCREASE_REQUESTS: Final = 4
"""Requests that the window grows by in each round of answers."""


class Window:
    """The bytes and requests on their way to one node. Every `now` is in seconds of the monotonic clock."""

    __slots__ = ("_decreased_at", "_in_flight_max", "_slow_share", "bytes", "expected_bytes", "in_flight")

    def __init__(self, spec: AdmissionSpec) -> None:
        self._in_flight_max = spec.in_flight_max
        self._slow_share = spec.slow_share
        self._decreased_at = -math.inf
        self.bytes = float(WINDOW_BYTES_MAX)
        """Its size now."""
        self.expected_bytes = 0
        """Of it, taken."""
        self.in_flight = 0
        """Requests on their way."""

    def has_room(self, expected_bytes: int) -> bool:
        """Return whether a request may go whose answer has so many bytes; one always may, however large."""
        if not self.in_flight:
            return True
        return self.in_flight < self._in_flight_max and self.expected_bytes + expected_bytes <= self.bytes

    def handle_sent(self, expected_bytes: int) -> None:
        """Count a request that is sent."""
        self.in_flight += 1
        self.expected_bytes += expected_bytes

    def handle_over(self, expected_bytes: int) -> None:
        """Count off a request that has ended in any way."""
        self.in_flight -= 1
        self.expected_bytes -= expected_bytes

    def handle_answered(self, now: float, sent_at: float, deadline: float, expected_bytes: int) -> None:
        """Adapt to the answer to a request that was sent at `sent_at` and had until `deadline`."""
        if now - sent_at > max(self._slow_share * (deadline - sent_at), _PATIENCE_S):
            self.handle_slow(now, sent_at)
        elif self.bytes < WINDOW_BYTES_MAX:
            grown = self.bytes + expected_bytes * min(1.0, _INCREASE_REQUESTS * expected_bytes / self.bytes)
            self.bytes = min(grown, float(WINDOW_BYTES_MAX))

    def handle_slow(self, now: float, sent_at: float) -> None:
        """Shrink, as a request sent at `sent_at` was answered late, or not, or rejected by an overloaded node."""
        # A request sent before a decrease says nothing about it, nor a timeout after no time about the node.
        if sent_at > self._decreased_at and now - sent_at >= _PATIENCE_S:
            self._decreased_at = now
            used = min(self.bytes, float(self.expected_bytes))  # a window that is not filled limits nothing
            self.bytes = max(used * _DECREASE, float(_WINDOW_BYTES_MIN))

    def reset(self) -> None:
        """Forget all requests on their way: the connection broke."""
        self.in_flight = 0
        self.expected_bytes = 0

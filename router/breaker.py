"""The circuit breaker of one node: pure, fed outcomes and the clock.

    state      leaves it for    when
    CLOSED     OPEN             so large a share of the requests in the window failed, or so many in a row timed out
    OPEN       HALF_OPEN        its pause is over
    HALF_OPEN  CLOSED           the probe was answered
    HALF_OPEN  OPEN             the probe failed
    any        CLOSED           the node said Welcome anew: no probe could tell more

While it is open nothing is sent to the node and its fragments are UNAVAILABLE at once: a dead node then costs a wake
that node's fragments and no time. Half open it lets one request through at a time, the probe. (After M. Nygard, Release
It!, 2nd edition, 2018, chapter 5.)
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final

from ..wire.topology import BreakerSpec

__all__ = ["Breaker", "BreakerState"]

_BUCKETS: Final = 10
"""Parts of the rolling window: outcomes are forgotten a tenth of it at a time."""

_PATIENCE_S: Final = 0.05
"""A time-out counts only if the node had at least this long: a caller's tiny deadline says nothing about the node. And
in a run it counts only so long after the one before: a hundred wakes that end in one moment are one moment's evidence,
and that may have been a stall of this process."""


class BreakerState(enum.Enum):
    """What a breaker lets through."""

    CLOSED = "closed"
    """Everything."""
    OPEN = "open"
    """Nothing."""
    HALF_OPEN = "half-open"
    """One request at a time."""


class _Bucket:
    """Outcomes of a tenth of the window."""

    __slots__ = ("end", "failures", "requests")

    def __init__(self, end: float) -> None:
        self.end = end
        self.requests = 0
        self.failures = 0


class Breaker:
    """Outcomes of the requests to one node. Every `now` is in seconds of the monotonic clock."""

    __slots__ = (
        "_bucket",
        "_buckets",
        "_next_time_out",
        "_probing",
        "_retry_at",
        "_spec",
        "_time_outs",
        "opened",
        "state",
    )

    def __init__(self, spec: BreakerSpec) -> None:
        self._spec = spec
        self._bucket = _Bucket(0.0)
        self._buckets = deque([self._bucket])
        self._time_outs = 0  # in a row
        self._next_time_out = 0.0
        self._retry_at = 0.0
        self._probing = False
        self.state = BreakerState.CLOSED
        self.opened = 0
        """How often it has opened."""

    def admit(self, now: float) -> bool:
        """Return whether a request may go to the node now; half open, the one that may is the probe."""
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.OPEN:
            if now < self._retry_at:
                return False
            self.state = BreakerState.HALF_OPEN
            self._probing = False
        if self._probing:
            return False
        self._probing = True
        return True

    def handle_success(self, now: float) -> None:
        """A request was answered, whatever with: the node is alive. 0.1 us."""
        self._time_outs = 0
        if self.state is BreakerState.CLOSED:
            if now >= self._bucket.end:
                self._roll(now)
            self._bucket.requests += 1
        elif self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.CLOSED
            self._probing = False

    def handle_failure(self, now: float) -> None:
        """A request failed: the node said so, or the connection broke under it."""
        if self.state is BreakerState.CLOSED:
            if now >= self._bucket.end:
                self._roll(now)
            self._bucket.requests += 1
            self._bucket.failures += 1
            if self._is_share_reached():
                self._open(now)
        elif self.state is BreakerState.HALF_OPEN:
            self._open(now)

    def handle_time_out(self, now: float, waited_s: float) -> None:
        """A request got no answer in time; the node had `waited_s` for it."""
        if waited_s < _PATIENCE_S:
            self.handle_abandoned()
            return
        if now >= self._next_time_out:
            self._next_time_out = now + _PATIENCE_S
            self._time_outs += 1
        if self.state is BreakerState.CLOSED and self._time_outs >= self._spec.time_outs_in_a_row:
            self._open(now)
        else:
            self.handle_failure(now)

    def handle_life(self, now: float) -> None:
        """The node answered, too late: the time-out that this was is no failure, and an open breaker may try again."""
        self._time_outs = 0
        if self.state is BreakerState.OPEN:
            self._retry_at = now
            return
        for bucket in reversed(self._buckets):
            if bucket.failures:
                bucket.failures -= 1
                return

    def handle_abandoned(self) -> None:
        """Nobody waits for a request any more, and nothing is known of it: if it was the probe, there is none now."""
        self._probing = False

    def handle_up(self) -> None:
        """The node said Welcome anew: it is alive."""
        self._time_outs = 0
        self._probing = False
        self.state = BreakerState.CLOSED

    def _open(self, now: float) -> None:
        self.state = BreakerState.OPEN
        self.opened += 1
        self._probing = False
        self._time_outs = 0
        self._retry_at = now + self._spec.retry_after_s
        self._bucket = _Bucket(0.0)
        self._buckets = deque([self._bucket])

    def _roll(self, now: float) -> None:
        """Begin a new bucket, and forget those that have left the window."""
        buckets, window_s = self._buckets, self._spec.window_s
        while buckets and buckets[0].end <= now - window_s:
            buckets.popleft()
        self._bucket = _Bucket(now + window_s / _BUCKETS)
        buckets.append(self._bucket)

    def _is_share_reached(self) -> bool:
        requests = sum([bucket.requests for bucket in self._buckets])
        failures = sum([bucket.failures for bucket in self._buckets])
        return requests >= self._spec.requests_min and failures >= self._spec.failure_share * requests

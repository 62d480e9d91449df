"""The circuit breaker of one node: pure, fed outcomes and the clock.

    state      leaves it for    when
    CLOSED     OPEN             so large a share of the requests in the window failed, or so many in a row timed out
    OPEN       HALF_OPEN        its pause is over, or an answer came after all
    HALF_OPEN  CLOSED           the probe was answered
    HALF_OPEN  OPEN             the probe failed
    any        CLOSED           the node said Welcome anew, or spoke after it was silent: no probe could tell more

While it is open nothing is sent to the node and its fragments are UNAVAILABLE at once: a dead node then costs a wake
that node's fragments and no time. Half open it lets one request through at a time, the probe. (After M. Nygard, Release
It!, 2nd edition, 2018, chapter 5.)

It counts moments, not requests. A wake of ten thousand agents is dozens of requests to a node, and when its deadline
falls into a pause of the node, all of them time out together: that is one observation. So the outcomes of a twentieth
of a second are one moment, which counts by the share of its requests that failed; the window's share is the mean of its
moments'. And a timeout of a request sent before the breaker opened or closed last says nothing about the node since.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from typing import Final

from ...wire.cluster.topology import BreakerSpec

__all__ = ["MOMENT_S", "Breaker", "BreakerState"]

MOMENT_S: Final = 0.05
"""Requests that end within so long are one moment's evidence: a hundred that end together may have met one pause of the
node, or of this process. For the same reason a timeout counts only if the node had at least this long."""


class BreakerState(enum.Enum):
    """How much a breaker lets through."""

    CLOSED = "closed"
    """Everything."""
    OPEN = "open"
    """Nothing."""
    HALF_OPEN = "half-open"
    """One request at a time."""


class _Moment:
    """Outcomes of a twentieth of a second, from the first of them on."""

    __slots__ = ("end", "failures", "requests")

    def __init__(self, end: float) -> None:
        self.end = end
        self.requests = 0
        self.failures = 0


class Breaker:
    """Outcomes of the requests to one node. Every `now` is in seconds of the monotonic clock."""

    __slots__ = (
        "_consecutive_timeouts",
        "_counts_since",
        "_moment",
        "_moments",
        "_moments_min",
        "_next_timeout",
        "_past_failures",
        "_past_requests",
        "_past_shares",
        "_probing",
        "_retry_at",
        "_silent",
        "_spec",
        "opened",
        "state",
    )

    def __init__(self, spec: BreakerSpec) -> None:
        self._spec = spec
        # Enough moments to judge by: as many as `requests_min`, if the window can hold so many.
        self._moments_min = max(1, min(spec.requests_min, int(spec.window_s / MOMENT_S) // 2))
        self._consecutive_timeouts = 0  # moments in a row
        self._next_timeout = 0.0
        self._counts_since = -math.inf  # timeouts of requests sent before do not count
        self._retry_at = 0.0
        self._probing = False
        self._silent = False  # while open: for want of any answer
        self.state = BreakerState.CLOSED
        self.opened = 0
        """How often it has opened."""
        self._forget_window()

    def admit(self, now: float) -> bool:
        """Return whether a request may go to the node now; half open, the one that may is the probe."""
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.OPEN:
            if now < self._retry_at:
                return False
            self.state = BreakerState.HALF_OPEN
            self._counts_since = now
            self._probing = False
        if self._probing:
            return False
        self._probing = True
        return True

    @property
    def admits_at(self) -> float:
        """From when on it lets a request through, if nothing else happens; infinite while a probe is under way."""
        if self.state is BreakerState.OPEN:
            return self._retry_at
        return math.inf if self._probing else -math.inf

    def handle_success(self, now: float) -> None:
        """Count a request that was answered, in whatever way: the node is alive. 0.1 us."""
        self._consecutive_timeouts = 0
        if self.state is BreakerState.CLOSED:
            if now >= self._moment.end:
                self._roll(now)
            self._moment.requests += 1
        elif self.state is BreakerState.HALF_OPEN:
            self._close(now)
        elif self._silent:
            self._retry_at = now

    def handle_failure(self, now: float) -> None:
        """Count a request that failed: the node said so, or the connection broke."""
        if self.state is BreakerState.CLOSED:
            if now >= self._moment.end:
                self._roll(now)
            self._moment.requests += 1
            self._moment.failures += 1
            if self._is_share_reached():
                self._open(now, silent=False)
        elif self.state is BreakerState.HALF_OPEN:
            self._open(now, silent=self._silent)

    def handle_timeout(self, now: float, sent_at: float) -> None:
        """Count a request that got no answer in time; the node had it from `sent_at` on."""
        if sent_at < self._counts_since:
            return
        if now - sent_at < MOMENT_S:
            self.handle_abandoned()
            return
        if now >= self._next_timeout:
            self._next_timeout = now + MOMENT_S
            self._consecutive_timeouts += 1
        if self.state is BreakerState.CLOSED and self._consecutive_timeouts >= self._spec.consecutive_timeouts:
            self._open(now, silent=True)
        else:
            self.handle_failure(now)

    def handle_life(self, now: float) -> None:
        """Handle an answer that came too late: its timeout is no failure, and an open breaker may try again."""
        self._consecutive_timeouts = 0
        if self.state is BreakerState.OPEN:
            self._retry_at = min(self._retry_at, now)
            return
        if self._moment.failures:
            self._moment.failures -= 1
            return
        for moment in reversed(self._moments):
            if moment.failures:
                self._past_shares -= 1 / moment.requests
                self._past_failures -= 1
                moment.failures -= 1
                return

    def handle_abandoned(self) -> None:
        """Forget a request that was given up, with no outcome: if it was the probe, there is none now."""
        self._probing = False

    def handle_up(self, now: float) -> None:
        """Handle a new Welcome: the node is alive."""
        self._consecutive_timeouts = 0
        if self.state is not BreakerState.CLOSED:
            self._close(now)

    def _close(self, now: float) -> None:
        self.state = BreakerState.CLOSED
        self._counts_since = now
        self._probing = False

    def _open(self, now: float, *, silent: bool) -> None:
        self.state = BreakerState.OPEN
        self.opened += 1
        self._silent = silent
        self._probing = False
        self._consecutive_timeouts = 0
        self._retry_at = now + self._spec.retry_after_s
        self._forget_window()

    def _forget_window(self) -> None:
        self._moment = _Moment(-math.inf)
        self._moments: deque[_Moment] = deque()  # those before it
        self._past_requests = 0
        self._past_failures = 0
        self._past_shares = 0.0

    def _roll(self, now: float) -> None:
        """Begin a new moment, and forget those that have left the window."""
        moments, begin = self._moments, now - self._spec.window_s
        if self._moment.requests:
            moments.append(self._moment)
            self._past_requests += self._moment.requests
            self._past_failures += self._moment.failures
        while moments and moments[0].end <= begin:
            gone = moments.popleft()
            self._past_requests -= gone.requests
            self._past_failures -= gone.failures
        # Shares are summed anew each time, 7 us: a sum kept up for hours does not stay exact. A single wake now
        # and then would pay that for each node, so not while nothing fails.
        if self._past_failures:
            self._past_shares = sum([moment.failures / moment.requests for moment in moments])
        else:
            self._past_shares = 0.0
        self._moment = _Moment(now + MOMENT_S)

    def _is_share_reached(self) -> bool:
        moment = self._moment
        if self._past_requests + moment.requests < self._spec.requests_min:
            return False
        moments = len(self._moments) + 1
        shares = self._past_shares + moment.failures / moment.requests
        # A millionth less: thirds do not add up exactly.
        return moments >= self._moments_min and shares >= self._spec.failure_share * moments - 1e-6

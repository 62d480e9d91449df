"""The budget of requests that a router may send a second time: pure.

One budget for all nodes of a router, so that failures do not multiply the load that may have caused them: in a rolling
window, retries are at most a share of the requests sent for the first time, plus a few a second for routers that send
little. (Finagle's RetryBudget, https://twitter.github.io/finagle/guide/Clients.html#retries.)
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from typing import Final

from ...wire.cluster.topology import RetrySpec

__all__ = ["RetryBudget"]

_WINDOW_S: Final = 10
"""How long a request counts, as Finagle has it."""


class _Second:
    """Requests and retries of one second."""

    __slots__ = ("end", "requests", "retries")

    def __init__(self, end: float) -> None:
        self.end = end
        self.requests = 0
        self.retries = 0


class RetryBudget:
    """Requests and retries of the last ten seconds. Every `now` is in seconds of the monotonic clock."""

    __slots__ = ("_chance", "_second", "_seconds", "_spec", "rejected", "retries")

    def __init__(self, spec: RetrySpec, chance: Callable[[], float] = random.random) -> None:
        """`chance` draws from 0 to 1."""
        self._spec = spec
        self._chance = chance
        self._second = _Second(0.0)
        self._seconds = deque([self._second])
        self.retries = 0
        """Retries granted since the start."""
        self.rejected = 0
        """Retries rejected since the start."""

    def handle_request(self, now: float) -> None:
        """Count a request that was sent for the first time; 0.1 us."""
        if now >= self._second.end:
            self._roll(now)
        self._second.requests += 1

    def handle_unsent(self) -> None:
        """Count off the request of the last `handle_request`, which could not be sent after all."""
        self._second.requests -= 1

    def withdraw(self, now: float) -> bool:
        """Take one retry; return False if the budget has none."""
        if now >= self._second.end:
            self._roll(now)
        requests = sum([second.requests for second in self._seconds])
        retries = sum([second.retries for second in self._seconds])
        if retries + 1 > self._spec.share * requests + self._spec.per_s * _WINDOW_S:
            self.rejected += 1
            return False
        self._second.retries += 1
        self.retries += 1
        return True

    def jitter_s(self) -> float:
        """Return how long to wait before a retry, drawn by chance: routers are not to come at the same moment."""
        return self._chance() * self._spec.jitter_ms / 1_000

    def _roll(self, now: float) -> None:
        """Begin a new second, and forget those that are ten seconds old."""
        end = math.floor(now) + 1.0
        while self._seconds and self._seconds[0].end <= end - _WINDOW_S:
            self._seconds.popleft()
        self._second = _Second(end)
        self._seconds.append(self._second)

"""How many requests a router may send a second time: pure.

One budget for all nodes of a router, so that trouble does not multiply the load that may have caused it: over a rolling
window, retries are at most a share of the requests sent for the first time, plus a few a second for routers that send
little. (Finagle's RetryBudget, https://twitter.github.io/finagle/guide/Clients.html#retries.)
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ..wire.topology import RetrySpec

__all__ = ["RetryBudget"]

_WINDOW_S: Final = 10
"""How long a request counts, as Finagle has it."""


class RetryBudget:
    """Requests and retries of the last ten seconds. Every `now` is in seconds of the monotonic clock."""

    __slots__ = ("_buckets", "_spec", "refused", "retries")

    def __init__(self, spec: RetrySpec) -> None:
        self._spec = spec
        self._buckets: deque[list[int]] = deque()  # [second, requests, retries]
        self.retries = 0
        """Retries granted since the start."""
        self.refused = 0
        """Retries refused since the start."""

    def handle_request(self, now: float) -> None:
        """A request was sent for the first time."""
        self._bucket(now)[1] += 1

    def withdraw(self, now: float) -> bool:
        """Take one retry; return False where the budget has none."""
        bucket = self._bucket(now)
        requests = sum([some[1] for some in self._buckets])
        retries = sum([some[2] for some in self._buckets])
        if retries + 1 > self._spec.share * requests + self._spec.per_s * _WINDOW_S:
            self.refused += 1
            return False
        bucket[2] += 1
        self.retries += 1
        return True

    def _bucket(self, now: float) -> list[int]:
        buckets, second = self._buckets, int(now)
        while buckets and buckets[0][0] <= second - _WINDOW_S:
            buckets.popleft()
        if not buckets or buckets[-1][0] != second:
            buckets.append([second, 0, 0])
        return buckets[-1]

"""The node's clock: the wall clock, that never goes back.

Expiry is judged by it, at the node and, through the replies, at its clients. It begins no earlier than the newest
commit of any shard of the node, so that a fragment that was shown as expired is not shown again after a restart.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from .shards import OwnedShard

__all__ = ["Clock"]

JUMP_MS: Final = 2_000
"""How far the wall clock may move against the monotonic one between two looks: NTP slews by 0.5 ms a second at most
(ntpd(8)); more is somebody setting it."""


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def _monotonic_clock_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Clock:
    """Milliseconds since 1970-01-01 UTC, for any thread."""

    __slots__ = ("_latest_ms", "_lock", "_monotonic_ms", "_offset_ms", "_wall_ms")

    def __init__(
        self,
        shards: Iterable[OwnedShard],
        wall_ms: Callable[[], int] = _wall_clock_ms,
        monotonic_ms: Callable[[], int] = _monotonic_clock_ms,
    ) -> None:
        """`wall_ms` and `monotonic_ms` give milliseconds; tests give their own."""
        self._wall_ms = wall_ms
        self._monotonic_ms = monotonic_ms
        self._offset_ms = wall_ms() - monotonic_ms()
        self._lock = threading.Lock()
        self._latest_ms = max((shard.fragments.clock_ms for shard in shards if shard.fragments is not None), default=0)

    def now_ms(self) -> int:
        """Return the time; never less than before."""
        with self._lock:
            self._latest_ms = max(self._latest_ms, self._wall_ms())
            return self._latest_ms

    def has_jumped(self) -> bool:
        """Return whether the wall clock was set, forwards or back, since this was last asked."""
        offset_ms = self._wall_ms() - self._monotonic_ms()
        jumped = abs(offset_ms - self._offset_ms) > JUMP_MS
        self._offset_ms = offset_ms
        return jumped

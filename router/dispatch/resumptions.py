"""One timer for each node that is to be sent something later: after the pause that it asked for, or as a probe."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

__all__ = ["Resumptions"]


class Resumptions:
    """Timers by node, of which the earliest that was asked for counts."""

    def __init__(self, resume: Callable[[str], None]) -> None:
        """`resume` is called with the node's name, once for each timer that was not cancelled."""
        self._loop = asyncio.get_running_loop()
        self._resume = resume
        # Each with its time: uvloop gives a due timer as a Handle that cannot say when (its issue 482).
        self._timers: dict[str, tuple[float, asyncio.Handle]] = {}

    def schedule(self, node: str, at: float) -> None:
        """Resume a node at `at`, in seconds of the monotonic clock, if not before; infinite is never."""
        timer = self._timers.get(node)
        if at < math.inf and (timer is None or at < timer[0]):
            self.cancel(node)
            self._timers[node] = at, self._loop.call_at(at, self._expire, node)

    def cancel(self, node: str) -> None:
        """Forget a node's timer, if it has one."""
        timer = self._timers.pop(node, None)
        if timer is not None:
            timer[1].cancel()

    def close(self) -> None:
        """Forget all of them."""
        for node in list(self._timers):
            self.cancel(node)

    def _expire(self, node: str) -> None:
        del self._timers[node]
        self._resume(node)

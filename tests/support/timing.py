"""Time in tests: timers to compare with, and percentiles."""

import asyncio
import math
import time
from collections.abc import Sequence

__all__ = ["bare_timer", "loop_time", "percentile"]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def loop_time() -> float:
    """Return the time of the running loop, real or virtual, in seconds."""
    return asyncio.get_running_loop().time()


def bare_timer(loop: asyncio.AbstractEventLoop, seconds: float) -> "asyncio.Future[float]":
    """Start a bare timer; return a future of the moment at which it ended."""
    ended: asyncio.Future[float] = loop.create_future()
    loop.call_later(seconds, lambda: ended.set_result(time.monotonic()))
    return ended

"""The judgement of a deadline, which takes in first what has come in time.

A loop that stalled runs its timers before it looks at what has come, so that whoever judges a deadline takes that in
first (`Router.receive`). If the whole process stood still (stopped, starved, on a machine that was paused), libzmq's
thread did too: what has come is in the kernel still, out of reach. So a judgement that comes very late is put off,
once, for a moment in which that thread and the loop do their work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

__all__ = ["GRACE_S", "STALL_S", "Judgement"]

STALL_S: Final = 0.02
"""A timer later than this met a stall: several turns of a busy loop, which take a few milliseconds each."""

GRACE_S: Final = 0.02
"""How long a judgement is put off then: at 1.6 GB/s a full window (12 MiB) is read from the kernel in 8 ms."""


class Judgement:
    """A timer that calls `judge` when a deadline has come; after a stall a little later."""

    __slots__ = ("_clock", "_due", "_judge", "_loop", "_timer")

    def __init__(
        self,
        due: float,
        judge: Callable[[], object],
        loop: asyncio.AbstractEventLoop | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`due` is in seconds of `clock`; None for the running loop."""
        self._loop = asyncio.get_running_loop() if loop is None else loop
        self._clock = clock
        self._due = due
        self._judge = judge
        self._timer = self._loop.call_at(due, self._come)

    def cancel(self) -> None:
        """Judge nothing any more."""
        self._timer.cancel()
        # Its owner keeps it, and this keeps the owner: all that it has brought would wait for the garbage collector.
        self._judge = _judge_nothing

    def _come(self) -> None:
        now = self._clock()
        if now - self._due > STALL_S:
            self._timer = self._loop.call_at(now + GRACE_S, self._judge)
        else:
            self._judge()


def _judge_nothing() -> None:
    """Do nothing: nobody waits for a judgement any more."""

"""The judgement of a deadline, which first receives the answers that came in time.

A loop that stalled runs its timers before it reads its sockets, so the owner of a deadline receives waiting replies
first (`Router.receive`). If the entire process stalled (stopped, starved, on a machine that was paused), libzmq's
thread did too: the replies are still in the kernel, out of reach. So a judgement that comes very late is put off, once,
for a moment in which that thread and the loop do their work.
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
        # Its owner keeps it, and it keeps the owner: a cycle would keep all replies until the garbage collector runs.
        self._judge = _judge_nothing

    def _come(self) -> None:
        now = self._clock()
        if now - self._due > STALL_S:
            self._timer = self._loop.call_at(now + GRACE_S, self._judge)
        else:
            self._judge()


def _judge_nothing() -> None:
    """Do nothing: nobody waits for a judgement any more."""

"""A node's own processor: it works while everybody else's time goes on, and may be stopped."""

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["Processor"]


class _Timer:
    """A callback that waits for its time, and then for the processor."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Cancel the callback."""
        self.callback = None


class Processor:
    """A stand-in for the loop of a node's request server. Callbacks run one after another, each when those before end.

    `work` says how long the present callback takes: until then no other one runs, and the node's clock, as read in the
    same callback, goes on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._free_at = 0.0
        self._due: deque[_Timer] = deque()
        self._scheduled = False
        self._ended = False
        self.is_stopped = False

    def monotonic(self) -> float:
        """Return the node's time."""
        return max(self._loop.time(), self._free_at)

    @property
    def ahead_s(self) -> float:
        """How far the end of the present work lies behind the loop's time."""
        return self.monotonic() - self._loop.time()

    def work(self, seconds: float) -> None:
        """Be busy."""
        self._free_at = self.monotonic() + seconds

    def call_soon(self, callback: Callable[[], object], /) -> _Timer:
        """Call back when all that is due before has ended."""
        timer = _Timer(callback)
        self._come(timer)
        return timer

    def call_later(self, delay: float, callback: Callable[[], object], /) -> _Timer:
        """Call back so many seconds after the present work."""
        timer = _Timer(callback)
        self._loop.call_at(self.monotonic() + delay, self._come, timer)
        return timer

    def stop(self) -> None:
        """Stop, as at SIGSTOP."""
        self.is_stopped = True

    def go_on(self) -> None:
        """Continue after a stop."""
        self.is_stopped = False
        self._schedule()

    def end(self) -> None:
        """Do nothing any more."""
        self._ended = True
        self._due.clear()

    def _come(self, timer: _Timer) -> None:
        if not self._ended:
            self._due.append(timer)
            self._schedule()

    def _schedule(self) -> None:
        if self._due and not self._scheduled and not self.is_stopped:
            self._scheduled = True
            self._loop.call_at(self.monotonic(), self._run)

    def _run(self) -> None:
        self._scheduled = False
        if self._due and not self.is_stopped:
            callback = self._due.popleft().callback
            if callback is not None:
                callback()
        self._schedule()

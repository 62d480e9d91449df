"""Output written by a thread of its own: a process that writes a log never waits for its reader.

A `write(2)` to a pipe without a reader, to a terminal stopped by Ctrl-S or to a disk that hangs may block for ever. So
the lines of a log go through a queue that is bounded in bytes, and lines that do not fit are dropped and counted; the
output itself reports their number as soon as writing works again. Lines that cannot be written (a closed pipe or
terminal, a full disk) are dropped and counted alike.

The descriptor's flags stay unchanged: O_NONBLOCK would hold for all processes that share it, the user's shell included.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeVar

__all__ = ["BoundedOutput", "write_all"]

_BYTES_MAX: Final = 1 << 20
"""Bytes that may be queued: some thousand lines, an hour of a quiet cluster's log; a longer line is dropped."""

_CLOSE_SECONDS: Final = 1.0
"""How long an ending process waits until its last lines are written."""

T = TypeVar("T")


class _Waiting(NamedTuple, Generic[T]):
    """An item that is to be written; or, if `dropped` is not 0, the report that so many were dropped."""

    item: T
    size: int
    dropped: int = 0


class BoundedOutput(Generic[T]):
    """Items, each written by `write` in a daemon thread, in their order."""

    def __init__(
        self, write: Callable[[T], None], describe_dropped: Callable[[int], T], *, bytes_max: int = _BYTES_MAX
    ) -> None:
        """Set the writer: `write` may block for ever, and raises OSError if an item cannot be written.

        `describe_dropped` makes the item that says, in their place, how many were dropped.
        """
        self._write = write
        self._describe_dropped = describe_dropped
        self._bytes_max = bytes_max
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting[T]] = deque()
        self._bytes = 0
        self._busy = False
        self._failed = False  # the last one could not be written
        self._closed = False
        self._thread: threading.Thread | None = None
        self._untold = 0
        self.dropped = 0
        """Items that were not written, since the start."""

    def put(self, item: T, size: int) -> None:
        """Let an item of `size` bytes be written, or drop it; never waits."""
        with self._changed:
            if self._closed or self._bytes + size > self._bytes_max:
                self.dropped += 1
                self._untold += 1
                return
            if self._untold:
                self._waiting.append(self._take_untold())
            self._waiting.append(_Waiting(item, size))
            self._bytes += size
            if self._thread is None:
                # Not before the first item: most commands never have one.
                self._thread = threading.Thread(target=self._run, name="dawnchorus output", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, timeout_s: float = _CLOSE_SECONDS) -> bool:
        """Drop all further items, and wait a moment for the earlier ones; return whether all of them are written."""
        end = time.monotonic() + timeout_s
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while self._waiting or self._busy:
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def _take_untold(self) -> _Waiting[T]:
        untold, self._untold = self._untold, 0
        return _Waiting(self._describe_dropped(untold), 0, untold)

    def _run(self) -> None:
        while (waiting := self._next()) is not None:
            try:
                self._write(waiting.item)
                self._failed = False
            except OSError:
                self._failed = True
                with self._changed:
                    self.dropped += not waiting.dropped
                    self._untold += waiting.dropped or 1

    def _next(self) -> _Waiting[T] | None:
        """Wait for the next item to be written; return None after the last."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            while not self._waiting:
                if self._untold and not self._failed:
                    self._waiting.append(self._take_untold())
                    break
                if self._closed:
                    return None
                self._changed.wait()
            waiting = self._waiting.popleft()
            self._bytes -= waiting.size
            self._busy = True
            return waiting


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write all bytes to a descriptor, which others may have made non-blocking; raises OSError."""
    view = memoryview(content)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])

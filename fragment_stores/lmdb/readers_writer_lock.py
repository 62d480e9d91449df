"""A gate that lets many through at once, and now and then one alone.

A shard's environment is closed and opened again when its map must grow, or when LMDB has given it up. Nobody may look
into the old map then: readers pass through the gate, and whoever reopens has it alone. While one waits for that, those
who come wait as well, or in a busy hour it would never be; so one waits for a moment only. Passing costs 0.3 us.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["Gate"]


class Gate:
    """Counts who is inside; any thread may use it."""

    __slots__ = ("_changed", "_closed", "_inside")

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._closed = False

    def enter(self) -> None:
        """Go inside; waits while somebody is alone there, or is about to be."""
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        """Go out."""
        with self._changed:
            self._inside -= 1
            if self._closed and not self._inside:
                self._changed.notify_all()

    @contextmanager
    def passed(self) -> Generator[None]:
        """Be inside for a block."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def alone(self, patience_s: float) -> Generator[bool]:
        """Have it alone for a block, and yield True; yield False where somebody stayed inside for so long.

        One thread at a time may ask for it, and none that is inside.
        """
        with self._changed:
            self._closed = True
            try:
                yield self._changed.wait_for(lambda: not self._inside, patience_s)
            finally:
                self._closed = False
                self._changed.notify_all()

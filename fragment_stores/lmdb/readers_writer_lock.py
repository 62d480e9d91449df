"""A gate that lets many through at once, and now and then one alone.

A shard's environment is closed and opened again when its map must grow, or when LMDB has abandoned it. No reader may
look into the old map then: readers pass through the gate, and the writer that reopens has it alone. While it waits for
that, new readers wait as well, or in a busy hour it would never have it; so it waits for a moment only. Passing costs
0.3 us. An event loop must not wait: it enters if that is possible at once (`try_enter`), or is notified (`opening`).
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

__all__ = ["Gate"]


class Gate:
    """Counts the readers inside; any thread may use it."""

    __slots__ = ("_changed", "_closed", "_inside", "_lock", "_waiting")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside = 0
        self._closed = False
        self._waiting: list[Future[Any]] = []

    def try_enter(self) -> bool:
        """Enter if no writer is alone inside, or about to be; return whether it was possible."""
        with self._lock:
            if not self._closed:
                self._inside += 1
            return not self._closed

    def opening(self) -> Future[Any]:
        """Return a future that is done, with None, when it may be possible to enter."""
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                self._waiting.append(future)
                return future
        future.set_result(None)
        return future

    def enter(self) -> None:
        """Enter; wait while a writer is alone inside, or is about to be."""
        with self._lock:
            while self._closed:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        """Leave."""
        with self._lock:
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
        """Have it alone for a block, and yield True; yield False if a reader stayed inside for so long.

        One thread at a time may ask for it, and none that is inside.
        """
        try:
            with self._lock:
                self._closed = True
                alone = self._changed.wait_for(lambda: not self._inside, patience_s)
            yield alone  # the lock is free: a reader that finds the gate closed learns it at once
        finally:
            with self._lock:
                self._closed = False
                waiting, self._waiting = self._waiting, []
                self._changed.notify_all()
            for future in waiting:
                future.set_result(None)

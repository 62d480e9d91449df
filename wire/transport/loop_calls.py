"""Calls from threads to an event loop for as long as it lives.

A loop that is closed rejects calls by an exception, in a thread that can do nothing about it. So its owner closes its
calls before it ends the loop: calls made afterwards are dropped, and so are those that the loop has not begun by then.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

__all__ = ["LoopCalls"]


class LoopCalls:
    """Calls for one loop; made and closed in its thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._closed = False
        self._lock = threading.Lock()  # held while a call is passed on: the loop is not closed meanwhile

    def call(self, function: Callable[[], object]) -> None:
        """Let the loop call a function, in the order in which they come; from any thread."""
        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(self._run, function)

    def close(self) -> None:
        """Call nothing more; in the loop's thread."""
        with self._lock:
            self._closed = True

    def _run(self, function: Callable[[], object]) -> None:
        if not self._closed:
            function()

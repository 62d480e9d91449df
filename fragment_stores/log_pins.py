"""Pins that keep rows of a shard's log from being trimmed: pure but for its lock.

A follower of the log pins the position that it has read to; rows behind the pin stay until it is released. The writer
trims in one thread, pins come from any: one lock separates "is it still there" from "it is trimmed". Pins are kept in
memory: a follower across restarts asks for its position, and gets an error if it was trimmed.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from ..wire.errors import LogTrimmed

__all__ = ["LogPins"]

NO_PIN: Final = (1 << 64) - 1
"""Above every version."""


class LogPins:
    """Positions of one shard's log that are being read from."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._pins: list[int] = []
        self._trimmed = 0

    @contextmanager
    def pin(self, position: int) -> Generator[None]:
        """Keep every row with a greater version than `position` while the block runs.

        Raises:
            LogTrimmed: some have gone, or are about to go.
        """
        with self.lock:
            if position < self._trimmed:
                raise LogTrimmed(position, self._trimmed)
            self._pins.append(position)
        try:
            yield
        finally:
            with self.lock:
                self._pins.remove(position)

    def trim_limit(self) -> int:
        """Return the newest version whose row may be trimmed; call this, trim, and call `note`, under the lock."""
        return min(self._pins, default=NO_PIN)

    def note(self, trimmed: int) -> None:
        """Take note that a transaction trims the log so far. If it fails, rows stay that can no longer be pinned."""
        self._trimmed = max(self._trimmed, trimmed)

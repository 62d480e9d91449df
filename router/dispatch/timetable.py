"""Times at which keys are to be looked at again: pure."""

from __future__ import annotations

import math
from typing import Generic, TypeVar

__all__ = ["Timetable"]

K = TypeVar("K")


class Timetable(Generic[K]):
    """One time for each key, the earliest that was asked for. Keys are few: all are looked at for due ones."""

    __slots__ = ("_times", "earliest")

    def __init__(self) -> None:
        self._times: dict[K, float] = {}
        self.earliest = math.inf
        """No key is due before; a plain number, as it is looked at after every event."""

    def __len__(self) -> int:
        return len(self._times)

    def __contains__(self, key: K) -> bool:
        return key in self._times

    def schedule(self, key: K, at: float) -> None:
        """Let a key be due at `at`, if not before; infinite is never."""
        if at < self._times.get(key, math.inf):
            self._times[key] = at
            self.earliest = min(self.earliest, at)

    def cancel(self, key: K) -> None:
        """Forget a key's time, if it has one; `earliest` may stay as it is."""
        self._times.pop(key, None)

    def pop_due(self, now: float) -> list[K]:
        """Return and forget the keys that are due, and look anew for the earliest."""
        due = [key for key, at in self._times.items() if at <= now]
        for key in due:
            del self._times[key]
        self.earliest = min(self._times.values(), default=math.inf)
        return due

    def drain(self) -> list[K]:
        """Return and forget all keys."""
        keys = list(self._times)
        self._times.clear()
        self.earliest = math.inf
        return keys

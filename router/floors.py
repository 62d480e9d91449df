"""Never older than acknowledged: which saves a fetch under way may not have seen. Pure.

A fetch that began before a save was acknowledged may have read the shard before it. While such fetches are under way,
each acknowledged save is noted with its version; a fetch that completes is held against the notes, and what is older is
read again. With no fetch under way nothing is noted, and with no note nothing is looked up.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Floors"]


class _Note(NamedTuple):
    key: tuple[str, bytes]
    version: int
    needed_until: float


class Floors:
    """Versions acknowledged while fetches were under way, by (store, agent)."""

    def __init__(self) -> None:
        self._notes: dict[tuple[str, bytes], _Note] = {}  # the one made longest ago first
        self._fetches = 0
        self._latest_deadline = 0.0

    def __bool__(self) -> bool:
        return bool(self._notes)

    def __len__(self) -> int:
        return len(self._notes)

    def begin_fetch(self, deadline: float) -> None:
        """A fetch begins; it ends by its deadline (seconds)."""
        self._fetches += 1
        self._latest_deadline = max(self._latest_deadline, deadline)

    def end_fetch(self) -> None:
        """A fetch has ended; after the last one every note is dropped."""
        self._fetches -= 1
        if not self._fetches:
            self._notes.clear()
            self._latest_deadline = 0.0

    def note(self, store: str, agent: bytes, version: int, now: float) -> None:
        """A save of the agent was acknowledged with this version at time `now` (seconds)."""
        # Deadlines only move on, so the oldest notes are the first that no fetch can need any more.
        while self._notes and (oldest := next(iter(self._notes.values()))).needed_until < now:
            del self._notes[oldest.key]
        if self._fetches:
            key = (store, agent)
            before = self._notes.pop(key, None)
            floor = max(version, before.version if before is not None else 0)
            self._notes[key] = _Note(key, floor, self._latest_deadline)

    def floor(self, store: str, agent: bytes) -> int:
        """Return the version below which a read of the agent must not be used; 0 for any."""
        note = self._notes.get((store, agent))
        return note.version if note is not None else 0

"""Versions of saves acknowledged during fetches, so that no wake shows older ones. Pure.

A fetch that began before a save was acknowledged may have read the shard before it. While such fetches are under way,
each acknowledged save is noted with its version; a fetch that completes is compared with the notes, and older fragments
are read again. With no fetch under way nothing is noted, and with no note nothing is looked up.
"""

from __future__ import annotations

from collections.abc import KeysView, Sequence
from typing import NamedTuple

__all__ = ["AcknowledgedVersions"]


class _Note(NamedTuple):
    agent: bytes
    versions: dict[str, int]
    """By store."""
    needed_until: float


class AcknowledgedVersions:
    """Versions acknowledged while fetches were under way, by agent and store."""

    def __init__(self) -> None:
        self._notes: dict[bytes, _Note] = {}  # the one renewed longest ago first
        self._fetches = 0
        self._latest_deadline = 0.0

    def __bool__(self) -> bool:
        return bool(self._notes)

    def __len__(self) -> int:
        return len(self._notes)

    @property
    def are_needed(self) -> bool:
        """Whether a fetch is under way: without one nothing is noted."""
        return self._fetches > 0

    def begin_fetch(self, deadline: float) -> None:
        """Count a fetch that begins, and ends by its deadline (seconds)."""
        self._fetches += 1
        self._latest_deadline = max(self._latest_deadline, deadline)

    def end_fetch(self) -> None:
        """Count off a fetch that has ended; drop every note after the last one."""
        self._fetches -= 1
        if not self._fetches:
            self._notes.clear()
            self._latest_deadline = 0.0

    def note(self, store: str, agent: bytes, version: int, now: float) -> None:
        """Note that a save of the agent was acknowledged with this version at time `now` (seconds)."""
        # Deadlines only move on, so the oldest notes are the first that no fetch can need any more.
        while self._notes and (oldest := next(iter(self._notes.values()))).needed_until < now:
            del self._notes[oldest.agent]
        if self._fetches:
            before = self._notes.pop(agent, None)
            versions = before.versions if before is not None else {}
            versions[store] = max(version, versions.get(store, 0))
            self._notes[agent] = _Note(agent, versions, self._latest_deadline)

    @property
    def agents(self) -> KeysView[bytes]:
        """The agents that have a note."""
        return self._notes.keys()

    def of(self, agent: bytes, stores: Sequence[str]) -> list[int]:
        """Return for each store the version below which a read of the agent must not be used; 0 for any."""
        note = self._notes.get(agent)
        return [0] * len(stores) if note is None else [note.versions.get(store, 0) for store in stores]

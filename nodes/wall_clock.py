"""Trust in the wall clock, and the time at which shards' clocks begin: pure.

A wall clock may be set (NTP at boot, a VM that is resumed, a person), and may be wrong until it is. It is believed once
it has agreed with the monotonic clock for some minutes without being set. A start counts as being set: the
clock was not seen before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

__all__ = ["AGREED_MS", "JUMP_MS", "RECORD_EVERY_MS", "ClockRecord", "ShardClock", "WallClock", "first_clocks"]

JUMP_MS: Final = 2_000
"""How far the wall clock may move against the monotonic one within AGREED_MS: NTP slews by 0.5 ms a second at most
(ntpd(8)); more means that it was set."""

AGREED_MS: Final = 300_000
"""How long it has to agree before it is believed: a person or NTP sets a wrong clock right before that."""

RECORD_EVERY_MS: Final = 60_000
"""How often clocks are recorded while none is set: after a loss of power at most this much time is unknown."""


class WallClock:
    """The wall clock as it was last seen."""

    __slots__ = ("_offset_ms", "_since_ms", "is_believed")

    def __init__(self, wall_ms: int, monotonic_ms: int) -> None:
        self._offset_ms = wall_ms - monotonic_ms
        self._since_ms = monotonic_ms
        self.is_believed = False

    def handle_look(self, wall_ms: int, monotonic_ms: int) -> int:
        """Take note of both clocks; return by how much the wall clock was set, 0 if it was not."""
        offset_ms = wall_ms - monotonic_ms
        moved_ms = offset_ms - self._offset_ms
        if abs(moved_ms) > JUMP_MS:
            self._offset_ms, self._since_ms = offset_ms, monotonic_ms
            self.is_believed = False
            return moved_ms
        if monotonic_ms - self._since_ms >= AGREED_MS:
            self.is_believed = True
            self._offset_ms, self._since_ms = offset_ms, monotonic_ms
        return 0


class ShardClock(msgspec.Struct, array_like=True, frozen=True):
    """A shard's clock at some moment. `doubt_ms`: since when (by it) the wall clock is in doubt, 0 if it is not."""

    clock_ms: int
    doubt_ms: int = 0


class ClockRecord(msgspec.Struct, frozen=True):
    """The record that a node keeps of its shards' clocks, by "store/shard".

    `boot` names the run of the machine (and so the monotonic clock) that `monotonic_ms` is of.
    """

    boot: str
    monotonic_ms: int
    shards: dict[str, ShardClock]


def first_clocks(
    stored_ms: Mapping[str, int], record: ClockRecord | None, boot: str, wall_ms: int, monotonic_ms: int
) -> dict[str, ShardClock]:
    """Return the clocks that shards begin with: `stored_ms` is the time of each one's newest commit.

    Within one run of the machine a clock continues as if the node had never ended. After a reboot it continues from
    where it was, and the time in between is added when the wall clock is believed. A new shard begins with the wall
    clock: it has nothing that could expire. The wall clock is used for nothing else here.
    """
    same_boot = record is not None and record.boot == boot and record.monotonic_ms <= monotonic_ms
    passed_ms = monotonic_ms - record.monotonic_ms if record is not None and same_boot else 0
    recorded = {} if record is None else record.shards
    clocks = {
        key: max(newest_ms, recorded[key].clock_ms + passed_ms) if key in recorded else newest_ms
        for key, newest_ms in stored_ms.items()
    }
    # All shards of a node had one clock. One without a record, or one behind by what a record may lack, goes with the
    # others; one that is ahead of the wall clock is the only one that is: an earlier version let that happen.
    newest_ms = max([clock_ms for clock_ms in clocks.values() if clock_ms <= wall_ms + JUMP_MS], default=0)
    first: dict[str, ShardClock] = {}
    for key, clock_ms in clocks.items():
        if key not in recorded or newest_ms - clock_ms <= 2 * RECORD_EVERY_MS:
            clock_ms = max(clock_ms, newest_ms)
        if not clock_ms and key not in recorded:
            clock_ms = max(wall_ms, 1)
        doubt_ms = recorded[key].doubt_ms if key in recorded else 0
        first[key] = ShardClock(clock_ms, doubt_ms or clock_ms)
    return first

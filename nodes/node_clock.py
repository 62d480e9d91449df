"""The clocks of a node's shards: how long things last, not what the date is.

Each shard has a clock, by which its fragments are stamped and expire. It goes on with the machine's monotonic clock
(which counts while the machine sleeps), never goes back, and is put forward to the wall clock only while that is
believed (`wall_clock`): so a fragment lives for its ttl, whatever the wall clock does for a while, and a shard that is
ahead of the wall clock continues all the same.

    start, or the wall clock was set -> in doubt -> agreed for minutes -> put forward if need be -> believed -> ...

A clock is put forward by time that passed without being counted: the machine was off, or a VM was paused. It counts for
fragments from before, and not for those saved in the time of doubt: their expiry is postponed by as much.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from ..wire.errors import StoreError
from .shard_table import OwnedShard
from .wall_clock import JUMP_MS, RECORD_EVERY_MS, ClockRecord, ShardClock, WallClock, first_clocks

__all__ = ["Clock"]

SWEEP_IN_DOUBT_MS: Final = 3_600_000
"""A shard's clock is right by itself. Nothing is swept while the wall clock is in doubt, as a person may be about to
correct it; but if it is never believed, the disk must not fill for that."""

_log = logging.getLogger(__name__)


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def _monotonic_clock_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Clock:
    """The driver of shards' clocks; but for `monotonic_ms`, one thread uses it: the one that commits."""

    __slots__ = ("_boot", "_monotonic_ms", "_record_due_ms", "_shards", "_wall", "_wall_ms", "_write")

    def __init__(
        self,
        shards: Iterable[OwnedShard],
        record: ClockRecord | None = None,
        write: Callable[[ClockRecord], None] | None = None,
        boot: str = "",
        wall_ms: Callable[[], int] = _wall_clock_ms,
        monotonic_ms: Callable[[], int] = _monotonic_clock_ms,
    ) -> None:
        """Start the clocks of these shards, from `record` if it has them.

        `write` keeps a record, of the machine's run `boot`, or raises OSError. `wall_ms` and `monotonic_ms` give
        milliseconds; tests give their own.
        """
        self._shards = [shard for shard in shards if shard.fragments is not None]
        self._write = write
        self._boot = boot
        self._wall_ms = wall_ms
        self._monotonic_ms = monotonic_ms
        now_ms, wall = monotonic_ms(), wall_ms()
        self._wall = WallClock(wall, now_ms)
        stored = {shard.name: shard.fragments.clock_ms for shard in self._shards if shard.fragments is not None}
        first = first_clocks(stored, record, boot, wall, now_ms)
        for shard in self._shards:
            shard.offset_ms = first[shard.name].clock_ms - now_ms
            shard.doubt_ms = first[shard.name].doubt_ms
        self._record_due_ms = now_ms

    def monotonic_ms(self) -> int:
        """Return the monotonic time, to which a shard adds its `offset_ms`; from any thread, 0.1 us."""
        return self._monotonic_ms()

    def wall_offset_ms(self) -> int:
        """Return by how much the wall clock is ahead of the monotonic one; from any thread."""
        return self._wall_ms() - self._monotonic_ms()

    def look(self) -> int:
        """Check whether the wall clock was set, and return the monotonic time: before any write is stamped."""
        now_ms = self._monotonic_ms()
        moved_ms = self._wall.handle_look(self._wall_ms(), now_ms)
        if moved_ms:
            if moved_ms < 0 and self._is_new():
                for shard in self._shards:  # NTP sets the clock right with which they began
                    shard.offset_ms, shard.doubt_ms = self.wall_offset_ms(), 0
            for shard in self._shards:
                shard.doubt_ms = shard.doubt_ms or shard.now_ms(now_ms)
            _log.warning("the wall clock was set: it is in doubt", extra={"by_s": moved_ms / 1_000})
            self.record()  # fragments saved from now on are known again after a crash
        return now_ms

    def work(self) -> int:
        """Do all work that is due, once a second or so, and return the monotonic time."""
        now_ms = self.look()
        if self._wall.is_believed:
            wall_offset_ms = self.wall_offset_ms()
            for shard in self._shards:
                self._follow(shard, wall_offset_ms, now_ms)
        if self._record_due_ms <= now_ms:
            self.record()
        return now_ms

    def may_sweep(self, shard: OwnedShard, now_ms: int) -> bool:
        """Return whether expired fragments may be deleted."""
        return not shard.doubt_ms or shard.now_ms(now_ms) - shard.doubt_ms >= SWEEP_IN_DOUBT_MS

    def record(self) -> None:
        """Record the clocks; a failed write is tried again."""
        if self._write is None:
            return
        now_ms = self._monotonic_ms()
        shards = {shard.name: ShardClock(shard.now_ms(now_ms), shard.doubt_ms) for shard in self._shards}
        self._record_due_ms = now_ms + RECORD_EVERY_MS
        try:
            self._write(ClockRecord(self._boot, now_ms, shards))
        except OSError as error:
            _log.warning("the record of the clocks cannot be written", extra={"detail": str(error)})

    def _is_new(self) -> bool:
        """Return whether nothing was ever saved here, and so nothing stamped."""
        return not any([shard.fragments.clock_ms for shard in self._shards if shard.fragments is not None])

    def _follow(self, shard: OwnedShard, wall_offset_ms: int, now_ms: int) -> None:
        """Put a shard's clock forward to the wall clock, which is believed."""
        gap_ms = wall_offset_ms - shard.offset_ms
        if shard.doubt_ms:
            if gap_ms > JUMP_MS and not _postpone(shard, gap_ms, now_ms):
                return  # and try again
            shard.doubt_ms = 0
            self._record_due_ms = now_ms
        if gap_ms > 0:
            shard.offset_ms += gap_ms


def _postpone(shard: OwnedShard, gap_ms: int, now_ms: int) -> bool:
    """Postpone the expiry of fragments saved in doubt by as much as the clock advances; return whether it could."""
    assert shard.fragments is not None, "others have no clock"
    facts = {"store": shard.store, "shard": shard.shard, "by_s": gap_ms / 1_000}
    try:
        postponed = shard.fragments.postpone_expiry(shard.doubt_ms, gap_ms, shard.now_ms(now_ms) + gap_ms)
    except StoreError as error:
        shard.note(error)
        return False
    _log.warning("the wall clock is believed: the clock is put forward", extra={**facts, "postponed": postponed})
    return True

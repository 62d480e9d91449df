"""Work of the writer thread beside commits: sweeping expired fragments, syncing stores of durability "async".

Expired fragments are never shown, whether swept or not: readers judge by the shard's clock. The sweeper gives their
space back. It waits a grace time, so that a clock that ran ahead a little costs nothing, and pauses while the
wall clock is in doubt (`node_clock`). It works in small logged commits between those of clients, so that a wake or save
waits for one of them at most.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from ..fragment_stores.engine import ShardSync
from ..wire.errors import StoreError
from .json_log import log_repeated
from .node_clock import Clock
from .node_counters import NodeCounters
from .shard_table import OwnedShard

__all__ = ["Housekeeper"]

_SWEEP_EVERY_S: Final = 1.0
_SWEEP_ROWS_MAX: Final = 200
"""Expiry rows of one shard looked at in one commit: about 2 ms and one sync."""

GRACE_MS: Final = 60_000
"""How long an expired fragment stays before it is swept."""

_log = logging.getLogger(__name__)


class Housekeeper:
    """Work that is due from time to time, done in the writer's thread."""

    def __init__(
        self,
        shards: Iterable[OwnedShard],
        clock: Clock,
        counters: NodeCounters,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`monotonic` gives seconds; tests give their own."""
        self._shards = list(shards)
        self._clock = clock
        self._counters = counters
        self._monotonic = monotonic
        self._sweep_due = monotonic() + _SWEEP_EVERY_S
        self._sync_due = {id(shard): monotonic() + shard.sync_interval_s for shard in self._asynchronous()}

    def due_in_s(self) -> float:
        """Return how many seconds the writer may wait for commits before there is work here."""
        return max(0.0, min([self._sweep_due, *self._sync_due.values()]) - self._monotonic())

    def work_if_due(self) -> None:
        """Do all work that is due; log a failure, and try again the next time."""
        try:
            self._work_if_due()
        except Exception:  # a bug: it must not end the thread that commits
            _log.exception("housekeeping fails")

    def _work_if_due(self) -> None:
        now = self._monotonic()
        for shard in self._asynchronous():
            if self._sync_due[id(shard)] <= now:
                self._sync_due[id(shard)] = now + shard.sync_interval_s
                self._sync(shard)
        if self._sweep_due <= now:
            self._sweep_due = now + _SWEEP_EVERY_S
            self._sweep(now, self._clock.work())
            log_repeated()

    def finish(self) -> None:
        """Sync all unsynced commits, and record the clocks: the node stops."""
        self._clock.record()
        for shard in self._asynchronous():
            self._sync(shard)

    def _asynchronous(self) -> list[OwnedShard]:
        return [shard for shard in self._shards if shard.sync_interval_s and shard.fragments is not None]

    def _sync(self, shard: OwnedShard) -> None:
        if shard.fragments is None:
            return
        assert isinstance(shard.fragments, ShardSync), "seen to where it was opened"
        try:
            shard.fragments.sync()
        except StoreError as error:
            shard.note(error)

    def _sweep(self, now: float, monotonic_ms: int) -> None:
        for shard in self._shards:
            if shard.fragments is None or not self._clock.may_sweep(shard, monotonic_ms):
                continue
            clock_ms = shard.now_ms(monotonic_ms)
            if not 0 < shard.fragments.next_expiry_ms <= clock_ms - GRACE_MS:
                continue  # a look at the index costs little, and a turn at the interpreter's lock in each of 16 shards
            try:
                looked_at, removed = shard.fragments.sweep(clock_ms - GRACE_MS, _SWEEP_ROWS_MAX, clock_ms)
            except StoreError as error:
                shard.note(error)
                continue
            self._counters.expired += removed
            if looked_at == _SWEEP_ROWS_MAX:
                self._sweep_due = now  # more is left: go on after the commits that wait

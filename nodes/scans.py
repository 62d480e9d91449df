"""The agents of a shard, listed in byte order, a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Final

from ..wire.errors import StoreError
from ..wire.protocol.messages import Scan, ScanReply, SectionStatus
from .read_path import require_served
from .shard_table import OwnedShard

__all__ = ["ShardScan"]

_SCAN_AGENTS_MAX: Final = 4_096
"""Ids in one ScanReply: about 1 ms of a thread."""


class ShardScan:
    """One Scan on its way to its answer."""

    __slots__ = ("_pending", "_scan", "_shards")

    def __init__(self, scan: Scan, shards: Mapping[tuple[str, int], OwnedShard]) -> None:
        self._scan = scan
        self._shards = shards
        self._pending: Future[list[bytes]] | None = None

    def answer(self) -> ScanReply | None:
        """Return the answer, None while it is pending.

        Raises:
            InvalidRequestError: its position or prefix is no id.
        """
        scan = self._scan
        shard = self._shards.get((scan.store, scan.shard))
        status = require_served(shard, scan.epoch)
        if shard is None or shard.fragments is None or status != SectionStatus.OK:
            return ScanReply(scan.request, status, [], True)
        agents_max = max(1, min(scan.agents_max, _SCAN_AGENTS_MAX))
        try:
            listed = self._pending or shard.fragments.agents_after(scan.position, agents_max, scan.prefix)
            if isinstance(listed, Future):
                if not listed.done():
                    self._pending = listed
                    return None
                listed = listed.result()
        except StoreError as error:
            return ScanReply(scan.request, shard.note(error), [], True)
        return ScanReply(scan.request, status, listed, len(listed) < agents_max)

    def when_ready(self, notify: Callable[[object], object]) -> None:
        """Call `notify`, in any thread, when the ids are there."""
        if self._pending is not None:
            self._pending.add_done_callback(notify)

"""The agents of a shard, listed in byte order, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..wire.errors import StoreError
from ..wire.protocol.messages import Scan, ScanReply, SectionStatus
from .read_path import require_served
from .shard_table import OwnedShard

__all__ = ["scan_shard"]

_SCAN_AGENTS_MAX: Final = 4_096
"""Ids in one ScanReply: about 1 ms of the loop."""


def scan_shard(scan: Scan, shards: Mapping[tuple[str, int], OwnedShard]) -> ScanReply:
    """Answer one Scan.

    Raises:
        InvalidRequestError: its position or prefix is no id.
    """
    shard = shards.get((scan.store, scan.shard))
    status = require_served(shard, scan.epoch)
    if shard is None or shard.fragments is None or status != SectionStatus.OK:
        return ScanReply(scan.request, status, [], True)
    agents_max = max(1, min(scan.agents_max, _SCAN_AGENTS_MAX))
    try:
        agents = shard.fragments.agents_after(scan.position, agents_max, scan.prefix)
    except StoreError as error:
        return ScanReply(scan.request, shard.note(error), [], True)
    return ScanReply(scan.request, status, agents, len(agents) < agents_max)

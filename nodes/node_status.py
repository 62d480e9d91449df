"""A node's answer to Status."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import psutil

from ..wire.cluster.topology import Topology
from ..wire.protocol.messages import StatusReply
from ..wire.transport.counters import Counters
from .acceptance import Acceptance, Doors
from .node_clock import Clock
from .shard_table import OwnedShard

__all__ = ["NodeStatus"]


class NodeStatus:
    """The answers of one node to Status."""

    def __init__(
        self, topology: Topology, name: str, shards: Iterable[OwnedShard], counters: Counters, clock: Clock
    ) -> None:
        self._digest = topology.digest
        self._name = name
        self._shards = shards
        self._counters = counters
        self._clock = clock
        self._started = time.monotonic()

    def reply(self, request: int, clients: int, acceptance: Acceptance) -> StatusReply:
        """Return how it is at this moment."""
        wall_offset_ms = self._clock.wall_offset_ms()
        return StatusReply(
            request,
            self._name,
            os.getpid(),
            int((time.monotonic() - self._started) * 1_000),
            psutil.Process().memory_info().rss,
            [shard.status(wall_offset_ms) for shard in self._shards],
            self._counters.as_dict(),
            clients,
            acceptance.used,
            acceptance.limit,
            acceptance.doors is Doors.OPEN,
            self._digest,
        )

"""The reply of a node to Status."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

import psutil

from ..wire.cluster.topology import Topology
from ..wire.protocol.messages import StatusReply
from ..wire.transport.acceptance import Acceptance, Doors
from .node_clock import Clock
from .node_counters import NodeCounters
from .shard_table import OwnedShard

__all__ = ["NodeStatus"]


class NodeStatus:
    """The replies of one node to Status."""

    def __init__(
        self,
        topology: Topology,
        name: str,
        shards: Iterable[OwnedShard],
        counters: NodeCounters,
        clock: Clock,
        ipc: str = "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ipc`: the node's ipc endpoint, "" for none. `monotonic` gives seconds."""
        self._digest = topology.digest
        self._name = name
        self._shards = shards
        self._counters = counters
        self._clock = clock
        self._ipc = ipc
        self._monotonic = monotonic
        self._started = monotonic()
        self._process = psutil.Process()
        self._resident_bytes = self._process.memory_info().rss

    def reply(self, request: int, clients: int, acceptance: Acceptance) -> StatusReply:
        """Return the node's present status."""
        wall_offset_ms = self._clock.wall_offset_ms()
        return StatusReply(
            request,
            self._name,
            os.getpid(),
            int((self._monotonic() - self._started) * 1_000),
            self._memory(),
            [shard.status(wall_offset_ms) for shard in self._shards],
            self._counters.as_dict(),
            clients,
            acceptance.used,
            acceptance.limit,
            acceptance.doors is Doors.OPEN,
            self._digest,
            self._ipc,
        )

    def _memory(self) -> int:
        """Return the resident bytes; as they were last if no descriptor is left to ask for them."""
        try:
            self._resident_bytes = self._process.memory_info().rss
        except OSError:
            pass  # clients took the last one: just then a node is asked for its status
        return self._resident_bytes

"""The replies of a node to a router that opens a connection."""

from __future__ import annotations

from collections.abc import Mapping

from ..wire.cluster.placement import Placement, encode_for_clients
from ..wire.cluster.topology import Topology, encode_topology
from ..wire.protocol.limits import FRAME_BYTES_MAX
from ..wire.protocol.messages import PROTOCOL, Fault, FaultCode, Hello, Welcome
from .shard_table import OwnedShard

__all__ = ["Greeting"]


class Greeting:
    """The replies of one node to Hello."""

    def __init__(
        self,
        topology: Topology,
        placement: Placement,
        name: str,
        ipc: str,
        directory: str,
        shards: Mapping[tuple[str, int], OwnedShard],
    ) -> None:
        self._cluster = topology.name
        self._cluster_uuid = placement.cluster_uuid
        self._name = name
        self._ipc = ipc
        self._directory = directory
        self._shards = shards
        # Encoded once: a thousand routers may come at the same moment.
        self._placement = encode_for_clients(placement)
        self._topology = encode_topology(topology)

    def rejection(self, hello: Hello) -> Fault | None:
        """Return why this node rejects a router, None if it accepts it."""
        if hello.protocol != PROTOCOL:
            return Fault(0, FaultCode.UNSUPPORTED, f"this node speaks protocol {PROTOCOL}, not {hello.protocol}")
        if hello.cluster not in ("", self._cluster, self._cluster_uuid):
            detail = f"this is cluster {self._cluster!r} ({self._cluster_uuid}), not {hello.cluster!r}"
            return Fault(0, FaultCode.WRONG_CLUSTER, detail)
        return None

    def welcome(self, *, ipc: bool) -> Welcome:
        """Return the present Welcome; `ipc`: whether the router may use that endpoint."""
        return Welcome(
            self._name,
            self._cluster_uuid,
            self._placement,
            self._topology,
            self._ipc if ipc else "",
            FRAME_BYTES_MAX,
            [
                (shard.store, shard.shard, shard.fragments.version)
                for shard in self._shards.values()
                if shard.fragments is not None
            ],
            self._directory,
        )

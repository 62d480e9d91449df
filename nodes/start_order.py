"""The launcher's order to a node that it starts: the topology as `up` read it, and the cluster that it began with.

One line of JSON on the node's standard input, which stays open after it (`nodes.launcher`). So all nodes of one `up`
serve one topology, however often they are restarted and however the file has changed since; and a restarted node does
not treat a missing or replaced data directory as a new one.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from ..wire.cluster.topology import Topology, decode_topology, encode_topology
from ..wire.errors import ConfigurationError, PlacementError

__all__ = ["NEW_CLUSTER", "StartOrder", "encode_order", "order_for", "read_order"]

NEW_CLUSTER: Final = "a new cluster was made"
"""The event of a new cluster: a person who expected data there has to see it."""

_ORDER_BYTES_MAX: Final = 16 << 20
"""More than any order has: a topology file has 1 MiB at most."""


class StartOrder(msgspec.Struct, frozen=True):
    """`topology` as its module encodes it; `place`: device and inode of the data directory."""

    topology: bytes
    data_dir: str
    cluster_uuid: str
    place: tuple[int, int]

    def read_topology(self) -> Topology:
        """Return the topology, with its data directory.

        Raises:
            TopologyError: it cannot be read.
        """
        return msgspec.structs.replace(decode_topology(self.topology), data_dir=self.data_dir)

    def require_place(self) -> None:
        """Reject a data directory that is not the one with which the cluster was started.

        Raises:
            PlacementError: it is missing, or another.
        """
        try:
            place = _place_of(self.data_dir)
        except OSError as error:
            there = f"cannot be had: {error.strerror}"
        else:
            if place == self.place:
                return
            there = "is another one now"
        raise PlacementError(
            f"{self.data_dir}: the data directory of cluster {self.cluster_uuid}, with which `up` began, {there}: it"
            " was moved, unmounted or replaced; put it back, or restart `up` if it is to be so; nothing is made anew"
        )


_decoder: Final = msgspec.json.Decoder(StartOrder)


def order_for(topology: Topology, cluster_uuid: str) -> StartOrder:
    """Return the order for all nodes of a cluster whose data directory exists.

    Raises:
        OSError: it does not.
    """
    return StartOrder(encode_topology(topology), topology.data_dir, cluster_uuid, _place_of(topology.data_dir))


def encode_order(order: StartOrder) -> bytes:
    """Return the order's line."""
    return msgspec.json.encode(order) + b"\n"


def read_order(descriptor: int) -> StartOrder:
    """Read the order, and nothing beyond its line.

    Raises:
        ConfigurationError: there is none: the launcher has died.
    """
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(descriptor, 1 << 16)
        line += piece
        if not piece or len(line) > _ORDER_BYTES_MAX:
            raise ConfigurationError("standard input ended before it said what to start; use `dawnchorus node NAME`")
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"what to start cannot be read from standard input: {error}") from error


def _place_of(data_dir: str) -> tuple[int, int]:
    facts = os.stat(data_dir)
    return facts.st_dev, facts.st_ino

"""A check for nodes of the cluster that serve already, before a new cluster is made of an empty data directory.

A data directory that is not mounted looks like a new one. If nodes of the topology serve, it is not new.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Final

import zmq

from ..wire.cluster.file_control_store import PLACEMENT_FILE
from ..wire.cluster.topology import NodeSpec, Topology, parse_endpoint
from ..wire.errors import ClusterUnavailable, PlacementError, ProtocolError
from ..wire.protocol.messages import PROTOCOL, Hello, Welcome, decode_reply, encode
from ..wire.transport.sockets import SocketOwner

__all__ = ["require_alone"]

_CONNECT_S: Final = 0.2
"""How long a host may take to accept a connection: endpoints are of this host, which accepts at once or never."""

_WELCOME_MS: Final = 2_000
"""How long a listener may take to identify itself."""


def require_alone(topology: Topology, own: Collection[str]) -> None:
    """Reject a new cluster if nodes of its topology serve one; a data directory with a placement is not new.

    `own` are the nodes to be started here: they find other listeners at their endpoints themselves when they bind. A
    listener at the endpoint of another node that does not identify itself is an error.

    Raises:
        PlacementError: the message names the node, and the cluster that it serves.
    """
    if (Path(topology.data_dir) / PLACEMENT_FILE).exists():
        return
    listening = [node for node in topology.nodes.values() if _listens(node)]
    for node in listening:
        welcome = _ask(node)
        if welcome is not None:
            said = f"there serves cluster {welcome.cluster_uuid} already"
        elif node.name not in own:
            said = "may serve there, and does not say which cluster"
        else:
            continue
        if (Path(topology.data_dir) / PLACEMENT_FILE).exists():
            return  # the other node has just made it
        raise PlacementError(
            f"{topology.data_dir}: there is no cluster in this data directory, and none is made: {node.endpoint} is in"
            f" use: node {node.name!r} {said}; is cluster.data_dir the right one, and mounted? A cluster of its own has"
            " other endpoints"
        )


def _listens(node: NodeSpec) -> bool:
    try:
        socket.create_connection(parse_endpoint(node.endpoint), _CONNECT_S).close()
    except OSError:
        return False
    return True


def _ask(node: NodeSpec) -> Welcome | None:
    """Say Hello, and return the Welcome; None if none comes."""
    with SocketOwner() as sockets:
        try:
            requests = sockets.dealer(node.endpoint)
        except ClusterUnavailable:
            return None
        requests.send(encode(Hello(PROTOCOL, "", secrets.token_bytes(8), "")))
        if not requests.poll(_WELCOME_MS):
            return None
        try:
            reply = decode_reply(requests.recv(zmq.NOBLOCK))
        except ProtocolError:
            return None
        return reply if isinstance(reply, Welcome) else None

"""Every ZeroMQ socket is made here, with its limits by name, and owned by one object that closes them all.

A high-water mark counts messages, not bytes (zmq_setsockopt(3), ZMQ_SNDHWM); with messages of at most FRAME_BYTES_MAX
the product is the most that a socket can be made to hold for one peer.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final, Self

import zmq

from .errors import ClusterUnavailable, DataFolderError
from .limits import FRAME_BYTES_MAX

__all__ = ["NODE_RECEIVE_FRAMES_MAX", "NODE_SEND_FRAMES_MAX", "SocketOwner", "bind", "remove_ipc_file"]

NODE_SEND_FRAMES_MAX: Final = 16
"""Frames that a node queues for one peer before that peer's work waits: 16 frames of about 1 MiB keep the pipe of a
router busy that reads 1.6 GB/s while the node's loop is away for 10 ms."""

NODE_RECEIVE_FRAMES_MAX: Final = 16
"""Requests of one peer that wait in its socket, of FRAME_BYTES_MAX at most; each is drained within a turn or two. As
fast as 256, measured with 500 small fetches under way."""

_ROUTER_FRAMES_MAX: Final = 4_096
"""Frames a router queues for one node; its window of expected bytes binds first. Requests are small."""

_HEARTBEAT_MS: Final = 1_000
_HEARTBEAT_TIMEOUT_MS: Final = 4_000
"""A connection on which nothing was heard this long is closed (ZMTP 3.1 PING/PONG, ZeroMQ RFC 37)."""

_RECONNECT_MS: Final = 20
_RECONNECT_MAX_MS: Final = 320
"""First and longest pause between attempts to connect: a restarted node is found within a third of a second."""

_CONNECT_TIMEOUT_MS: Final = 1_000
"""An attempt to connect that nobody answers is given up and begun anew: the kernel itself repeats it after 1, 2, 4, 8
seconds, so that a node that was cut off for half a minute was found only 10 s after the packets came through again."""

_KERNEL_BUFFER_BYTES: Final = 1 << 20
"""Send and receive buffers of the kernel: one frame. With the default of 208 KiB a 1 MiB frame takes five wake-ups."""

_LINGER_MS: Final = 200
"""How long a closing socket may take to hand its last frames to the kernel."""


class SocketOwner:
    """Makes sockets of one context and closes them together, however far the making had got."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._open: set[zmq.Socket[bytes]] = set()

    def router(self) -> zmq.Socket[bytes]:
        """Return a node's ROUTER socket, unbound."""
        replies = self._make(zmq.ROUTER)
        # Without it ROUTER drops silently what it cannot route or queue (zmq_setsockopt(3), ZMQ_ROUTER_MANDATORY).
        replies.setsockopt(zmq.ROUTER_MANDATORY, 1)
        replies.setsockopt(zmq.SNDHWM, NODE_SEND_FRAMES_MAX)
        replies.setsockopt(zmq.RCVHWM, NODE_RECEIVE_FRAMES_MAX)
        return replies

    def dealer(self, endpoint: str) -> zmq.Socket[bytes]:
        """Return a router's DEALER socket, connecting to one node, with an identity that libzmq makes up."""
        requests = self._make(zmq.DEALER)
        requests.setsockopt(zmq.SNDHWM, _ROUTER_FRAMES_MAX)
        requests.setsockopt(zmq.RCVHWM, _ROUTER_FRAMES_MAX)
        requests.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        requests.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        requests.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_TIMEOUT_MS)
        try:
            requests.connect(endpoint)
        except zmq.ZMQError as error:
            self.close_socket(requests)
            raise ClusterUnavailable(f"cannot connect to {endpoint}: {error}") from error
        return requests

    def monitor(self, watched: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
        """Return the PAIR socket on which libzmq tells these events of a socket (zmq_socket_monitor(3))."""
        monitor: zmq.Socket[bytes] = watched.get_monitor_socket(events)
        self._open.add(monitor)
        return monitor

    def close_socket(self, closing: zmq.Socket[bytes], *, linger_ms: int = 0) -> None:
        """Close one socket; what it had queued is sent within `linger_ms` or dropped."""
        self._open.discard(closing)
        closing.close(linger=linger_ms)

    def close(self) -> None:
        """Close every socket and end the context; frames that are on their way get a fifth of a second."""
        for closing in list(self._open):
            self.close_socket(closing, linger_ms=_LINGER_MS)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self, kind: int) -> zmq.Socket[bytes]:
        made: zmq.Socket[bytes] = self._context.socket(kind)
        self._open.add(made)
        made.setsockopt(zmq.LINGER, _LINGER_MS)
        made.setsockopt(zmq.IPV6, 1)  # off by default, and then tcp://[::1]:port is "No such device"
        made.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        made.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        made.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
        made.setsockopt(zmq.HEARTBEAT_TTL, _HEARTBEAT_TIMEOUT_MS)
        made.setsockopt(zmq.SNDBUF, _KERNEL_BUFFER_BYTES)
        made.setsockopt(zmq.RCVBUF, _KERNEL_BUFFER_BYTES)
        return made


def bind(replies: zmq.Socket[bytes], endpoint: str) -> None:
    """Bind a socket.

    Raises:
        DataFolderError: the endpoint is in use or not to be had.
    """
    try:
        replies.bind(endpoint)
    except zmq.ZMQError as error:
        remedy = "end the process that uses it or give the node another endpoint in topology.toml"
        raise DataFolderError(f"cannot bind {endpoint}: {error}; {remedy}") from error


def remove_ipc_file(endpoint: str) -> None:
    """Remove the file of an ipc endpoint whose socket is closed: libzmq leaves it behind. Other endpoints have none."""
    if endpoint.startswith("ipc://"):
        with contextlib.suppress(OSError):
            Path(endpoint.removeprefix("ipc://")).unlink()

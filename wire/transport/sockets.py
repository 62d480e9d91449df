"""Every ZeroMQ socket is made here, with its limits by name, and owned by one object that closes them all.

A high-water mark counts messages, not bytes (zmq_setsockopt(3), ZMQ_SNDHWM); with messages of at most FRAME_BYTES_MAX
the product is the most that a socket can be made to hold for one peer.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final, Self

import zmq

from ..descriptors import require_descriptors
from ..errors import ClusterUnavailable, DataDirectoryError
from ..protocol.limits import FRAME_BYTES_MAX

__all__ = ["BROKEN_EVENTS", "NODE_RECEIVE_FRAMES_MAX", "NODE_SEND_FRAMES_MAX", "SocketOwner", "bind", "remove_ipc_file"]

NODE_SEND_FRAMES_MAX: Final = 16
"""Frames that a node queues for one peer before that peer's work waits: 16 frames of about 1 MiB keep the pipe of a
router busy that reads 1.6 GB/s while the node's loop is away for 10 ms."""

NODE_RECEIVE_FRAMES_MAX: Final = 16
"""Requests of one peer that wait in its socket, of FRAME_BYTES_MAX at most; each is drained within a turn or two. As
fast as 256, measured with 500 small fetches under way."""

_ROUTER_FRAMES_MAX: Final = 4_096
"""Frames a router queues for one node; its window of expected bytes binds first. Requests are small."""

_KEEPALIVE_S: Final = 1
"""Pause before the kernel asks the other end of a TCP connection that says nothing, and between asking again. The
kernel of a busy or stopped process answers; one that is cut off or without power does not."""

_NODE_UNTAKEN_MS: Final = 3_000
"""A node's TCP connection ends when for this long the other host's kernel acknowledged nothing that it was sent, or had
no room for more of it (TCP_USER_TIMEOUT, tcp(7); libzmq sets it by ZMQ_TCP_MAXRT, at both ends). libzmq's thread
receives while a client's loop is busy; a client that was stopped or is gone receives nothing."""

_ROUTER_UNTAKEN_MS: Final = 60_000
"""The same towards a node. Its socket receives no more than NODE_RECEIVE_FRAMES_MAX while its loop is busy, so this one
must not be short: a router judges by what it hears (`wire.transport.liveness`)."""

_CONNECT_TIMEOUT_MS: Final = 1_000
"""An attempt to connect that is not answered is abandoned and begun anew: the kernel itself repeats it after 1, 2, 4, 8
seconds, so that a node that was cut off for half a minute was found only 10 s after the packets came through again."""

BROKEN_EVENTS: Final = int(zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
"""The events of a monitor for a connection that broke, or an attempt to connect that failed."""

_KERNEL_BUFFER_BYTES: Final = 1 << 20
"""Send and receive buffers of the kernel: one frame. With the default of 208 KiB a 1 MiB frame takes five wake-ups."""

_SOCKETS_MAX: Final = 16_383
"""Sockets of one context; libzmq's own limit is 1,023, and a router has three for each node: 5,000 nodes."""

_DESCRIPTORS: Final = 16
"""Descriptors that have to be free before a connection is begun: five of the context's threads, three of a socket and
its monitor, one of the connection, and what a name's resolution takes. libzmq ends the process if it finds none for
its threads (docs/decisions/0009)."""

LINGER_MS: Final = 200
"""The longest that a closing socket may take to deliver its last frames to the kernel."""


class SocketOwner:
    """Makes sockets of one context and closes them together, even if a making failed halfway."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _SOCKETS_MAX)
        self._open: set[zmq.Socket[bytes]] = set()

    def router(self) -> zmq.Socket[bytes]:
        """Return a node's ROUTER socket, unbound."""
        replies = self._make(zmq.ROUTER)
        # Without it ROUTER silently drops unroutable frames (zmq_setsockopt(3), ZMQ_ROUTER_MANDATORY).
        replies.setsockopt(zmq.ROUTER_MANDATORY, 1)
        replies.setsockopt(zmq.SNDHWM, NODE_SEND_FRAMES_MAX)
        replies.setsockopt(zmq.RCVHWM, NODE_RECEIVE_FRAMES_MAX)
        replies.setsockopt(zmq.TCP_MAXRT, _NODE_UNTAKEN_MS)
        return replies

    def monitored_router(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """Return a `router`, and the PAIR socket on which libzmq reports its endpoints and ended connections.

        Without a limit: libzmq's thread would wait for room in it while a node's loop is busy, and with it all traffic.
        A thousand events take 100 KB.
        """
        replies = self.router()
        address = f"inproc://router-{id(replies)}"
        replies.monitor(address, int(zmq.EVENT_LISTENING | zmq.EVENT_DISCONNECTED))
        monitor: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._open.add(monitor)
        monitor.setsockopt(zmq.RCVHWM, 0)
        monitor.connect(address)
        return replies, monitor

    def dealer(self, endpoint: str) -> zmq.Socket[bytes]:
        """Return a router's DEALER socket, connecting to one node, with an identity that libzmq makes up.

        It tries once: to try again, or to connect anew, the caller makes another.

        Raises:
            ClusterUnavailable: the endpoint is none, or no socket can be made.
        """
        requests, _ = self._dealer(endpoint, 0)
        return requests

    def monitored_dealer(self, endpoint: str) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """Return a `dealer`, and the PAIR socket on which libzmq reports its BROKEN_EVENTS (zmq_socket_monitor(3)).

        Raises:
            ClusterUnavailable: the endpoint is none, or no socket can be made.
        """
        requests, monitor = self._dealer(endpoint, BROKEN_EVENTS)
        assert monitor is not None, "events were asked for"
        return requests, monitor

    def _dealer(self, endpoint: str, events: int) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes] | None]:
        require_descriptors(_DESCRIPTORS)
        requests: zmq.Socket[bytes] | None = None
        monitor: zmq.Socket[bytes] | None = None
        try:
            requests = self._make(zmq.DEALER)
            requests.setsockopt(zmq.SNDHWM, _ROUTER_FRAMES_MAX)
            requests.setsockopt(zmq.RCVHWM, _ROUTER_FRAMES_MAX)
            requests.setsockopt(zmq.RECONNECT_IVL, -1)
            requests.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_TIMEOUT_MS)
            requests.setsockopt(zmq.TCP_MAXRT, _ROUTER_UNTAKEN_MS)
            if events:
                # Before it connects: an immediate end would not be reported.
                monitor = requests.get_monitor_socket(events)
                self._open.add(monitor)
            requests.connect(endpoint)
        except zmq.ZMQError as error:
            if requests is not None:
                self.close_monitored(requests, monitor)
            raise ClusterUnavailable(f"cannot connect to {endpoint}: {error}") from error
        return requests, monitor

    def close_monitored(
        self, watched: zmq.Socket[bytes], monitor: zmq.Socket[bytes] | None, *, linger_ms: int = 0
    ) -> None:
        """Close a socket and its monitor; frames that the socket had queued are sent within `linger_ms` or dropped.

        In this order: libzmq's thread waits for room in a monitor that is not read, for ever if it is closed first.
        """
        watched.disable_monitor()
        if monitor is not None:
            self.close_socket(monitor)
        self.close_socket(watched, linger_ms=linger_ms)

    def close_socket(self, closing: zmq.Socket[bytes], *, linger_ms: int = 0) -> None:
        """Close one socket; frames that it had queued are sent within `linger_ms` or dropped."""
        self._open.discard(closing)
        closing.close(linger=linger_ms)

    def close(self) -> None:
        """Close every socket and end the context; frames that are on their way get a fifth of a second."""
        for closing in list(self._open):
            self.close_socket(closing, linger_ms=LINGER_MS)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self, kind: int) -> zmq.Socket[bytes]:
        made: zmq.Socket[bytes] = self._context.socket(kind)
        self._open.add(made)
        made.setsockopt(zmq.LINGER, LINGER_MS)
        made.setsockopt(zmq.IPV6, 1)  # off by default, and then tcp://[::1]:port is "No such device"
        made.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        made.setsockopt(zmq.TCP_KEEPALIVE, 1)
        made.setsockopt(zmq.TCP_KEEPALIVE_IDLE, _KEEPALIVE_S)
        made.setsockopt(zmq.TCP_KEEPALIVE_INTVL, _KEEPALIVE_S)
        made.setsockopt(zmq.SNDBUF, _KERNEL_BUFFER_BYTES)
        made.setsockopt(zmq.RCVBUF, _KERNEL_BUFFER_BYTES)
        return made


def bind(replies: zmq.Socket[bytes], endpoint: str) -> None:
    """Bind a socket.

    Raises:
        DataDirectoryError: the endpoint is in use or unavailable.
    """
    try:
        replies.bind(endpoint)
    except zmq.ZMQError as error:
        remedy = "end the process that uses it or give the node another endpoint in topology.toml"
        raise DataDirectoryError(f"cannot bind {endpoint}: {error}; {remedy}") from error


def remove_ipc_file(endpoint: str) -> None:
    """Remove the file of an ipc endpoint whose socket is closed: libzmq leaves it behind. Other endpoints have none."""
    if endpoint.startswith("ipc://"):
        with contextlib.suppress(OSError):
            Path(endpoint.removeprefix("ipc://")).unlink()

"""The TCP socket on which a node listens, and a way to accept no connection for a while.

libzmq accepts every connection, and to unbind ends those that came in there. So the kernel is used: a packet
filter on the listening socket that drops everything (socket(7), SO_ATTACH_FILTER) leaves attempts to connect
unanswered, as if the packets were lost, and leaves existing connections alone.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys

import zmq
from zmq.utils.monitor import parse_monitor_message

from .sockets import bind

__all__ = ["Listener"]

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
"""From asm-generic/socket.h."""

_DROP = struct.pack("HBBI", 0x06, 0, 0, 0)
"""One instruction of the packet filter: return 0 bytes of the packet (linux/bpf_common.h, BPF_RET | BPF_K)."""


class Listener:
    """One bound TCP endpoint of a ZeroMQ socket."""

    def __init__(self, replies: zmq.Socket[bytes], monitor: zmq.Socket[bytes], endpoint: str) -> None:
        """Bind a socket, which has this monitor (`SocketOwner.monitored_router`).

        Raises:
            DataDirectoryError: the endpoint is in use or unavailable.
        """
        bind(replies, endpoint)
        # Said in the call that binds (zmq_socket_monitor(3), ZMQ_EVENT_LISTENING: its value is the descriptor).
        listening = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))
        self._descriptor = int(listening["value"])

    def shut(self, shut: bool) -> bool:
        """Accept no connection, or all again; return whether the kernel can. Not after the ZeroMQ socket is closed."""
        if sys.platform != "linux":
            return False
        listening = socket.socket(fileno=self._descriptor)
        try:
            if shut:
                instruction = ctypes.create_string_buffer(_DROP)
                program = struct.pack("HL", 1, ctypes.addressof(instruction))
                listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
            else:
                listening.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        except OSError:
            return False
        finally:
            listening.detach()  # it is libzmq's
        return True

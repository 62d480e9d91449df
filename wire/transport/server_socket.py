"""The ROUTER socket of a server: its endpoints, and the channel on which it is served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq
from zmq.utils.monitor import parse_monitor_message

from .channel import Channel, receive_parts, receive_routed
from .listener import Listener
from .sockets import LINGER_MS, SocketOwner, bind, remove_ipc_file

__all__ = ["ServerSocket"]


class ServerSocket:
    """One socket on a TCP endpoint and, if `ipc` is one, on an ipc endpoint beside it."""

    def __init__(self, endpoint: str, ipc: str = "") -> None:
        self._endpoint = endpoint
        self._ipc = ipc
        self._sockets = SocketOwner()
        self._replies, self._monitor = self._sockets.monitored_router()
        self._listener: Listener | None = None
        self._events: Channel[list[bytes]] | None = None
        self._closed = False

    def bind(self) -> None:
        """Listen: requests wait in the socket until `open_channel`.

        Raises:
            DataDirectoryError: an endpoint is in use or unavailable; nothing is left bound.
        """
        try:
            self._listener = Listener(self._replies, self._monitor, self._endpoint)
            if self._ipc:
                bind(self._replies, self._ipc)
        except BaseException:
            self.close()
            raise

    def open_channel(
        self,
        loop: asyncio.AbstractEventLoop,
        handle_messages: Callable[[list[list[bytes]]], None],
        handle_ended: Callable[[], None],
    ) -> Channel[list[bytes]]:
        """Deliver messages, past and future, to `handle_messages`; call `handle_ended` when connections ended."""

        def handle_events(messages: list[list[bytes]]) -> None:
            if any(parse_monitor_message(message)["event"] & zmq.EVENT_DISCONNECTED for message in messages):
                handle_ended()

        self._events = Channel(loop, self._monitor, receive_parts, handle_events)
        return Channel(loop, self._replies, receive_routed, handle_messages)

    def shut(self, shut: bool) -> bool:
        """Accept no connection, or all again; return whether that can be done."""
        return self._listener is not None and self._listener.shut(shut)

    def close(self) -> None:
        """Close the socket, whether or not it was bound, and remove the file of its ipc endpoint."""
        if self._events is not None:
            self._events.close()
        if not self._closed:
            self._closed = True
            self._sockets.close_monitored(self._replies, self._monitor, linger_ms=LINGER_MS)
        self._sockets.close()
        remove_ipc_file(self._ipc)

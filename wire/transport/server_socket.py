"""The ROUTER socket of a server: where it listens, and the channel on which it is served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .channel import Channel, receive_routed
from .listener import Listener
from .sockets import SocketOwner, bind, remove_ipc_file

__all__ = ["ServerSocket"]


class ServerSocket:
    """One socket on a TCP endpoint and, if `ipc` is one, on an ipc endpoint beside it."""

    def __init__(self, endpoint: str, ipc: str = "") -> None:
        self._endpoint = endpoint
        self._ipc = ipc
        self._sockets = SocketOwner()
        self._replies = self._sockets.router()
        self._listener: Listener | None = None

    def bind(self) -> None:
        """Listen: requests wait in the socket until `open_channel`.

        Raises:
            DataDirectoryError: an endpoint is in use or not to be had; nothing is left bound.
        """
        try:
            self._listener = Listener(self._replies, self._endpoint)
            if self._ipc:
                bind(self._replies, self._ipc)
        except BaseException:
            self.close()
            raise

    def open_channel(
        self, loop: asyncio.AbstractEventLoop, handle_messages: Callable[[list[list[bytes]]], None]
    ) -> Channel[list[bytes]]:
        """Deliver what comes, and what has come, to `handle_messages`."""
        return Channel(loop, self._replies, receive_routed, handle_messages)

    def shut(self, shut: bool) -> bool:
        """Let nobody in, or everybody again; return whether that can be done."""
        return self._listener is not None and self._listener.shut(shut)

    def close(self) -> None:
        """Close the socket, whether or not it was bound, and remove the file of its ipc endpoint."""
        self._sockets.close()
        remove_ipc_file(self._ipc)

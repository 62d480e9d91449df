"""The owner's side of a request server: handlers by type of request, and a greeter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import msgspec

from ..protocol.messages import Fault, Hello, Reply
from .request_queue import Call, Frames

__all__ = ["Answer", "Greeter", "Handler", "Handlers"]

Answer: TypeAlias = Reply | Frames | None


class Handler:
    """Serves one type of request; `always`: however late it is, and whether or not it is cancelled."""

    __slots__ = ("always", "handle")

    def __init__(self, handle: Callable[[Call, Any], Answer], *, always: bool = False) -> None:
        self.handle = handle
        self.always = always


Handlers: TypeAlias = Mapping[type[msgspec.Struct], Handler]


class Greeter(Protocol):
    """Answers of the server's owner to a router that opens a connection."""

    def rejection(self, hello: Hello) -> Fault | None:
        """Return why the router is not welcome, None if it is."""
        ...

    def welcome(self, *, ipc: bool) -> Reply:
        """Return the Welcome of this moment; `ipc`: whether the router may use that endpoint."""
        ...

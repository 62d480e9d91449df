"""The messages about a connection and its requests: Ping, Pong and Cancel; `messages` has all the others."""

from __future__ import annotations

from typing import Final

import msgspec

from .request_header import Number

__all__ = ["PING", "PONG", "Cancel", "Ping", "Pong"]


class Cancel(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=14):
    """The answers to these requests of this connection are no longer wanted: those not begun need not be."""

    requests: list[Number]


class Ping(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=15):
    """A router has heard nothing from the node for a while: is it alive? See `wire.transport.liveness`."""


class Pong(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=16):
    """Answers Ping. A node also sends it unasked to a router that has been silent, to see if it is still there."""


PING: Final = msgspec.msgpack.encode(Ping())
PONG: Final = msgspec.msgpack.encode(Pong())
"""Their frames: they have no fields."""

"""Peers that cannot be measured on a machine: the rest is measured without them, and the report says so."""

from __future__ import annotations

import contextlib
from typing import TypeVar

from ...wire.errors import DawnchorusError

__all__ = ["PeerUnavailable", "start_peer"]

Peer = TypeVar("Peer")


class PeerUnavailable(DawnchorusError):
    """A peer cannot be measured here; the message says what is missing. The rest can."""


async def start_peer(
    stack: contextlib.AsyncExitStack, name: str, peer: contextlib.AbstractAsyncContextManager[Peer], notes: list[str]
) -> Peer | None:
    """Start a peer for as long as the stack is open; None, and a note, if it cannot be had."""
    try:
        return await stack.enter_async_context(peer)
    except PeerUnavailable as error:
        notes.append(f"{name} was not measured: {error}")
        return None

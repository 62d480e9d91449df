"""The context that the states of one wake read their kinds by: image, decoder, fallback, and the nodes' clocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from ..arguments import Seconds

__all__ = ["Again", "KindView", "WakeContext"]


class Again(Protocol):
    """A function that wakes an agent again, for some kinds; the future fails only if the cluster is closed."""

    def __call__(self, agent_id: str, kinds: tuple[str, ...], deadline_s: Seconds | None) -> asyncio.Future[Any]:
        """Return the future of the fresh state."""
        ...


class KindView(NamedTuple):
    """How a state reads one kind: where its image is (-1: not asked for), its decoder and its fallback."""

    store: int
    decoder: msgspec.msgpack.Decoder[Any]
    fallback: Any
    kept_in: str = ""
    """The name of the kind's store, whether it was asked or not."""


class WakeContext:
    """The context that the states of one fetch share: how to read their kinds, and the nodes' clocks."""

    __slots__ = ("_clock", "_clock_offsets_ms", "again", "kinds", "state_type")

    def __init__(
        self,
        kinds: Mapping[str, KindView],
        stores: int,
        again: Again,
        clock: Callable[[], float] | None = None,
        state_type: Callable[..., Any] | None = None,
    ) -> None:
        """`clock` is this host's monotonic clock, in seconds; `state_type` the type of states."""
        self._clock = clock or time.monotonic
        self.kinds = kinds
        self.again = again
        """How to ask for more."""
        self.state_type: Any = state_type
        """The type of its states."""
        self._clock_offsets_ms = [0] * stores

    def note_clock(self, store: int, now_ms: int) -> int:
        """Note a store's clock (ms, UTC) as a reply that just came in gives it; the furthest one counts.

        Returns how far it is ahead of this host's monotonic clock. States go by the clock of their agent's own shard
        (`Part`); the furthest one is that of copies, which have none.
        """
        offset = now_ms - self.host_ms()
        if offset > self._clock_offsets_ms[store]:
            self._clock_offsets_ms[store] = offset
        return offset

    def now_ms(self, store: int) -> int:
        """Return a store's time: its clock in the replies, and this host's monotonic clock since."""
        return self._clock_offsets_ms[store] + self.host_ms()

    def host_ms(self) -> int:
        """Return the time of this host's monotonic clock."""
        return round(self._clock() * 1_000)

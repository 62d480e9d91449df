"""The specification of a wake's reading: its stores, what makes it complete, how a state shows each kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, Protocol

from ...wire.cluster.placement import Placement
from ...wire.protocol.image import HEADER_BYTES
from .fetch_plan import Routes
from .wake_context import KindView

__all__ = ["IMAGE_FIRST_KIND", "ReadSpec", "Readable"]

IMAGE_FIRST_KIND: Final = HEADER_BYTES + 1
"""Where the first kind's name begins in an image of fewer than 16 kinds: behind its version and the map's one byte."""


class ReadSpec(NamedTuple):
    """How some kinds are read: from which stores, and which of them a wake requires."""

    routes: Routes
    kinds: list[str] | None
    """The kinds that a Fetch names: None for all kinds of its stores."""
    views: Mapping[str, KindView]
    required: tuple[str, ...]
    """The required kinds among them."""
    required_stores: tuple[tuple[int, bytes], ...]
    """Each required kind's store, by index, and packed name, as it is in an image that begins with it."""
    needed_stores: tuple[int, ...] = ()
    """Indices of the stores without which an agent is of no use: those of required kinds."""
    raises: bool = True
    """Whether a wake fails if a required kind is missing; one that fills in a state does not."""


class Readable(Protocol):
    """The kinds of a cluster, as far as wakes need them."""

    def choose(self, kinds: Iterable[str]) -> tuple[str, ...]:
        """Return the names of some kinds, each once, in the topology's order.

        Raises:
            UnknownKindError, InvalidRequestError: they cannot be asked for.
        """
        ...

    def read_spec(self, placement: Placement, kinds: Iterable[str] | None) -> ReadSpec:
        """Return how to read these kinds, None for all that a wake fetches.

        Raises:
            UnknownKindError, InvalidRequestError: they cannot be asked for.
        """
        ...

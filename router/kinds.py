"""What a router knows of kinds: where each is kept, how it is decoded and encoded, which are required."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import msgspec

from ..wire.errors import InvalidRequestError, UnknownKindError
from ..wire.image import ENCODING_BYTES, ENCODING_MSGPACK, HEADER_BYTES
from ..wire.limits import FRAGMENT_BYTES_MAX
from ..wire.messages import Put
from ..wire.placement import Placement
from ..wire.topology import Topology
from .plan import Routes
from .state import KindView, WakeContext

__all__ = ["Kinds", "Reading", "as_kinds", "encode_value"]

_encoder = msgspec.msgpack.Encoder()


class Reading(NamedTuple):
    """How some kinds are read: from which stores, and what a wake of them needs to be whole."""

    routes: Routes
    kinds: list[str] | None
    """What a Fetch names: None for all kinds of its stores."""
    views: Mapping[str, KindView]
    required: tuple[str, ...]
    """The required kinds among them."""
    required_stores: tuple[tuple[int, bytes], ...]
    """Of each required kind, its store's index and its packed name, as an image that begins with it has it."""

    def context(self) -> WakeContext:
        """Return what the states of one fetch share."""
        return WakeContext(self.views, len(self.routes.stores))


class Kinds:
    """The kinds of one topology, with the types that the user registered."""

    def __init__(self, topology: Topology, types: Mapping[str, Any] | None) -> None:
        """Take the kinds of a topology.

        Raises:
            UnknownKindError: a type is registered for a kind that the topology does not have.
        """
        self._topology = topology
        self._decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {kind: _decoder(Any) for kind in topology.kinds}
        for kind, type_ in (types or {}).items():
            self.require(kind)
            self._decoders[kind] = _decoder(type_)

    def require(self, kind: str) -> str:
        """Return the store of a kind.

        Raises:
            UnknownKindError: the topology has no such kind.
        """
        spec = self._topology.kinds.get(kind)
        if spec is None:
            known = ", ".join(self._topology.kinds)
            raise UnknownKindError(f"there is no kind {kind!r}; the topology has {known}")
        return spec.store

    def by_store(self, fragments: Mapping[str, Any]) -> dict[str, list[Put]]:
        """Return the operations that save these values, by store; required kinds first, so that images begin with them.

        Raises:
            UnknownKindError, InvalidRequestError: nothing can be sent of it.
        """
        if not fragments:
            raise InvalidRequestError("a save needs at least one kind")
        operations: dict[str, list[Put]] = {}
        for kind in sorted(fragments, key=lambda kind: not self._is_required(kind)):
            operations.setdefault(self.require(kind), []).append(encode_value(kind, fragments[kind]))
        return operations

    def stores_of(self, kinds: Iterable[str] | None) -> dict[str, list[str] | None]:
        """Return the stores that keep these kinds, with which of theirs are meant; None for all of all stores."""
        if kinds is None:
            return dict.fromkeys(self._topology.stores)
        stores: dict[str, list[str] | None] = {}
        for kind in as_kinds(kinds):
            chosen = stores.setdefault(self.require(kind), [])
            if chosen is not None and kind not in chosen:
                chosen.append(kind)
        return stores

    def reading(self, placement: Placement, kinds: Iterable[str] | None) -> Reading:
        """Return how to read these kinds (None for all) under a placement.

        Raises:
            UnknownKindError, InvalidRequestError: they cannot be asked for.
        """
        chosen = list(self._topology.kinds) if kinds is None else list(as_kinds(kinds))
        stores = list(dict.fromkeys(self.require(kind) for kind in chosen))
        if not stores:
            raise InvalidRequestError("a wake needs at least one kind")
        views = {
            kind: KindView(
                stores.index(spec.store) if kind in chosen else -1,
                self._decoders[kind],
                spec.fallback,
            )
            for kind, spec in self._topology.kinds.items()
        }
        whole = all(kind in chosen for store in stores for kind in self._topology.kinds_of(store))
        required = tuple(kind for kind in self._topology.kinds if kind in chosen and self._is_required(kind))
        beginnings = tuple((views[kind].store, _encoder.encode(kind)) for kind in required)
        return Reading(Routes.of(placement, stores), None if whole else chosen, views, required, beginnings)

    def _is_required(self, kind: str) -> bool:
        spec = self._topology.kinds.get(kind)
        return spec is not None and spec.required


IMAGE_FIRST_KIND = HEADER_BYTES + 1
"""Where the first kind's name begins in an image of fewer than 16 kinds: behind its version and the map's one byte."""


def encode_value(kind: str, value: Any) -> Put:
    """Return the operation that sets a kind: bytes as they are, anything else as msgpack.

    Raises:
        InvalidRequestError: it cannot be encoded, or is too large.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        encoding, encoded = ENCODING_BYTES, bytes(cast("bytes", value))
    else:
        try:
            encoding, encoded = ENCODING_MSGPACK, _encoder.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise InvalidRequestError(f"the value of {kind!r} cannot be encoded as msgpack: {error}") from error
    if len(encoded) > FRAGMENT_BYTES_MAX:
        size = f"{len(encoded):,} bytes; the limit is {FRAGMENT_BYTES_MAX:,}"
        raise InvalidRequestError(f"the value of {kind!r} has {size}")
    return Put(kind, 0, encoding, encoded)


def as_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Return the names of some kinds, each once.

    Raises:
        InvalidRequestError: it is one name by itself.
    """
    if isinstance(kinds, str):
        raise InvalidRequestError(f"kinds is a list of names, not the string {kinds!r}")
    return tuple(dict.fromkeys(kinds))


def _decoder(type_: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(type_)

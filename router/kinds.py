"""What a router knows of kinds: where each is kept, how it is decoded and encoded, which are required."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

import msgspec

from ..wire.errors import InvalidRequestError, UnknownKindError
from ..wire.image import ENCODING_BYTES, ENCODING_MSGPACK, HEADER_BYTES
from ..wire.limits import FRAGMENT_BYTES_MAX
from ..wire.messages import Operation, Put
from ..wire.placement import Placement
from ..wire.topology import TTL_S_MAX, TTL_S_MIN, Topology
from .late_fill import Again
from .plan import Routes
from .state import KindView, WakeContext

__all__ = ["Kinds", "Reading", "as_kinds", "encode_value"]

_Layout: TypeAlias = list[tuple[str, list[tuple[str, int]]]]
"""Of a choice of kinds: each store with its kinds, and how many milliseconds each lives (0 for ever)."""

_LAYOUTS_MAX: Final = 256
"""Choices of kinds whose layout is kept; a program has a handful."""

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
    needed_stores: tuple[int, ...] = ()
    """Indices of the stores without which an agent is of no use: those of required kinds."""
    raises: bool = True
    """Whether a wake fails where it has not what is required; one that fills a state in does not."""

    def context(self, again: Again) -> WakeContext:
        """Return what the states of one fetch share; `again` asks for more of one agent."""
        return WakeContext(self.views, len(self.routes.stores), again)


class Kinds:
    """The kinds of one topology, with the types that the user registered."""

    def __init__(self, topology: Topology, types: Mapping[str, Any] | None) -> None:
        """Take the kinds of a topology.

        Raises:
            UnknownKindError: a type is registered for a kind that the topology does not have.
        """
        self._topology = topology
        self._layouts: dict[tuple[str, ...], _Layout] = {}
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

    def by_store(self, fragments: Mapping[str, Any], ttl_s: float | None = None) -> dict[str, list[Operation]]:
        """Return the operations that save these values, by store; required kinds first, so that images begin with them.

        `ttl_s`: for all of them, None for what the topology says of each. Five kinds of bytes: 1.7 us.

        Raises:
            UnknownKindError, InvalidRequestError: nothing can be sent of it.
        """
        chosen = tuple(fragments)
        layout = self._layouts.get(chosen)
        if layout is None:
            layout = self._lay_out(chosen)
        ttl_ms = None if ttl_s is None else _milliseconds(ttl_s)
        operations: dict[str, list[Operation]] = {}
        for store, kinds in layout:
            puts: list[Operation] = []
            for kind, kind_ttl_ms in kinds:
                value, lives_ms = fragments[kind], kind_ttl_ms if ttl_ms is None else ttl_ms
                if type(value) is bytes and len(value) <= FRAGMENT_BYTES_MAX:
                    puts.append(Put(kind, 0, ENCODING_BYTES, value, lives_ms))
                else:
                    puts.append(encode_value(kind, value, lives_ms))
            operations[store] = puts
        return operations

    def _lay_out(self, chosen: tuple[str, ...]) -> _Layout:
        """Return where these kinds go, and keep it for the next save of the same."""
        if not chosen:
            raise InvalidRequestError("a save needs at least one kind")
        stores: dict[str, list[tuple[str, int]]] = {}
        for kind in sorted(chosen, key=lambda kind: not self._is_required(kind)):
            store = self.require(kind)
            stores.setdefault(store, []).append((str.__str__(kind), _milliseconds(self._topology.kinds[kind].ttl_s)))
        if len(self._layouts) >= _LAYOUTS_MAX:
            self._layouts.clear()
        layout = self._layouts[chosen] = list(stores.items())
        return layout

    def of_store(self, store: str) -> Sequence[str]:
        """Return the kinds that a store keeps."""
        return self._topology.kinds_of(store)

    def stores_of(self, kinds: Iterable[str] | None) -> dict[str, list[str] | None]:
        """Return the stores that keep these kinds, with which of theirs are meant; None for all of all stores."""
        if kinds is None:
            return dict.fromkeys(self._topology.stores)
        stores: dict[str, list[str] | None] = {}
        for kind in as_kinds(kinds):
            chosen = stores.setdefault(self.require(kind), [])
            if chosen is not None and kind not in chosen:
                chosen.append(str.__str__(kind))  # exactly the name, whatever was given that equals it
        return stores

    def reading(self, placement: Placement, kinds: Iterable[str] | None) -> Reading:
        """Return how to read these kinds (None for all but those of lazy stores) under a placement.

        Raises:
            UnknownKindError, InvalidRequestError: they cannot be asked for.
        """
        chosen = self._eager() if kinds is None else list(as_kinds(kinds))
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
        needed = tuple(dict.fromkeys([views[kind].store for kind in required]))
        return Reading(Routes.of(placement, stores), None if whole else chosen, views, required, beginnings, needed)

    def _eager(self) -> list[str]:
        """Return the kinds of the stores that every wake fetches; of all, where none is eager."""
        kinds, stores = self._topology.kinds, self._topology.stores
        return [kind for kind, spec in kinds.items() if stores[spec.store].wake != "lazy"] or list(kinds)

    def _is_required(self, kind: str) -> bool:
        spec = self._topology.kinds.get(kind)
        return spec is not None and spec.required


IMAGE_FIRST_KIND = HEADER_BYTES + 1
"""Where the first kind's name begins in an image of fewer than 16 kinds: behind its version and the map's one byte."""


def _milliseconds(ttl_s: float | None) -> int:
    if ttl_s is None:
        return 0
    if not TTL_S_MIN <= ttl_s <= TTL_S_MAX:
        raise InvalidRequestError(f"ttl_s is {TTL_S_MIN} to {TTL_S_MAX:.0f} seconds, not {ttl_s!r}")
    return round(ttl_s * 1_000)


def encode_value(kind: str, value: Any, ttl_ms: int = 0) -> Put:
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
    return Put(kind, 0, encoding, encoded, ttl_ms)


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

"""The kinds of a topology as a router knows them: stores, codecs, and required kinds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from ...wire.cluster.placement import Placement
from ...wire.cluster.topology import TTL_S_MAX, TTL_S_MIN, Topology
from ...wire.errors import InvalidRequestError, TopologyError, UnknownKindError
from ...wire.protocol.image import ENCODING_BYTES
from ...wire.protocol.limits import FRAGMENT_BYTES_MAX
from ...wire.protocol.messages import Operation, Put
from ..arguments import Seconds, exact_text, seconds
from ..wakes.fetch_plan import Routes
from ..wakes.read_spec import ReadSpec
from ..wakes.wake_context import KindView
from .value_codec import ValueCodec, ValueRules

__all__ = ["Expiring", "Kinds", "as_kinds"]

_Layout: TypeAlias = list[tuple[str, list[tuple[str, ValueCodec, int]]]]
"""A choice of kinds: each store with its kinds, their codecs, and their lifetimes in milliseconds (0 for ever)."""

_LAYOUTS_MAX: Final = 256
"""Choices of kinds, by order, whose layout is kept; a program has a handful."""

_NO_RULES: Final = ValueRules()
_encoder = msgspec.msgpack.Encoder()


class Expiring(NamedTuple):
    """A value to be saved that expires at a fixed time, rather than some time after its save; used by `load`."""

    value: Any
    expires_ms: int
    """Milliseconds since 1970-01-01 UTC, by the shard's clock; 0 for never."""


class Kinds:
    """The kinds of one topology, with the user's rules for their values."""

    codecs: Mapping[str, ValueCodec]
    """The codec of the values of each kind."""

    def __init__(self, topology: Topology, rules: ValueRules | None = None) -> None:
        """Take the kinds of a topology.

        Raises:
            UnknownKindError: a type is registered for a kind that the topology does not have.
            TopologyError: a kind's fallback does not fit the type that is registered for it.
        """
        self._topology = topology
        self._layouts: dict[tuple[str, ...], _Layout] = {}
        rules = rules or _NO_RULES
        types = rules.types or {}
        for kind in types:
            self.require(kind)
        self.codecs = {kind: ValueCodec(kind, types.get(kind, Any), rules) for kind in topology.kinds}
        for kind in types:
            self._require_fallback(kind)

    def _require_fallback(self, kind: str) -> None:
        """Require that a kind's fallback fits the type that is registered for it."""
        fallback = self._topology.kinds[kind].fallback
        if fallback is not msgspec.UNSET:
            try:
                self.codecs[kind].convert(fallback)
            except InvalidRequestError as error:
                raise TopologyError(f"fragments.{kind}: fallback does not fit its registered type: {error}") from error

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

    def by_store(self, fragments: Mapping[str, Any], ttl_s: Seconds | None = None) -> dict[str, list[Operation]]:
        """Return the operations that save these values, by store; required kinds first, so that images begin with them.

        `ttl_s`: for all of them, None for the topology's value of each. Five kinds of bytes: 1.7 us.

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
            for kind, codec, kind_ttl_ms in kinds:
                value, lives_ms = fragments[kind], kind_ttl_ms if ttl_ms is None else ttl_ms
                if type(value) is bytes and len(value) <= FRAGMENT_BYTES_MAX and not codec.typed:
                    puts.append(Put(kind, 0, ENCODING_BYTES, value, lives_ms))
                    continue
                expires_ms = 0
                if type(value) is Expiring:
                    value, expires_ms = value
                    lives_ms = _remaining_ms(expires_ms)
                encoding, encoded = codec.encode(value)
                puts.append(Put(kind, 0, encoding, encoded, lives_ms, expires_ms))
            operations[store] = puts
        return operations

    def _lay_out(self, chosen: tuple[str, ...]) -> _Layout:
        """Return the layout of these kinds, and keep it for the next save of the same."""
        if not chosen:
            raise InvalidRequestError("a save needs at least one kind")
        chosen = tuple([exact_text(kind) for kind in chosen])  # the layout is used for later saves too
        stores: dict[str, list[tuple[str, ValueCodec, int]]] = {}
        for kind in sorted(chosen, key=lambda kind: not self._is_required(kind)):
            store = self.require(kind)
            lives_ms = _milliseconds(self._topology.kinds[kind].ttl_s)
            stores.setdefault(store, []).append((str.__str__(kind), self.codecs[kind], lives_ms))
        if len(self._layouts) >= _LAYOUTS_MAX:
            del self._layouts[next(iter(self._layouts))]
        layout = self._layouts[chosen] = list(stores.items())
        return layout

    def of_store(self, store: str) -> Sequence[str]:
        """Return the kinds that a store keeps."""
        return self._topology.kinds_of(store)

    def stores_of(self, kinds: Iterable[str] | None) -> dict[str, list[str] | None]:
        """Return the stores that keep these kinds, with the chosen kinds of each; None for all kinds of all stores."""
        if kinds is None:
            return dict.fromkeys(self._topology.stores)
        stores: dict[str, list[str] | None] = {}
        for kind in as_kinds(kinds):
            chosen = stores.setdefault(self.require(kind), [])
            if chosen is not None and kind not in chosen:
                chosen.append(str.__str__(kind))  # the plain name, if a subclass was given
        return stores

    def choose(self, kinds: Iterable[str]) -> tuple[str, ...]:
        """Return the names of some kinds, each once, in the topology's order: equal choices are one.

        Raises:
            UnknownKindError, InvalidRequestError: they cannot be asked for.
        """
        chosen = dict.fromkeys(as_kinds(kinds))
        for kind in chosen:
            self.require(kind)
        if not chosen:
            raise InvalidRequestError("a wake needs at least one kind")
        return tuple([kind for kind in self._topology.kinds if kind in chosen])

    def read_spec(self, placement: Placement, kinds: Iterable[str] | None) -> ReadSpec:
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
                self.codecs[kind].decoder,
                spec.fallback,
                spec.store,
            )
            for kind, spec in self._topology.kinds.items()
        }
        complete = all(kind in chosen for store in stores for kind in self._topology.kinds_of(store))
        required = tuple(kind for kind in self._topology.kinds if kind in chosen and self._is_required(kind))
        beginnings = tuple((views[kind].store, _encoder.encode(kind)) for kind in required)
        needed = tuple(dict.fromkeys([views[kind].store for kind in required]))
        return ReadSpec(Routes.of(placement, stores), None if complete else chosen, views, required, beginnings, needed)

    def _eager(self) -> list[str]:
        """Return the kinds of the stores that every wake fetches; those of all stores, if none is eager."""
        kinds, stores = self._topology.kinds, self._topology.stores
        return [kind for kind, spec in kinds.items() if stores[spec.store].wake != "lazy"] or list(kinds)

    def _is_required(self, kind: str) -> bool:
        spec = self._topology.kinds.get(kind)
        return spec is not None and spec.required


def _milliseconds(ttl_s: Seconds | None) -> int:
    if ttl_s is None:
        return 0
    lives_s = seconds("ttl_s", ttl_s)
    if not TTL_S_MIN <= lives_s <= TTL_S_MAX:
        raise InvalidRequestError(f"ttl_s is {TTL_S_MIN} to {TTL_S_MAX:.0f} seconds, not {ttl_s!r}")
    return round(lives_s * 1_000)


def _remaining_ms(expires_ms: int) -> int:
    """Return the milliseconds to a time by this host's clock, for nodes that do not support times; at least 1."""
    return max(1, expires_ms - time.time_ns() // 1_000_000) if expires_ms else 0


def as_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Return the names of some kinds, each once.

    Raises:
        InvalidRequestError: it is a single name, or no names.
    """
    if isinstance(kinds, str):
        raise InvalidRequestError(f"kinds is a list of names, not the string {kinds!r}")
    try:
        return tuple(dict.fromkeys(map(exact_text, kinds)))
    except TypeError as error:  # nothing to iterate over, or a name that cannot be looked up
        raise InvalidRequestError(f"kinds is a list of names, not {kinds!r}") from error

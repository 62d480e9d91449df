"""An agent as a wake left it: its images, and what became of those that could not be had.

A state begins as a place in a group of agents whose replies came together. The first look at any of its kinds takes its
images out of the replies, as bytes of its own, and lets go of the group; a fragment is decoded when it is itself first
looked at, into the type registered for its kind.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Self

import msgspec

from ..wire.errors import FragmentAbsent, FragmentUnavailable, FragmentUndecodable, ProtocolError, UnknownKindError
from ..wire.image import ENCODING_BYTES, ENCODING_MSGPACK, Fragment, decode_image
from .arguments import Seconds
from .late_fill import Again, fill
from .outcomes import WHOLE, Item, Outcome
from .parts import Group

__all__ = ["AgentState", "KindView", "WakeContext"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS: Final = 253_402_300_799_999
"""The last millisecond that a datetime can name; a damaged fragment may name a later one."""


class KindView(NamedTuple):
    """How a state reads one kind: where its image is (-1: not asked for), its decoder and its fallback."""

    store: int
    decoder: msgspec.msgpack.Decoder[Any]
    fallback: Any


class WakeContext:
    """What the states of one fetch share: how to read their kinds, and the nodes' clocks."""

    __slots__ = ("_clock_offsets_ms", "again", "kinds", "state_type")

    def __init__(self, kinds: Mapping[str, KindView], stores: int, again: Again) -> None:
        self.kinds = kinds
        self.again = again
        """How to ask for more."""
        self.state_type: type[AgentState] = AgentState
        """What its states are."""
        self._clock_offsets_ms = [0] * stores

    def note_clock(self, store: int, now_ms: int) -> int:
        """Take note of a store's clock (ms, UTC) as a reply that just came in gives it; the furthest one counts.

        Returns how far it is ahead of this host's monotonic clock. The furthest one is that of states that ended
        without a group: shards have clocks of their own (`Part`).
        """
        offset = now_ms - time.monotonic_ns() // 1_000_000
        if offset > self._clock_offsets_ms[store]:
            self._clock_offsets_ms[store] = offset
        return offset

    def now_ms(self, store: int) -> int:
        """Return a store's time: its clock in the replies, and this host's monotonic clock since."""
        return self._clock_offsets_ms[store] + time.monotonic_ns() // 1_000_000


class AgentState(msgspec.Struct, gc=False, eq=False, repr_omit_defaults=True):
    """One woken agent. `state[kind]` is a value; what cannot be given is an exception, and `outcome` says why.

    The same object is given each time a kind is asked for; changing it changes nothing that is stored.
    """

    agent_id: str
    _context: WakeContext
    _group: Group | None = None  # where its images are until somebody looks
    _place: int = 0
    _images: tuple[Item, ...] | None = None
    _decoded: dict[int, dict[str, Fragment] | None] | None = None
    _values: dict[str, Any] | None = None
    _later: dict[str, AgentState] | None = None  # the state that shows a kind in this one's place, by kind
    _clock_offsets_ms: list[int] | None = None  # of its shards, by store, shared with others of its group

    def __getitem__(self, kind: str) -> Any:
        """Return the value of a kind; of a degraded one its fallback.

        Raises:
            FragmentAbsent: (a KeyError) it was never written, was deleted or has expired.
            FragmentUnavailable: (a LookupError) it could not be had, or was not asked for, and has no fallback.
            FragmentUndecodable: (a ValueError) its bytes do not fit the type registered for the kind.
            UnknownKindError: (a KeyError) the topology has no such kind.
        """
        values = self._values
        if values is None:
            values = self._values = {}
        elif kind in values:
            return values[kind]
        value = values[kind] = self._value(kind)
        return value

    def get(self, kind: str, default: Any = None) -> Any:
        """Return the value of a kind, `default` where it is absent or expired; one that could not be had raises."""
        if self.outcome(kind) in (Outcome.ABSENT, Outcome.EXPIRED):
            return default
        return self[kind]

    def outcome(self, kind: str) -> Outcome:
        """Return how the reading of a kind ended.

        Raises:
            FragmentUnavailable: it was not asked for.
            UnknownKindError: the topology has no such kind.
        """
        return self._look(kind)[0]

    def version(self, kind: str) -> int:
        """Return the version of a kind; 0 if absent or expired.

        Raises:
            FragmentUnavailable: it could not be had, or was not asked for: its version is unknown.
            UnknownKindError: the topology has no such kind.
        """
        outcome, fragment = self._look(kind)
        if fragment is not None:
            return fragment.version
        if outcome in WHOLE:
            return 0
        raise self._unavailable(kind, outcome)

    def expires_at(self, kind: str) -> datetime | None:
        """Return when a kind expires, in UTC, by its store's clock; None if never, or if it is absent or expired.

        Raises: as `version`.
        """
        outcome, fragment = self._look(kind)
        if fragment is None and outcome not in WHOLE:
            raise self._unavailable(kind, outcome)
        if fragment is None or not fragment.expires_ms:
            return None
        return _EPOCH + timedelta(milliseconds=min(fragment.expires_ms, _LAST_MS))

    @property
    def degraded(self) -> tuple[str, ...]:
        """The kinds asked for that are not OK, ABSENT or EXPIRED."""
        return tuple([kind for kind in self._asked() if self._look(kind)[0] not in WHOLE])

    @property
    def complete(self) -> bool:
        """Whether every kind asked for is OK, ABSENT or EXPIRED."""
        return not self.degraded

    def settle(
        self, deadline_s: Seconds | None = None, *, callback: Callable[[Self], None] | None = None
    ) -> asyncio.Future[Self]:
        """Ask again for the kinds that could not be had; return a future of this state, completed as far as it goes.

        It begins at once and ends by `deadline_s` from now (None: as a wake); `callback` is then called with the state,
        whether the future is awaited or not. What still could not be had stays degraded: look at `complete`.

        Raises (when awaited):
            ClusterUnavailable: the cluster was closed.
        """
        return fill(self, self.degraded, self._context.again, deadline_s, callback)

    async def fetch(self, kind: str, deadline_s: Seconds | None = None) -> Any:
        """Return the value of a kind that the wake did not ask for (of a lazy store, as a rule), fetched now.

        One that the state has already is returned as it is; `deadline_s`: seconds from now, None: as a wake.

        Raises: as `state[kind]`; ClusterUnavailable: the cluster was closed.
        """
        if kind in self._context.kinds and (kind not in self._asked() or self.outcome(kind) not in WHOLE):
            await fill(self, (kind,), self._context.again, deadline_s)
        return self[kind]

    def take_over(self, fresh: AgentState, kinds: tuple[str, ...]) -> None:
        """Show these kinds as a fresher state of the same agent has them."""
        fresh.detach()  # it keeps no reply alive, whoever keeps this one
        asked = self._asked()
        if self._later is None:
            self._later = {}
        for kind in kinds:
            if kind in asked and self.outcome(kind) in WHOLE and fresh.outcome(kind) not in WHOLE:
                continue  # another asking brought it meanwhile
            self._later[kind] = fresh
            if self._values is not None:
                self._values.pop(kind, None)  # a fallback may have been shown

    def detach(self) -> Self:
        """Return this state, owning its bytes: it keeps no reply alive.

        The first look at any kind does the same; a host calls this for states that it keeps and may never look at.
        """
        self._own_images()
        return self

    def __contains__(self, kind: str) -> bool:
        return kind in self._context.kinds and self.outcome(kind) is Outcome.OK

    def __repr__(self) -> str:
        outcomes = ", ".join([f"{kind}={self.outcome(kind).name}" for kind in self._asked()])
        return f"AgentState({self.agent_id!r}, {outcomes})"

    def _asked(self) -> list[str]:
        """Return the kinds that were asked for, by the wake or later."""
        later = self._later or ()
        return [kind for kind, view in self._context.kinds.items() if view.store >= 0 or kind in later]

    def _value(self, kind: str) -> Any:
        outcome, fragment = self._look(kind)
        view = self._context.kinds[kind]
        if fragment is None:
            if outcome in WHOLE:
                raise FragmentAbsent(f"agent {self.agent_id!r}: {kind} is {outcome.value}")
            if view.fallback is msgspec.UNSET:
                raise self._unavailable(kind, outcome)
            return copy.deepcopy(view.fallback)
        if fragment.encoding == ENCODING_BYTES:
            return fragment.value
        if fragment.encoding != ENCODING_MSGPACK:
            raise FragmentUndecodable(f"agent {self.agent_id!r}: {kind} has unknown encoding {fragment.encoding}")
        try:
            return view.decoder.decode(fragment.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FragmentUndecodable(f"agent {self.agent_id!r}: {kind} does not fit its type: {error}") from error

    def _look(self, kind: str) -> tuple[Outcome, Fragment | None]:
        view = self._context.kinds.get(kind)
        if view is None:
            known = ", ".join(self._context.kinds)
            raise UnknownKindError(f"there is no kind {kind!r}; the topology has {known}")
        if self._later is not None and (later := self._later.get(kind)) is not None:
            return later._look(kind)
        if view.store < 0:
            raise FragmentUnavailable(f"agent {self.agent_id!r}: {kind} was not asked for in this wake")
        images = self._images
        if images is None:
            images = self._own_images()
        image = images[view.store]
        if image is None:
            return Outcome.ABSENT, None
        if isinstance(image, Outcome):
            return image, None
        fragments = self._fragments(view.store, image)
        if fragments is None:
            return Outcome.FAULT, None
        fragment = fragments.get(kind)
        if fragment is None:
            return Outcome.ABSENT, None
        if fragment.expires_ms and fragment.expires_ms <= self._now_ms(view.store):
            return Outcome.EXPIRED, None
        return Outcome.OK, fragment

    def _own_images(self) -> tuple[Item, ...]:
        if self._images is None:
            assert self._group is not None, "a state is made with one or the other"
            self._images = self._group.images(self._place)
            self._clock_offsets_ms = self._group.clock_offsets_ms(self._place)
            self._group = None
        return self._images

    def _now_ms(self, store: int) -> int:
        """Return the time of the shard that the agent is of."""
        if self._clock_offsets_ms is None:
            return self._context.now_ms(store)
        return self._clock_offsets_ms[store] + time.monotonic_ns() // 1_000_000

    def _fragments(self, store: int, image: bytes) -> dict[str, Fragment] | None:
        if self._decoded is None:
            self._decoded = {}
        elif store in self._decoded:
            return self._decoded[store]
        try:
            fragments = decode_image(image)
        except ProtocolError:
            fragments = None
        self._decoded[store] = fragments
        return fragments

    def _unavailable(self, kind: str, outcome: Outcome) -> FragmentUnavailable:
        return FragmentUnavailable(f"agent {self.agent_id!r}: {kind} could not be had: {outcome.name}")

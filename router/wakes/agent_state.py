"""The state of an agent after a wake: its values, and the outcomes of those that could not be read.

Its images are in `state_images`. A fragment is decoded when it is first looked at, into the type registered for its
kind. `fills` has the rule of later answers; `state_copy` has copies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import msgspec

from ...wire.errors import FragmentAbsent, FragmentUnavailable, FragmentUndecodable
from ...wire.protocol.image import ENCODING_BYTES, ENCODING_MSGPACK, Fragment, encode_image
from ..arguments import Seconds
from .fills import Fills, Moment
from .outcomes import WHOLE, Item, Outcome
from .settle import fill
from .state_copy import KindCopy, revive_context, wall_ms
from .state_images import AgentImages

__all__ = ["AgentState"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS: Final = 253_402_300_799_999
"""The last millisecond that a datetime can name; a corrupt fragment may name a later one."""

_GONE: Final = object()
"""The value of a kind that was shown to be absent or expired."""

_encode = msgspec.msgpack.Encoder().encode


class AgentState(AgentImages, gc=False, eq=False, repr_omit_defaults=True):
    """One woken agent. `state[kind]` is a value, or raises if there is none; `outcome` says why.

    The same object is given each time a kind is asked for; changing it changes nothing that is stored, and nothing that
    another wake gave. Iterating goes over the kinds that are there (OK), as `in` says; a state is true whatever is in
    it. `copy`, `deepcopy` and `pickle` give a state of its own that shows what was stored, also in another process; it
    belongs to no cluster: `settle` and `fetch` raise there.
    """

    _values: dict[str, Any] | None = None  # shown, and to be shown again
    _passing: dict[str, Any] | None = None  # the same of what expires; _GONE where absence was shown
    _fills: Fills[AgentState] | None = None

    def __getitem__(self, kind: str) -> Any:
        """Return the value of a kind; of a degraded one its fallback.

        Raises:
            FragmentAbsent: (a KeyError) it was never written, was deleted or has expired.
            FragmentUnavailable: (a LookupError) it could not be read, or was not asked for, and has no fallback.
            FragmentUndecodable: (a ValueError) its bytes do not fit the type registered for the kind.
            UnknownKindError: (a KeyError) the topology has no such kind.
        """
        values = self._values
        if values is not None and kind in values:
            return values[kind]
        outcome, fragment = self._look(kind) if self._fills else self._stored(kind, living=True)
        if fragment is None and outcome in WHOLE:
            self._note_gone(kind)
            raise FragmentAbsent(f"agent {self.agent_id!r}: {kind} is {outcome.value}")
        return self._show(kind, outcome, fragment)

    def get(self, kind: str, default: Any = None) -> Any:
        """Return the value of a kind, `default` if it is absent or expired.

        One that could not be read is no reason for a default: it gives its fallback, or raises, as `state[kind]` does.
        """
        values = self._values
        if values is not None and kind in values:
            return values[kind]
        outcome, fragment = self._look(kind) if self._fills else self._stored(kind, living=True)
        if fragment is None and outcome in WHOLE:
            self._note_gone(kind)
            return default
        return self._show(kind, outcome, fragment)

    def outcome(self, kind: str) -> Outcome:
        """Return how the reading of a kind ended.

        Raises:
            FragmentUnavailable: it was not asked for.
            UnknownKindError: the topology has no such kind.
        """
        outcome, fragment = self._look(kind)
        if fragment is None and outcome in WHOLE:
            self._note_gone(kind)
        return outcome

    def peek(self, kind: str) -> Outcome:
        """Return the outcome of a kind, without counting as a look by the state's owner."""
        return self._look(kind)[0]

    def version(self, kind: str) -> int:
        """Return the version of a kind; 0 if absent or expired.

        Raises:
            FragmentUnavailable: it could not be read, or was not asked for: its version is unknown.
            UnknownKindError: the topology has no such kind.
        """
        outcome, fragment = self._look(kind) if self._fills else self._stored(kind, living=True)
        if fragment is not None:
            return fragment.version
        if outcome in WHOLE:
            self._note_gone(kind)
            return 0
        raise self._unavailable(kind, outcome)

    def vouched_version(self, kind: str) -> int:
        """Return the version that a save with `expect=state` expects of a kind: that of what was shown of it.

        Raises:
            FragmentUnavailable: its version is unknown; or a fallback, or nothing, was shown, and its value came later.
        """
        outcome, fragment = self._look(kind)
        if self._fills is not None and kind in self._fills.missed and outcome in WHOLE:
            raise FragmentUnavailable(
                f"agent {self.agent_id!r}: {kind} was looked at while it could not be read, and its value came later:"
                f" look at it again before you save over it"
            )
        if fragment is None and outcome not in WHOLE:
            raise self._unavailable(kind, outcome)
        return 0 if fragment is None else fragment.version

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

    @property
    def skewed(self) -> tuple[str, ...]:
        """The kinds that are not of one moment with others of their store, which may be one half of a save each.

        A wake shows none. A kind that was looked at stays as it is when a later `fetch` brings another of its store,
        and its store may have been saved to in between.
        """
        return () if self._fills is None else tuple([kind for kind in self._asked() if kind in self._fills.mixed])

    def settle(
        self, deadline_s: Seconds | None = None, *, callback: Callable[[Self], None] | None = None
    ) -> asyncio.Future[Self]:
        """Ask again for the kinds that could not be read; return a future of this state, completed as far as it goes.

        It begins at once and ends by `deadline_s` from now (None: as a wake); `callback` is then called with the state,
        whether the future is awaited or not. Kinds that still could not be read stay degraded: look at `complete`.
        Values that were looked at stay as they are; in place of a fallback the kind's value is shown.

        Raises (when awaited):
            ClusterUnavailable: the cluster was closed.
        """
        return fill(self, self.kinds_along(self.degraded), self._context.again, deadline_s, callback)

    async def fetch(self, kind: str, deadline_s: Seconds | None = None) -> Any:
        """Return the value of a kind that the wake did not ask for (of a lazy store, as a rule), fetched now.

        One that the state has already is returned as it is; `deadline_s`: seconds from now, None: as a wake. Other
        kinds of its store that were not looked at are read anew with it, so that they are of one moment; `skewed` names
        those that cannot be.

        Raises: as `state[kind]`; ClusterUnavailable: the cluster was closed.
        """
        if kind in self._context.kinds and not self.is_there(kind):
            await fill(self, self.kinds_along((kind,)), self._context.again, deadline_s)
        return self[kind]

    def as_dict(self) -> dict[str, Any]:
        """Return `{kind: state[kind]}` of every kind asked for that is not absent or expired.

        Raises: as `state[kind]`: a kind that could not be read and has no fallback is never left out as if it were
        absent.
        """
        shown: dict[str, Any] = {}
        for kind in self._asked():
            value = self.get(kind, _GONE)
            if value is not _GONE:
                shown[kind] = value
        return shown

    def keys(self) -> list[str]:
        """Return the kinds that are there (OK), in the topology's order."""
        return [kind for kind in self._asked() if self.outcome(kind) is Outcome.OK]

    def values(self) -> list[Any]:
        """Return the values of the kinds that are there."""
        return [self[kind] for kind in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """Return the kinds that are there, each with its value."""
        return [(kind, self[kind]) for kind in self.keys()]

    def twin(self) -> Self:
        """Return another state of the same wake, before either was looked at: nothing that can be changed is shared."""
        twin = type(self)(self.agent_id, self._context, self._group, self._place, self._images)
        twin._clock_offsets_ms = self._clock_offsets_ms
        return twin

    def __contains__(self, kind: object) -> bool:
        return isinstance(kind, str) and kind in self._context.kinds and self.outcome(kind) is Outcome.OK

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __bool__(self) -> bool:
        return True  # `if state:` asks whether there is a state, as it did before it had a length

    def __repr__(self) -> str:
        outcomes = ", ".join([f"{kind}={self._look(kind)[0].name}" for kind in self._asked()])
        return f"AgentState({self.agent_id!r}, {outcomes})"

    def __copy__(self) -> AgentState:
        revive, arguments = self.__reduce__()
        return revive(*arguments)

    def __reduce__(self) -> tuple[Callable[..., AgentState], tuple[Any, ...]]:
        kinds: list[KindCopy] = []
        for kind, view in self._context.kinds.items():
            holder = self._holder(kind)
            store = holder._context.kinds[kind].store
            item: Item = None
            if store >= 0:
                outcome, fragment = holder._stored(kind)
                item = outcome if outcome not in WHOLE else None
                if fragment is not None:
                    item = encode_image(fragment.version, {kind: fragment})
            now_ms = holder._now_ms(store) if store >= 0 else 0
            decoder = view.decoder
            hooks = decoder.dec_hook, decoder.ext_hook
            kinds.append(KindCopy(kind, view.kept_in, store >= 0, item, now_ms, decoder.type, *hooks, view.fallback))
        return _revive, (self.agent_id, kinds, self.skewed, wall_ms())

    # --- fills: the rule is in `fills` ---

    def handle_asked(self, kinds: tuple[str, ...]) -> None:
        """Note that a fill asks for these kinds."""
        if self._fills is None:
            self._fills = Fills()
        self._fills.asked.append(kinds)

    def handle_answered(self, kinds: tuple[str, ...], fresh: AgentState | None) -> None:
        """Accept the answer to a fill of these kinds: `fresh` is the state that it brought, if any."""
        fills = self._fills
        assert fills is not None, "it was asked for"
        fills.asked.remove(kinds)
        if fresh is not None:
            fresh._own_moments()
            fresh.detach()  # it keeps no reply alive while this state lives
            fills.handle_answered(kinds, self, fresh, self._stores())

    def is_there(self, kind: str) -> bool:
        """Return whether the stored value of a kind, or its absence, is known: OK, ABSENT or EXPIRED."""
        holder = self._holder(kind)
        return holder._context.kinds[kind].store >= 0 and holder._stored(kind)[0] in WHOLE

    def was_shown(self, kind: str) -> bool:
        """Return whether its value or its absence was looked at."""
        shown = self._values is not None and kind in self._values
        return shown or (self._passing is not None and kind in self._passing)

    def stored_version(self, kind: str) -> int:
        """Return the version of a kind that is there, expired or not; 0 if nothing is stored."""
        fragment = self._read(kind)[1]
        return 0 if fragment is None else fragment.version

    def moment(self, kind: str) -> Moment:
        """Return the moment of the answer for a kind."""
        holder = self._holder(kind)
        return holder._moment_of(holder._context.kinds[kind].store)

    def drop_fallback(self, kind: str) -> bool:
        """Stop showing the fallback of a kind; return whether it was shown."""
        return self._values is not None and self._values.pop(kind, _GONE) is not _GONE

    def kinds_along(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Return the kinds that a fill of these asks for."""
        fills = Fills[AgentState]() if self._fills is None else self._fills
        return fills.along(wanted, self._asked(), self._stores())

    def _stores(self) -> dict[str, str]:
        return {kind: view.kept_in for kind, view in self._context.kinds.items()}

    def _note_gone(self, kind: str) -> None:
        """Take note that a kind was shown to be absent or expired."""
        if self._passing is None:
            self._passing = {}
        self._passing[kind] = _GONE
        if self._fills is not None:
            self._fills.missed.discard(kind)

    # --- reading ---

    def _asked(self) -> list[str]:
        """Return the kinds that were asked for, by the wake or later."""
        brought = () if self._fills is None else self._fills.brought
        return [kind for kind, view in self._context.kinds.items() if view.store >= 0 or kind in brought]

    def _show(self, kind: str, outcome: Outcome, fragment: Fragment | None) -> Any:
        """Return the value of a kind that is not absent, to be shown from now on."""
        if fragment is None:
            value = self._fallback(kind, outcome)
        else:
            if fragment.expires_ms:
                return self._show_passing(kind, fragment)
            value = self._decode(kind, fragment)
            if self._fills is not None:
                self._fills.missed.discard(kind)
        if self._values is None:
            self._values = {}
        self._values[kind] = value
        return value

    def _show_passing(self, kind: str, fragment: Fragment) -> Any:
        """Do as `_show`, for a value that expires."""
        if self._passing is None:
            self._passing = {}
        value = self._passing.get(kind, _GONE)
        if value is _GONE:
            value = self._passing[kind] = self._decode(kind, fragment)
            if self._fills is not None:
                self._fills.missed.discard(kind)
        return value

    def _decode(self, kind: str, fragment: Fragment) -> Any:
        if fragment.encoding == ENCODING_BYTES:
            decoder = self._context.kinds[kind].decoder
            return fragment.value if decoder.type is Any else _bytes_as_type(decoder, fragment.value)
        if fragment.encoding != ENCODING_MSGPACK:
            raise FragmentUndecodable(f"agent {self.agent_id!r}: {kind} has unknown encoding {fragment.encoding}")
        try:
            return self._context.kinds[kind].decoder.decode(fragment.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FragmentUndecodable(f"agent {self.agent_id!r}: {kind} does not fit its type: {error}") from error

    def _fallback(self, kind: str, outcome: Outcome) -> Any:
        """Return a fallback of this state's own, of the type registered for the kind."""
        view = self._context.kinds[kind]
        if view.fallback is msgspec.UNSET:
            if self._fills is None:
                self._fills = Fills()
            self._fills.missed.add(kind)
            raise self._unavailable(kind, outcome)
        return view.decoder.decode(_encode(view.fallback))

    def _holder(self, kind: str) -> AgentState:
        """Return the state that shows a kind: this one, or what a fill brought."""
        return self if self._fills is None else self._fills.brought.get(kind, self)

    def _look(self, kind: str) -> tuple[Outcome, Fragment | None]:
        """Return the outcome of a kind, and the fragment that is shown."""
        return self._holder(kind)._stored(kind, living=True)

    def _read(self, kind: str) -> tuple[Outcome, Fragment | None]:
        """Return the outcome of a kind, and its stored fragment, expired or not."""
        return self._holder(kind)._stored(kind)

    def _unavailable(self, kind: str, outcome: Outcome) -> FragmentUnavailable:
        return FragmentUnavailable(f"agent {self.agent_id!r}: {kind} could not be read: {outcome.name}")


def _revive(agent_id: str, kinds: list[KindCopy], skewed: tuple[str, ...], copied_ms: int) -> AgentState:
    """Return the state that was copied."""
    state = AgentState(agent_id, revive_context(kinds, copied_ms), _images=tuple([copied.item for copied in kinds]))
    if skewed:
        state._fills = Fills()  # pyright: ignore[reportPrivateUsage]
        state._fills.mixed.update(skewed)  # pyright: ignore[reportPrivateUsage]
    return state


def _bytes_as_type(decoder: msgspec.msgpack.Decoder[Any], value: bytes) -> Any:
    """Return bytes as their kind's type makes them (`export` tells no such type from bytes), or as they are."""
    try:
        return decoder.decode(msgspec.msgpack.encode(value))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return value

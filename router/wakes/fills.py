"""Fills: answers that come into a state after its wake, and which are shown. Pure; docs/consistency.md has the rule.

- A kind that was looked at stays: the same value, the same version, the same object.
- A kind that is missing (degraded, or not asked for) accepts a fill's answer, also in place of a fallback.
- A kind that is there and was not looked at accepts strictly newer answers, never older or equal ones.
- Kinds of one store are of one moment. A fill asks for all kinds of the store that the state shows: those not looked at
  are read again with the rest; those that were and have changed since are named with their neighbours (`mixed`).
- A version vouches (`save(expect=state)`) for the shown value of its kind. A kind looked at while it was missing
  showed a fallback, or nothing: no version that came later vouches for that, until the kind is looked at again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar

__all__ = ["Answers", "Fills", "Moment"]


class Moment(NamedTuple):
    """The moment of an answer of one store: the version of its image, 0 for none, and of the shard when it was read."""

    image: int
    shard: int

    def is_after(self, other: Moment) -> bool:
        """Return whether this answer was read later than another of the same agent, and something was written between.

        `shard` is a lower bound, and 0 if it is not known.
        """
        if self.image and other.image:
            return self.image > other.image
        if self.image:
            return self.image > other.shard  # it was written since, unless the other one saw it deleted
        return other.image > 0 and self.shard >= other.image


class Answers(Protocol):
    """The answers that one state has, by kind."""

    def is_there(self, kind: str) -> bool:
        """Return whether the stored value of a kind, or its absence, is known: OK, ABSENT or EXPIRED."""
        ...

    def was_shown(self, kind: str) -> bool:
        """Return whether its owner has looked at the stored value of a kind, or at its absence."""
        ...

    def stored_version(self, kind: str) -> int:
        """Return the version of a kind that is there, expired or not; 0 if nothing is stored."""
        ...

    def moment(self, kind: str) -> Moment:
        """Return the moment of its answer for a kind."""
        ...

    def drop_fallback(self, kind: str) -> bool:
        """Stop showing the fallback of a kind; return whether it was shown."""
        ...


S = TypeVar("S", bound=Answers)


class Fills(Generic[S]):
    """The answers that fills brought into one state."""

    __slots__ = ("asked", "brought", "missed", "mixed")

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        """The kinds of each fill under way."""
        self.brought: dict[str, S] = {}
        """The states that show kinds in place of this one, by kind."""
        self.missed: set[str] = set()
        """Kinds looked at while they were missing, and not since."""
        self.mixed: set[str] = set()
        """Kinds that are not of one moment with others of their store."""

    def along(self, wanted: Iterable[str], shown: Iterable[str], stores: Mapping[str, str]) -> tuple[str, ...]:
        """Return the kinds to ask for: those wanted, and those shown or being asked for of the same stores.

        `stores`: the store of each kind.
        """
        chosen = {*wanted, *shown, *[kind for kinds in self.asked for kind in kinds]}
        of_stores = {stores[kind] for kind in wanted}
        return tuple([kind for kind, store in stores.items() if store in of_stores and kind in chosen])

    def handle_answered(self, kinds: Iterable[str], here: Answers, fresh: S, stores: Mapping[str, str]) -> None:
        """Bring the answers to a fill of these kinds into the state `here`."""
        by_store: dict[str, list[str]] = {}
        for kind in kinds:
            by_store.setdefault(stores[kind], []).append(kind)
        for store, of_store in by_store.items():
            self._handle_store([kind for kind in stores if stores[kind] == store], of_store, here, fresh)

    def _handle_store(self, all_kinds: list[str], asked: list[str], here: Answers, fresh: S) -> None:
        there = [kind for kind in all_kinds if here.is_there(kind)]
        covers = set(there) <= set(asked)
        brings = False
        for kind in asked:
            is_whole = fresh.is_there(kind)
            if kind not in there:
                if is_whole and here.drop_fallback(kind):
                    self.missed.add(kind)
            elif here.was_shown(kind) or not (is_whole and covers and fresh.moment(kind).is_after(here.moment(kind))):
                continue
            self.brought[kind] = fresh
            brings = brings or is_whole
        if not brings:
            return
        stays = [kind for kind in there if self.brought.get(kind) is not fresh]
        if all([kind in asked and here.stored_version(kind) == fresh.stored_version(kind) for kind in stays]):
            self.mixed.difference_update(all_kinds)
        else:
            self.mixed.update([kind for kind in all_kinds if here.is_there(kind)])

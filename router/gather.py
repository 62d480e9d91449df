"""Gathers the replies of one fetch: a pure state machine fed replies, failures and the end.

It keeps a column of items for each store, in the order of the plan. An item that has not come stands as TIMEOUT, so
that a deadline can be met at any moment with what is there. A group is complete when every store has answered for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ..wire.errors import ProtocolError
from ..wire.messages import ImageSection, SectionStatus
from .outcomes import Item, Outcome
from .plan import Group, Part, Plan

__all__ = ["Gather"]

_OUTCOMES: Final[dict[int, Outcome]] = {
    SectionStatus.MOVED: Outcome.UNAVAILABLE,
    SectionStatus.SEALED: Outcome.UNAVAILABLE,
    SectionStatus.OVERLOADED: Outcome.SHED,
    SectionStatus.TOO_LATE: Outcome.TIMEOUT,
}
"""What a section's status means for its fragments; any other, also one not known yet, is a FAULT."""


class Gather:
    """The items of one fetch as they come."""

    __slots__ = ("_groups_waiting", "columns", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.columns: list[list[Item]] = [[Outcome.TIMEOUT] * len(plan.agents) for _ in plan.routes.stores]
        self._groups_waiting = len(plan.groups)

    @property
    def complete(self) -> bool:
        """Whether every group is."""
        return self._groups_waiting == 0

    def handle_section(self, parts: Sequence[Part], section: ImageSection) -> Group | None:
        """Take in one section of a reply to a request of these parts; return the group that it completed, if any.

        Raises:
            ProtocolError: the section answers nothing that was asked, or not in order.
        """
        if section.index >= len(parts):
            raise ProtocolError(f"section {section.index} of {len(parts)}")
        part = parts[section.index]
        if section.status != SectionStatus.OK:
            return self.handle_failure(part, _OUTCOMES.get(section.status, Outcome.FAULT))
        begin = part.start + part.received
        end = begin + len(section.items)
        if section.offset != part.received or end > part.stop or (begin == end and not part.whole):
            raise ProtocolError(f"{len(section.items)} items from {section.offset}, {part.received} were there")
        # No router of this version names versions that it knows, so no item is UNCHANGED.
        self.columns[part.store][begin:end] = section.items  # type: ignore[assignment]
        part.version = min(part.version, section.version) if part.received else section.version
        part.received = end - part.start
        return self._settle(part) if part.whole else None

    def handle_failure(self, part: Part, outcome: Outcome) -> Group | None:
        """Give up the rest of a part; return the group that this completed, if any."""
        if part.whole:
            return None
        begin = part.start + part.received
        self.columns[part.store][begin : part.stop] = [outcome] * (part.stop - begin)
        part.received = part.stop - part.start
        return self._settle(part)

    def reopen(self, group: Group) -> None:
        """Let a complete group wait for one thing more; `settle_again` ends it."""
        if group.waiting == 0:
            self._groups_waiting += 1
        group.waiting += 1

    def settle_again(self, group: Group) -> bool:
        """End one wait begun by `reopen`; return whether the group is complete."""
        return self._count_down(group)

    def missing(self, position: int, is_up: Callable[[str], bool]) -> tuple[Item, ...]:
        """Return the items at a position as they stand now; where a node is not connected, UNAVAILABLE for TIMEOUT."""
        group = self.plan.group_at(position)
        return tuple(
            Outcome.UNAVAILABLE if item is Outcome.TIMEOUT and not is_up(part.node) else item
            for part, item in zip(group.parts, (column[position] for column in self.columns), strict=True)
        )

    def handle_end(self, is_up: Callable[[str], bool]) -> list[Group]:
        """Give up everything that has not come; return the groups that were not complete."""
        ended = [group for group in self.plan.groups if group.waiting]
        for group in ended:
            for part in group.parts:
                self.handle_failure(part, Outcome.TIMEOUT if is_up(part.node) else Outcome.UNAVAILABLE)
            group.waiting = 0
        self._groups_waiting = 0
        return ended

    def _settle(self, part: Part) -> Group | None:
        return part.group if self._count_down(part.group) else None

    def _count_down(self, group: Group) -> bool:
        group.waiting -= 1
        if group.waiting:
            return False
        self._groups_waiting -= 1
        return True

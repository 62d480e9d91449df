"""Gathering of the replies of one fetch: a pure state machine fed replies, failures and the end.

Images are kept in the parts of the plan's groups; those that have not come count as TIMEOUT there, so that a deadline
can be met at any moment. A group is complete when every store has answered for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ...wire.errors import ProtocolError
from ...wire.protocol.messages import UNCHANGED, FetchReply, ImageSection, SectionStatus
from .fetch_plan import Plan
from .fetch_results import Group, Part, Piece
from .outcomes import Item, Outcome

__all__ = ["Gather"]

_OUTCOMES: Final[dict[int, Outcome]] = {
    SectionStatus.MOVED: Outcome.UNAVAILABLE,
    SectionStatus.SEALED: Outcome.UNAVAILABLE,
    SectionStatus.OVERLOADED: Outcome.SHED,
    SectionStatus.TOO_LATE: Outcome.TIMEOUT,
}
"""Outcomes of fragments by their section's status; any other, also one not known yet, is a FAULT."""


class Gather:
    """One fetch as its replies come."""

    __slots__ = ("_groups_waiting", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._groups_waiting = len(plan.groups)

    @property
    def complete(self) -> bool:
        """Whether every group is."""
        return self._groups_waiting == 0

    def handle_images(self, parts: Sequence[Part], images: FetchReply, complete: list[Group]) -> None:
        """Receive one reply to a request of these parts; add groups that it completed to `complete`.

        Raises:
            ProtocolError: the body is not of the images' size, or an image is said to be unchanged: nothing of the
            reply is kept; or a section answers nothing that was asked, or not in order: those before it are kept.
        """
        lengths = [sum(section.sizes) if section.status == SectionStatus.OK else 0 for section in images.sections]
        if sum(lengths) != len(images.body):
            raise ProtocolError(f"images of {sum(lengths)} bytes in a body of {len(images.body)}")
        # No router of this version sends versions that it has.
        if any([UNCHANGED in section.sizes for section in images.sections]):
            raise ProtocolError("an image is said to be unchanged, and none is known here")
        begin = 0
        for section, length in zip(images.sections, lengths, strict=True):
            if section.index >= len(parts):
                raise ProtocolError(f"section {section.index} of {len(parts)}")
            part = parts[section.index]
            if section.status != SectionStatus.OK:
                group = self.handle_failure(part, _OUTCOMES.get(section.status, Outcome.FAULT))
            else:
                group = self._receive(part, section, images.body[begin : begin + length])
                begin += length
            if group is not None:
                complete.append(group)

    def _receive(self, part: Part, section: ImageSection, body: memoryview) -> Group | None:
        sizes = section.sizes
        stop = part.received + len(sizes)
        if section.offset != part.received or stop > part.agents or not sizes:
            came = f"{part.received} of {part.agents} were there"
            raise ProtocolError(f"{len(sizes)} images from {section.offset}, {came}")
        part.pieces.append(Piece(part.received, sizes, body, section.version))
        part.version = min(part.version, section.version) if part.received else section.version
        part.received = stop
        return self._settle(part) if part.whole else None

    def handle_failure(self, part: Part, outcome: Outcome) -> Group | None:
        """Give up the rest of a part; return the group that this completed, if any."""
        if part.whole:
            return None
        part.failure = outcome
        part.received = part.agents
        return self._settle(part)

    def reopen(self, group: Group) -> None:
        """Let a complete group wait once more; `settle_again` ends that."""
        if group.waiting == 0:
            self._groups_waiting += 1
        group.waiting += 1

    def settle_again(self, group: Group) -> bool:
        """End one wait begun by `reopen`; return whether the group is complete."""
        return self._count_down(group)

    def images_now(self, position: int, floors: Sequence[int], is_up: Callable[[str], bool]) -> tuple[Item, ...]:
        """Return the present images at a position, none older than its store's acknowledged version.

        If a node is not connected, UNAVAILABLE replaces TIMEOUT.
        """
        group = self.plan.group_at(position)
        return tuple(
            Outcome.UNAVAILABLE if item is Outcome.TIMEOUT and not is_up(part.node) else item
            for part, item in zip(group.parts, group.images_from(position - group.start, floors), strict=True)
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
        group = self.plan.groups[part.group]
        return group if self._count_down(group) else None

    def _count_down(self, group: Group) -> bool:
        group.waiting -= 1
        if group.waiting:
            return False
        self._groups_waiting -= 1
        return True

"""Results of a fetch: the parts that a group of agents is asked for, and their images. Pure.

Replies are kept as they arrived. An image is cut out of its reply's body when it is looked at: delivering ten thousand
agents costs ten thousand small objects, and no copy of their bytes. A look copies the image, so that states that a host
keeps do not keep replies alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from ...wire.protocol.image import HEADER_BYTES
from .outcomes import Item, Outcome

__all__ = ["Group", "Owner", "Part", "Piece", "Place"]


class Owner(NamedTuple):
    """The node that serves a shard, and its epoch."""

    node: str
    epoch: int


class Piece:
    """Images that came in one message: those of a part's agents `start` to `stop` - 1.

    The image of agent i is `body[offsets[i - start] : offsets[i - start + 1]]`, empty if it has none. `body` is a
    view into the reply, which it keeps alive.
    """

    __slots__ = ("_offsets", "_sizes", "body", "start", "stop", "version")

    def __init__(self, start: int, sizes: list[int], body: memoryview, version: int) -> None:
        self.start = start
        self.stop = start + len(sizes)
        self.body = body
        self.version = version
        """The shard's version when they were read, at least."""
        self._sizes = sizes
        self._offsets: list[int] = []

    @property
    def offsets(self) -> list[int]:
        """Where each image begins in the body, and where the last one ends; 30 ns an image at the first look."""
        offsets = self._offsets
        if not offsets:
            offsets = self._offsets = list(accumulate(self._sizes, initial=0))
        return offsets


class Part:
    """The part of one group that is asked of one store: its agents, at one shard of one node."""

    __slots__ = (
        "agents",
        "clock_offset_ms",
        "epoch",
        "failure",
        "group",
        "node",
        "pieces",
        "received",
        "shard",
        "store",
        "version",
    )

    def __init__(self, group: int, agents: int, store: int, shard: int, owner: Owner) -> None:
        # The number of the group, not the group: references in both directions would keep the replies until the cycle
        # is collected.
        self.group = group
        self.agents = agents
        """How many."""
        self.store = store
        self.shard = shard
        self.node = owner.node
        self.epoch = owner.epoch
        self.received = 0
        """Agents whose images have come, in order, or were given up."""
        self.version = 0
        """The shard version of the oldest snapshot that images came from."""
        self.clock_offset_ms = 0
        """How far the shard's clock is ahead of this host's monotonic one, as its replies said."""
        self.pieces: list[Piece] = []
        self.failure = Outcome.TIMEOUT
        """The outcome of agents whose images have not come."""

    @property
    def whole(self) -> bool:
        """Whether the image of every agent has come, or been given up."""
        return self.received == self.agents

    def restart(self) -> None:
        """Forget what came: it is asked for again from the start."""
        self.received = 0
        self.pieces.clear()

    def image(self, agent: int) -> Item:
        """Return a copy of the image of agent number `agent` of the group, or why there is none."""
        view = self._view(agent)
        if view is None:
            return self.failure
        return bytes(view) or None

    def image_version(self, agent: int) -> int | None:
        """Return the version of an image, 0 if the agent has none, None if its image has not come."""
        view = self._view(agent)
        return None if view is None else int.from_bytes(view[:HEADER_BYTES], "big")

    def moment(self, agent: int) -> int:
        """Return the version of the shard when an agent's image was read, 0 if it has not come."""
        return next((piece.version for piece in self.pieces if agent < piece.stop), 0)

    def is_older(self, agent: int, floor: int) -> bool:
        """Return whether the image of an agent came, and may be older than the acknowledged version `floor`."""
        if floor <= self.version:
            return False
        version = self.image_version(agent)
        return version is not None and version < floor

    def begin_with(self, beginning: bytes, offset: int) -> bool:
        """Return whether every agent has an image, and each has these bytes at this offset."""
        wanted, end = memoryview(beginning), offset + len(beginning)
        came = 0
        for piece in self.pieces:
            body = piece.body
            for start, stop in pairwise(piece.offsets):
                # If an agent has no image, its place is empty, and the next image begins there.
                if start + end > stop or body[start + offset : start + end] != wanted:
                    return False
            came += piece.stop - piece.start
        return came == self.agents

    def _view(self, agent: int) -> memoryview | None:
        for piece in self.pieces:
            if agent < piece.stop:
                offsets = piece.offsets
                return piece.body[offsets[agent - piece.start] : offsets[agent - piece.start + 1]]
        return None


class Group:
    """Agents of one slot, asked together: positions `start` to `stop` - 1 of the plan. One part for each store."""

    __slots__ = ("_clock_offsets_ms", "parts", "refetched", "start", "stop", "waiting")

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.parts: list[Part] = []
        self._clock_offsets_ms: list[int] | None = None
        self.waiting = 0
        """Parts that are not complete yet, and agents' refetches under way."""
        self.refetched: dict[int, Place | list[Item]] = {}
        """Of agents that were read again, by their number in the group: their new place, or the images to show."""

    def images(self, agent: int) -> tuple[Item, ...]:
        """Return a copy of the images of agent number `agent`, one for each store."""
        if self.refetched and (instead := self.refetched.get(agent)) is not None:
            return instead.group.images(instead.agent) if isinstance(instead, Place) else tuple(instead)
        return tuple([part.image(agent) for part in self.parts])

    def clock_offsets_ms(self, agent: int) -> list[int]:
        """Return how far the clock of each store's shard is ahead of this host's monotonic one; its agents share it."""
        if self.refetched and isinstance(instead := self.refetched.get(agent), Place):
            return instead.group.clock_offsets_ms(instead.agent)
        if self._clock_offsets_ms is None or self.waiting:
            self._clock_offsets_ms = [part.clock_offset_ms for part in self.parts]
        return self._clock_offsets_ms

    def moments(self, agent: int) -> tuple[int, ...]:
        """Return for each store the shard's version when agent number `agent` was read there, 0 if unknown."""
        instead = self.refetched.get(agent)
        if isinstance(instead, Place):
            return instead.group.moments(instead.agent)
        return tuple([0 if instead is not None else part.moment(agent) for part in self.parts])

    def is_older(self, agent: int, floors: Sequence[int]) -> bool:
        """Return whether an image of agent number `agent` may be older than its store's acknowledged version."""
        instead = self.refetched.get(agent)
        if isinstance(instead, Place):
            return instead.group.is_older(instead.agent, floors)
        return any([part.is_older(agent, floor) for part, floor in zip(self.parts, floors, strict=True)])

    def images_from(self, agent: int, floors: Sequence[int]) -> list[Item]:
        """Return a copy of the images of agent number `agent`, with TIMEOUT for those older than acknowledged."""
        instead = self.refetched.get(agent)
        if isinstance(instead, Place):
            return instead.group.images_from(instead.agent, floors)
        return [
            Outcome.TIMEOUT if part.is_older(agent, floor) else part.image(agent)
            for part, floor in zip(self.parts, floors, strict=True)
        ]


class Place(NamedTuple):
    """An agent's place: its number in a group. (Behind the group: compiled, its types are looked at here.)"""

    group: Group
    agent: int

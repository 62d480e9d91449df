"""The read path: images from the memory map into the reply.

Runs in the node's event loop. No image is decoded, but where a fetch asks for some of a store's kinds only. What is
encoded are views into the map; they are valid while their snapshot is open, so the frame is made before it ends. A
fetch is answered a frame at a time (`Read.next_frame`), each of about FRAME_BYTES_TARGET, so that other peers' requests
get their turn in between.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Final, cast

from ..fragment_stores.protocol import Snapshot
from ..wire.errors import InvalidRequestError, ProtocolError, StoreError
from ..wire.image import select_kinds, version_of
from ..wire.limits import FRAME_BYTES_TARGET, SECTION_AGENTS_MAX, SECTIONS_MAX
from ..wire.messages import UNCHANGED, Fetch, FetchSection, Images, ImageSection, Item, SectionStatus, encode
from .shards import OwnedShard

__all__ = ["Read", "require_served"]

_TURN_AGENTS_MAX: Final = 2_048
"""Agents looked up for one frame: 0.2 to 0.45 us each, so less than 1 ms of the loop."""


class Read:
    """One Fetch on its way through its sections."""

    __slots__ = ("_fetch", "_kinds", "_offset", "_section", "_shards", "agents_read")

    def __init__(self, fetch: Fetch, shards: Mapping[tuple[str, int], OwnedShard]) -> None:
        """Begin to answer a fetch.

        Raises:
            InvalidRequestError: it asks for more than one message may.
        """
        if len(fetch.sections) > SECTIONS_MAX or any(len(s.agents) > SECTION_AGENTS_MAX for s in fetch.sections):
            raise InvalidRequestError(
                f"a fetch has at most {SECTIONS_MAX} sections of {SECTION_AGENTS_MAX} agents; cut it into several"
            )
        self._fetch = fetch
        self._shards = shards
        self._kinds = None if fetch.kinds is None else frozenset(fetch.kinds)
        self._section = 0
        self._offset = 0
        self.agents_read = 0

    def next_frame(self, now_ms: int) -> tuple[bytes, bool]:
        """Return the next Images frame and whether it was the last.

        Raises:
            InvalidRequestError: an agent id is outside the limits.
        """
        sections: list[ImageSection] = []
        snapshots: list[Snapshot] = []
        room_bytes, room_agents = FRAME_BYTES_TARGET, _TURN_AGENTS_MAX
        requested = self._fetch.sections
        try:
            while self._section < len(requested) and room_bytes > 0 and room_agents > 0:
                section = requested[self._section]
                items, status, version = self._read_section(section, snapshots, room_agents)
                taken, size = _cut(items, room_bytes, first=not sections)
                if taken == 0 and items:
                    break
                # The views in `items` belong to snapshots that stay open until the frame is encoded.
                shown = cast("list[bytes | bool | None]", items if taken == len(items) else items[:taken])
                sections.append(ImageSection(self._section, self._offset, status, version, shown))
                room_bytes -= size
                room_agents -= taken
                self._offset += taken
                if status != SectionStatus.OK or self._offset >= len(section.agents):
                    self._section += 1
                    self._offset = 0
            last = self._section >= len(requested)
            self.agents_read += _TURN_AGENTS_MAX - room_agents
            return encode(Images(self._fetch.request, now_ms, sections, last)), last
        finally:
            for snapshot in snapshots:
                snapshot.close()

    def _read_section(
        self, section: FetchSection, snapshots: list[Snapshot], agents_max: int
    ) -> tuple[list[Item], SectionStatus, int]:
        shard = self._shards.get((section.store, section.shard))
        status = require_served(shard, section.epoch)
        if shard is None or shard.fragments is None or status != SectionStatus.OK:
            return [], status, 0
        start, end = self._offset, self._offset + agents_max
        agents = section.agents if len(section.agents) <= agents_max and not start else section.agents[start:end]
        try:
            snapshot = shard.fragments.snapshot()
            snapshots.append(snapshot)
            items: list[Item] = list(snapshot.images(agents))
        except StoreError as error:
            return [], shard.note(error), 0
        if section.known is not None:
            items = [_unless_known(item, known) for item, known in zip(items, section.known[start:end], strict=False)]
        if self._kinds is not None and not shard.kinds <= self._kinds:
            items = [_select(item, self._kinds) for item in items]
        return items, SectionStatus.OK, snapshot.version


def require_served(shard: OwnedShard | None, epoch: int) -> SectionStatus:
    """Return OK where a shard is this node's, under this epoch, and sound."""
    if shard is None or shard.epoch != epoch:
        return SectionStatus.MOVED
    return SectionStatus.OK if shard.fragments is not None else SectionStatus.DAMAGED


def _cut(items: list[Item], room_bytes: int, *, first: bool) -> tuple[int, int]:
    """Return how many of the items fit into the room, and their bytes; the first item of a frame always fits."""
    size = sum([len(item) for item in items if isinstance(item, memoryview)])
    if size <= room_bytes:
        return len(items), size
    ends = list(accumulate(len(item) if isinstance(item, memoryview) else 1 for item in items))
    taken = bisect_right(ends, room_bytes)
    if taken == 0 and first:
        taken = 1
    return taken, ends[taken - 1] if taken else 0


def _unless_known(item: Item, known: int) -> Item:
    if known and isinstance(item, memoryview) and version_of(item) == known:
        return UNCHANGED
    return item


def _select(item: Item, kinds: frozenset[str]) -> Item:
    if not isinstance(item, memoryview):
        return item
    try:
        return memoryview(select_kinds(item, kinds))
    except ProtocolError:
        # Served as it is: whoever decodes it finds the damage and shows it for this one agent.
        return item

"""The read path: images from the memory map into the reply.

Runs in the node's event loop. No image is decoded, but where a fetch asks for some of a store's kinds only. Images are
copied into the frame from where they lie in the map; that is valid while their snapshot is open, so the frame is made
before it ends. A fetch is answered a frame at a time (`Read.next_frame`), each of about FRAME_BYTES_TARGET, so that
other peers' requests get their turn in between.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Final

from ..fragment_stores.engine import Snapshot
from ..fragment_stores.image_batch import FoundImages, join_images
from ..wire.errors import InvalidRequestError, ProtocolError, StoreError
from ..wire.protocol.image import select_kinds, version_of
from ..wire.protocol.limits import FRAME_BYTES_TARGET, REQUEST_AGENTS_MAX, SECTIONS_MAX
from ..wire.protocol.messages import UNCHANGED, Fetch, FetchSection, ImageSection, SectionStatus, encode_images_head
from .shard_table import OwnedShard

__all__ = ["TURN_AGENTS_MAX", "Read", "require_served"]

TURN_AGENTS_MAX: Final = 2_048
"""Agents looked up for one frame: 0.2 to 0.45 us each, so less than 1 ms of the loop."""

_NOTHING: Final = b""


class Read:
    """One Fetch on its way through its sections."""

    __slots__ = ("_fetch", "_kinds", "_offset", "_section", "_shards", "agents_read")

    def __init__(self, fetch: Fetch, shards: Mapping[tuple[str, int], OwnedShard]) -> None:
        """Begin to answer a fetch.

        Raises:
            InvalidRequestError: it asks for more than one message may, or does not say of each agent what is known.
        """
        sections = fetch.sections
        if len(sections) > SECTIONS_MAX or sum([len(section.agents) for section in sections]) > REQUEST_AGENTS_MAX:
            raise InvalidRequestError(
                f"a fetch has at most {SECTIONS_MAX} sections and {REQUEST_AGENTS_MAX} agents; cut it into several"
            )
        for section in sections:
            if section.known is not None and len(section.known) != len(section.agents):
                raise InvalidRequestError(
                    f"a section has {len(section.agents)} agents and {len(section.known)} known versions"
                )
        self._fetch = fetch
        self._shards = shards
        self._kinds = None if fetch.kinds is None else frozenset(fetch.kinds)
        self._section = 0
        self._offset = 0
        self.agents_read = 0

    @property
    def request(self) -> int:
        """The fetch's request number."""
        return self._fetch.request

    def next_frame(self, monotonic_ms: int) -> tuple[bytes, bool]:
        """Return the next Images frame and whether it was the last.

        It says one time, so sections of shards with another clock (those of a node mostly have the same) wait for
        the next frame.

        Raises:
            InvalidRequestError: an agent id is outside the limits.
        """
        sections: list[ImageSection] = []
        found: list[FoundImages] = []
        found_bytes = 0
        # One for each shard, however many sections of it a peer sends: an environment has 512 readers' slots.
        snapshots: dict[tuple[str, int], Snapshot] = {}
        room_bytes, room_agents = FRAME_BYTES_TARGET, TURN_AGENTS_MAX
        requested = self._fetch.sections
        offset_ms: int | None = None
        try:
            while self._section < len(requested) and room_bytes > 0 and room_agents > 0:
                section = requested[self._section]
                shard = self._shards.get((section.store, section.shard))
                if shard is not None and shard.fragments is not None and shard.offset_ms != offset_ms:
                    if offset_ms is not None:
                        break
                    offset_ms = shard.offset_ms
                images, status, version = self._read_section(section, snapshots, room_agents)
                taken, taken_bytes = _fitting(images.sizes, room_bytes, first=not sections)
                if taken < len(images.sizes):
                    if not taken:
                        break
                    images.cut(taken)
                # What is in `found` belongs to snapshots that stay open until the frame is made.
                found.append(images)
                found_bytes += taken_bytes
                sections.append(ImageSection(self._section, self._offset, status, version, images.sizes))
                room_bytes -= taken_bytes
                room_agents -= taken
                self._offset += taken
                if status != SectionStatus.OK or self._offset >= len(section.agents):
                    self._section += 1
                    self._offset = 0
            last = self._section >= len(requested)
            self.agents_read += TURN_AGENTS_MAX - room_agents
            now_ms = monotonic_ms + (offset_ms or 0)
            head = encode_images_head(self._fetch.request, now_ms, sections, last, found_bytes)
            return join_images(head, found), last
        finally:
            for snapshot in snapshots.values():
                snapshot.close()

    def _read_section(
        self, section: FetchSection, snapshots: dict[tuple[str, int], Snapshot], agents_max: int
    ) -> tuple[FoundImages, SectionStatus, int]:
        """Return images with their sizes as the reply says them, the section's status and the shard's version."""
        key = section.store, section.shard
        shard = self._shards.get(key)
        status = require_served(shard, section.epoch)
        if shard is None or shard.fragments is None or status != SectionStatus.OK:
            return FoundImages.of([]), status, 0
        start, end = self._offset, self._offset + agents_max
        agents = section.agents if len(section.agents) <= agents_max and not start else section.agents[start:end]
        try:
            snapshot = snapshots.get(key)
            if snapshot is None:
                snapshot = snapshots[key] = shard.fragments.snapshot()
            kinds = None if self._kinds is None or shard.kinds <= self._kinds else self._kinds
            if kinds is None and section.known is None:
                return snapshot.find(agents), SectionStatus.OK, snapshot.version
            images = snapshot.images(agents)
        except StoreError as error:
            return FoundImages.of([]), shard.note(error), 0
        if kinds is not None:
            images = [_select(image, kinds) for image in images]
        found = FoundImages.of(images)
        if section.known is not None:
            for index, known in enumerate(section.known[start : start + len(images)]):
                if known and found.sizes[index] and version_of(images[index]) == known:
                    images[index], found.sizes[index] = _NOTHING, UNCHANGED
        return found, SectionStatus.OK, snapshot.version


def require_served(shard: OwnedShard | None, epoch: int) -> SectionStatus:
    """Return OK where a shard is this node's, under this epoch, and sound."""
    if shard is None or shard.epoch != epoch:
        return SectionStatus.MOVED
    return SectionStatus.OK if shard.fragments is not None else SectionStatus.DAMAGED


def _fitting(sizes: list[int], room_bytes: int, *, first: bool) -> tuple[int, int]:
    """Return how many images of these sizes fit into the room, and their bytes; the first of a frame always does."""
    # UNCHANGED is below zero and takes no bytes; it is rare, and looking for it costs a fifth of looking at each.
    lengths = [max(size, 0) for size in sizes] if UNCHANGED in sizes else sizes
    total = sum(lengths)
    if total <= room_bytes:
        return len(sizes), total
    taken = bisect_right(list(accumulate(lengths)), room_bytes)
    if taken == 0 and first:
        taken = 1
    return taken, sum(lengths[:taken])


def _select(image: bytes | memoryview, kinds: frozenset[str]) -> bytes | memoryview:
    try:
        return select_kinds(image, kinds) if len(image) else image
    except ProtocolError:
        # Served as it is: whoever decodes it finds the damage and shows it for this one agent.
        return image

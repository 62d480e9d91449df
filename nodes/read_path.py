"""The read path: images from where an engine has them into the reply.

Runs in the node's event loop. No image is decoded, but if a fetch asks for some of a store's kinds only. The engine
that found images copies them into the frame from where they are (`fragment_stores.engine.ShardReader.join`); that is
valid while their batch is open, so the frame is made before it is closed. A fetch is answered a frame at a time
(`Read.next_frame`), each of about FRAME_BYTES_TARGET, so that other peers' requests get their turn in between.

A frame says one time and is joined by one engine: a section of a shard with another begins the next frame.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Final

from ..fragment_stores.image_batch import ImageBatch
from ..wire.errors import InvalidRequestError, StoreError
from ..wire.protocol.limits import FRAME_BYTES_TARGET, REQUEST_AGENTS_MAX, SECTIONS_MAX
from ..wire.protocol.messages import (
    UNCHANGED,
    Fetch,
    FetchSection,
    ImageSection,
    SectionStatus,
    encode_fetch_reply_head,
)
from .shard_table import OwnedShard

__all__ = ["TURN_AGENTS_MAX", "Read", "require_served"]

TURN_AGENTS_MAX: Final = 2_048
"""Agents looked up for one frame: 0.2 to 0.45 us each, so less than 1 ms of the loop."""

_BATCHES_MAX: Final = 256
"""Reads of one frame: each takes one of a shard's 512 places for readers, and a peer may send many sections of one."""

_NO_SIZES: Final[list[int]] = []


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
        """Return the next FetchReply frame and whether it was the last.

        Raises:
            InvalidRequestError: an agent id is outside the limits.
        """
        sections: list[ImageSection] = []
        batches: list[ImageBatch] = []
        first: OwnedShard | None = None
        images_bytes = 0
        room_bytes, room_agents = FRAME_BYTES_TARGET, TURN_AGENTS_MAX
        requested = self._fetch.sections
        try:
            while self._section < len(requested) and room_bytes > 0 and room_agents > 0:
                section = requested[self._section]
                shard = self._shards.get((section.store, section.shard))
                status, sizes, version = require_served(shard, section.epoch), _NO_SIZES, 0
                if shard is not None and status == SectionStatus.OK:
                    if first is not None and (
                        len(batches) == _BATCHES_MAX
                        or shard.offset_ms != first.offset_ms
                        or shard.engine != first.engine
                    ):
                        break
                    batch, status = self._read_section(section, shard, room_agents)
                    if batch is not None:
                        first = first or shard
                        batches.append(batch)
                        sizes, version = batch.sizes, batch.version
                taken, taken_bytes = _fitting(sizes, room_bytes, first=not sections)
                if taken < len(sizes):
                    batches[-1].cut(taken)
                    if not taken:
                        break
                images_bytes += taken_bytes
                sections.append(ImageSection(self._section, self._offset, status, version, sizes))
                room_bytes -= taken_bytes
                room_agents -= taken
                self._offset += taken
                if status != SectionStatus.OK or self._offset >= len(section.agents):
                    self._section += 1
                    self._offset = 0
            last = self._section >= len(requested)
            self.agents_read += TURN_AGENTS_MAX - room_agents
            now_ms = monotonic_ms + (0 if first is None else first.offset_ms)
            head = encode_fetch_reply_head(self._fetch.request, now_ms, sections, last, images_bytes)
            if first is None or first.fragments is None:
                return head, last
            return first.fragments.join(head, batches), last
        finally:
            for batch in batches:
                batch.close()

    def _read_section(
        self, section: FetchSection, shard: OwnedShard, agents_max: int
    ) -> tuple[ImageBatch | None, SectionStatus]:
        """Return the images of at most so many agents, from where the section has come to, and the section's status."""
        assert shard.fragments is not None, "require_served let it pass"
        start, end = self._offset, self._offset + agents_max
        agents, known = section.agents, section.known
        if start or len(agents) > agents_max:
            agents = agents[start:end]
            known = None if known is None else known[start:end]
        kinds = None if self._kinds is None or shard.kinds <= self._kinds else self._kinds
        try:
            return shard.fragments.read(agents, kinds, known), SectionStatus.OK
        except StoreError as error:
            return None, shard.note(error)


def require_served(shard: OwnedShard | None, epoch: int) -> SectionStatus:
    """Return OK where a shard is this node's, under this epoch, and sound."""
    if shard is None or shard.epoch != epoch:
        return SectionStatus.MOVED
    return SectionStatus.OK if shard.fragments is not None else SectionStatus.CORRUPT


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

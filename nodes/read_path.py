"""The read path: images from where an engine has them into the reply.

Runs in the node's event loop. No image is decoded, but if a fetch asks for some of a store's kinds only. The engine
that found images copies them into the frame from where they are (`fragment_stores.engine.ShardReader.join`); that is
valid while their batch is open, so the frame is made before it is closed. A fetch is answered a frame at a time
(`Read.next_frame`), each of about FRAME_BYTES_TARGET, so that other peers' requests get their turn in between.

A frame has one time and is joined by one engine: sections of shards with another come in other frames. A section whose
read is pending is sent once it is ready, and delays no other section; a section's own frames are in order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from itertools import accumulate
from typing import Final

from ..fragment_stores.image_batch import ImageBatch, PendingBatch
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

_PENDING_MAX: Final = 32
"""Reads of one fetch that may be pending: one peer's requests must not fill the queue for all peers' reads."""

_NO_SIZES: Final[list[int]] = []


class _Frame:
    """One FetchReply frame as it fills."""

    __slots__ = ("batches", "bytes", "first", "full", "room_agents", "room_bytes", "sections")

    def __init__(self) -> None:
        self.sections: list[ImageSection] = []
        self.batches: list[ImageBatch] = []
        self.first: OwnedShard | None = None
        """The shard of the first batch: whose time the frame has, and whose engine joins it."""
        self.bytes = 0
        self.room_bytes = FRAME_BYTES_TARGET
        self.room_agents = TURN_AGENTS_MAX
        self.full = False

    def takes(self, shard: OwnedShard) -> bool:
        """Return whether images of this shard can be in the frame."""
        first = self.first
        return first is None or (
            len(self.batches) < _BATCHES_MAX and shard.offset_ms == first.offset_ms and shard.engine == first.engine
        )

    def add(self, progress: _Progress, shard: OwnedShard, batch: ImageBatch) -> int:
        """Add the images of a batch that fit, and return how many; keep the usable rest in `progress`."""
        self.first = self.first or shard
        self.batches.append(batch)
        sizes = batch.sizes
        taken, taken_bytes = _fitting(sizes, self.room_bytes, first=not self.sections)
        if taken < len(sizes):
            progress.rest = batch.rest_after(taken)
            batch.cut(taken)
            self.full = True
            if not taken:
                return 0
        self.bytes += taken_bytes
        self.room_bytes -= taken_bytes
        self.room_agents -= taken
        self.full = self.full or self.room_bytes <= 0 or self.room_agents <= 0
        self.sections.append(ImageSection(progress.index, progress.offset, SectionStatus.OK, batch.version, sizes))
        return taken

    def join(self, request: int, monotonic_ms: int, *, last: bool) -> bytes:
        """Return the encoded frame."""
        first = self.first
        now_ms = monotonic_ms + (0 if first is None else first.offset_ms)
        head = encode_fetch_reply_head(request, now_ms, self.sections, last, self.bytes)
        return head if first is None or first.fragments is None else first.fragments.join(head, self.batches)


class _Progress:
    """How far one section has come."""

    __slots__ = ("index", "offset", "pending", "rest")

    def __init__(self, index: int) -> None:
        self.index = index
        self.offset = 0
        self.pending: PendingBatch | None = None
        self.rest: ImageBatch | None = None


class Read:
    """One Fetch on its way through its sections."""

    __slots__ = ("_fetch", "_kinds", "_open", "_shards", "agents_read")

    def __init__(self, fetch: Fetch, shards: Mapping[tuple[str, int], OwnedShard]) -> None:
        """Begin to answer a fetch.

        Raises:
            InvalidRequestError: it asks for more than one message may, or its known versions do not match its agents.
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
        self._open = [_Progress(index) for index in range(len(sections))]
        """The sections that are not answered yet."""
        self.agents_read = 0

    @property
    def request(self) -> int:
        """The fetch's request number."""
        return self._fetch.request

    def next_frame(self, monotonic_ms: int) -> tuple[bytes, bool] | None:
        """Return the next FetchReply frame and whether it was the last; None while all that is left is pending.

        Raises:
            InvalidRequestError: an agent id is outside the limits.
        """
        frame = _Frame()
        still_open: list[_Progress] = []
        pending = 0
        try:
            for number, progress in enumerate(self._open):
                if frame.full or pending == _PENDING_MAX:
                    still_open += self._open[number:]
                    break
                if not self._read_on(progress, frame):
                    still_open.append(progress)
                    pending += progress.pending is not None
            self._open = still_open
            if still_open and not frame.sections:
                return None
            self.agents_read += TURN_AGENTS_MAX - frame.room_agents
            return frame.join(self._fetch.request, monotonic_ms, last=not still_open), not still_open
        finally:
            for batch in frame.batches:
                batch.close()

    def when_ready(self, notify: Callable[[object], object]) -> None:
        """Call `notify`, in any thread, when one of the reads is done that are pending now; maybe more than once."""
        for progress in self._open:
            if progress.pending is not None:
                progress.pending.add_done_callback(notify)

    def _read_on(self, progress: _Progress, frame: _Frame) -> bool:
        """Add the available images of a section to the frame; return whether it is answered."""
        section = self._fetch.sections[progress.index]
        shard = self._shards.get((section.store, section.shard))
        status = require_served(shard, section.epoch)
        if shard is None or status != SectionStatus.OK:
            return _fail(progress, frame, status)
        if not frame.takes(shard):
            return False
        try:
            batch = self._batch(progress, section, shard, frame.room_agents)
        except StoreError as error:
            return _fail(progress, frame, shard.note(error))
        if batch is None:
            return False
        progress.offset += frame.add(progress, shard, batch)
        return progress.offset >= len(section.agents)

    def _batch(
        self, progress: _Progress, section: FetchSection, shard: OwnedShard, agents_max: int
    ) -> ImageBatch | None:
        """Return the images of at most so many agents, from where the section has come to; None if they are pending."""
        assert shard.fragments is not None, "require_served let it pass"
        batch, progress.rest = progress.rest, None
        if batch is not None:
            return batch
        pending = progress.pending
        if pending is not None:
            if not pending.done():
                return None
            progress.pending = None
            batch = pending.result()
            if batch is not None:
                return batch
        start, end = progress.offset, progress.offset + agents_max
        agents, known = section.agents, section.known
        if start or len(agents) > agents_max:
            agents = agents[start:end]
            known = None if known is None else known[start:end]
        kinds = None if self._kinds is None or shard.kinds <= self._kinds else self._kinds
        read = shard.fragments.read(agents, kinds, known)
        if isinstance(read, Future):
            progress.pending = read
            return None
        return read


def _fail(progress: _Progress, frame: _Frame, status: SectionStatus) -> bool:
    """Answer the rest of a section with a status."""
    progress.pending = progress.rest = None
    frame.sections.append(ImageSection(progress.index, progress.offset, status, 0, _NO_SIZES))
    return True


def require_served(shard: OwnedShard | None, epoch: int) -> SectionStatus:
    """Return OK if a shard is this node's, under this epoch, and intact."""
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

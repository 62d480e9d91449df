"""The node's one writer: group commit in a thread of its own, with helpers that wait for the disk.

An LMDB write transaction belongs to its thread, and its sync would stop the loop. The thread takes all commits that
were queued while it was busy, puts the writes of each shard into one transaction, and delivers the replies to the loop
when every shard is synced.

Several shards are committed by helper threads, so that their syncs overlap: a commit syncs twice, one after the other,
and a disk takes many syncs at once. (Eight commits of one write each: 6.9 ms in one thread, 1.7 ms in four.)
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from ..fragment_stores.engine import Shard
from ..wire.errors import StoreError
from ..wire.protocol.messages import (
    Commit,
    CommitReply,
    CommitReplySection,
    DeleteAgent,
    Put,
    Rejection,
    SectionStatus,
    Write,
)
from ..wire.transport.loop_calls import LoopCalls
from .maintenance import Housekeeper
from .node_clock import Clock
from .read_path import require_served
from .shard_table import OwnedShard
from .worker_threads import Helpers

__all__ = ["QUEUE_BYTES_MAX", "CommitJob", "Writer"]

QUEUE_BYTES_MAX: Final = 64 << 20
"""Bytes of commits that may wait for the disk, over all peers; beyond it commits are rejected as OVERLOADED."""

_OBJECT_BYTES: Final = 100
"""Memory of a write or an operation once it is decoded: the smallest write takes 200 bytes for its 11 on the wire."""

_GROUP_BYTES_MAX: Final = 16 << 20
"""Bytes of one group: at 100 MB/s of sync a sixth of a second, the longest that a small save may wait behind it."""

_HELPERS: Final = 4
"""Syncs of one node under way at once. (1,000 savers on two nodes of eight shards, on a busy disk, alternated: 16,400
saves/s with one, 20,100 with two, 26,600 with four, 29,400 with eight.)"""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class CommitJob:
    """One Commit of `frame_bytes` on its way through the writer; `deadline` is on the monotonic clock, in seconds."""

    peer: bytes
    commit: Commit
    deadline: float
    frame_bytes: int
    results: list[CommitReplySection] = field(default_factory=list[CommitReplySection])
    size: int = field(init=False)
    """Bytes of memory that the job takes while it waits."""

    def __post_init__(self) -> None:
        objects = sum([1 + len(write.operations) for section in self.commit.sections for write in section.writes])
        self.size = self.frame_bytes + _OBJECT_BYTES * objects

    def answer(self) -> CommitReply:
        """Return the reply, sections in the order of the request."""
        self.results.sort(key=lambda section: section.index)
        return CommitReply(self.commit.request, self.results)


@dataclass(slots=True)
class _ShardGroup:
    shard: OwnedShard
    writes: list[Write]
    parts: list[tuple[CommitJob, int, int]]  # the job, the index of its section, how many writes are its
    status: SectionStatus = SectionStatus.OK
    detail: str = ""
    results: list[int | Rejection] = field(default_factory=list[int | Rejection])
    removed: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    """The kinds that existed before each write that deletes, by its index."""

    def commit(self, now_ms: int) -> None:
        """Commit the group, and keep its results; in any thread."""
        fragments = self.shard.fragments
        assert fragments is not None, "require_served let it pass"
        try:
            # All of them together: 0.2 us a write of five kinds instead of 0.5, too little for a turn of its own.
            if _named_kinds(self.writes) <= self.shard.kinds:
                self.results = fragments.commit(self.writes, now_ms, self.shard.epoch)
                self._look_up_removed(fragments)
                return
            rejections = [_reject_unknown_kinds(write, self.shard) for write in self.writes]
            sound = [write for write, rejection in zip(self.writes, rejections, strict=True) if rejection is None]
            applied = iter(fragments.commit(sound, now_ms, self.shard.epoch))
            self.results = [next(applied) if rejection is None else rejection for rejection in rejections]
            self._look_up_removed(fragments)
        except StoreError as error:
            self.status, self.detail = self.shard.note(error), str(error)

    def _look_up_removed(self, fragments: Shard) -> None:
        """Find in the log what the writes that delete have deleted, these or the first of that name: 5 us each.

        A client has its puts first, so a write that ends with one deletes nothing.
        """
        deleting = [
            index
            for index, write in enumerate(self.writes)
            if (operations := write.operations) and not isinstance(operations[-1], Put)
        ]
        applied = {index: version for index in deleting if isinstance(version := self.results[index], int) and version}
        if not applied:
            return
        with suppress(StoreError):  # a row that cannot be read says nothing
            for index, version in applied.items():
                for _, row in fragments.log_after(version - 1, 1):
                    if row.removed is not None:
                        self.removed[index] = row.removed

    def hand_out(self) -> None:
        """Give each job its part of the results."""
        if self.status == SectionStatus.OK:
            self.shard.last_error = ""
        fragments = self.shard.fragments
        version = 0 if fragments is None else fragments.version
        start = 0
        for job, index, count in self.parts:
            part = self.results[start : start + count]
            removed = None
            if self.removed:
                end = start + count
                removed = {number - start: kinds for number, kinds in self.removed.items() if start <= number < end}
            start += count
            job.results.append(CommitReplySection(index, self.status, version, part, self.detail, removed))


class Writer:
    """The writer: it commits jobs in order of arrival; `deliver` gets finished ones in the loop's thread."""

    def __init__(
        self,
        calls: LoopCalls,
        shards: Mapping[tuple[str, int], OwnedShard],
        clock: Clock,
        deliver: Callable[[list[CommitJob]], None],
        housekeeper: Housekeeper,
        *,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
        group_bytes_max: int = _GROUP_BYTES_MAX,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Commit to these shards; `monotonic` gives the seconds by which deadlines are judged."""
        self._calls = calls
        self._queue_bytes_max = queue_bytes_max
        self._group_bytes_max = group_bytes_max
        self._monotonic = monotonic
        self._shards = shards
        self._clock = clock
        self._deliver = deliver
        self._housekeeper = housekeeper
        self._jobs: queue.SimpleQueue[CommitJob | None] = queue.SimpleQueue()
        self._queued_bytes = 0  # changed in the loop's thread only
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._helpers = Helpers(_HELPERS, "writer-helper")

    def start(self) -> None:
        """Begin to commit."""
        self._thread.start()

    def submit(self, job: CommitJob) -> bool:
        """Queue a job; return False, and queue nothing, if too much waits already."""
        if self._queued_bytes + job.size > self._queue_bytes_max:
            return False
        self._queued_bytes += job.size
        self._jobs.put(job)
        return True

    def stop(self, timeout_s: float) -> None:
        """Commit all queued jobs and end the thread; stop waiting after `timeout_s`."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            group, ended = self._gather()
            if group:
                try:
                    self._commit(group)
                except Exception:
                    _log.exception("commit fails")
                    for job in group:
                        job.results = [
                            CommitReplySection(index, SectionStatus.INTERNAL, 0, [], "see the node's log")
                            for index in range(len(job.commit.sections))
                        ]
                self._calls.call(partial(self._finish, group))
            if ended:
                self._helpers.stop()
                self._housekeeper.finish()
                return
            self._housekeeper.work_if_due()

    def _gather(self) -> tuple[list[CommitJob], bool]:
        """Wait for a job; return it with all others that wait, and whether the end was among them.

        Return without one when housekeeping is due.
        """
        group: list[CommitJob] = []
        size = 0
        try:
            job = self._jobs.get(timeout=self._housekeeper.due_in_s())
        except queue.Empty:
            return group, False
        while job is not None:
            group.append(job)
            size += job.size
            if size >= self._group_bytes_max:
                return group, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: list[CommitJob]) -> None:
        now = self._monotonic()
        by_shard: dict[tuple[str, int], _ShardGroup] = {}
        for job in group:
            late = now > job.deadline
            for index, section in enumerate(job.commit.sections):
                shard = self._shards.get((section.store, section.shard))
                status = SectionStatus.TOO_LATE if late else require_served(shard, section.epoch)
                if shard is None or status != SectionStatus.OK:
                    detail = shard.damage if shard is not None else ""
                    job.results.append(CommitReplySection(index, status, 0, [], detail))
                    continue
                gathered = by_shard.get((section.store, section.shard))
                if gathered is None:
                    gathered = by_shard[section.store, section.shard] = _ShardGroup(shard, [], [])
                gathered.writes += section.writes
                gathered.parts.append((job, index, len(section.writes)))
        groups = list(by_shard.values())
        monotonic_ms = self._clock.look()
        if len(groups) > 1:
            self._helpers.run([partial(each.commit, each.shard.now_ms(monotonic_ms)) for each in groups])
        elif groups:
            groups[0].commit(groups[0].shard.now_ms(monotonic_ms))
        for shard_group in groups:
            shard_group.hand_out()

    def _finish(self, group: list[CommitJob]) -> None:
        self._queued_bytes -= sum(job.size for job in group)
        self._deliver(group)


def _named_kinds(writes: list[Write]) -> set[str]:
    """Return every kind that one of the writes names."""
    kinds = {
        operation.kind for write in writes for operation in write.operations if not isinstance(operation, DeleteAgent)
    }
    for write in writes:
        if write.expect:
            kinds.update(write.expect)
    return kinds


def _reject_unknown_kinds(write: Write, shard: OwnedShard) -> Rejection | None:
    for operation in write.operations:
        if not isinstance(operation, DeleteAgent) and operation.kind not in shard.kinds:
            return Rejection(f"store {shard.store!r} keeps no kind {operation.kind!r}")
    for kind in write.expect or ():
        if kind not in shard.kinds:
            return Rejection(f"store {shard.store!r} keeps no kind {kind!r}, of which a version is expected")
    return None

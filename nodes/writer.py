"""The node's one writer: group commit in a thread of its own.

An LMDB write transaction belongs to its thread, and its sync would stop the loop. The thread takes all commits that
have gathered while it was busy, puts the writes of each shard into one transaction, and hands the answers back to the
loop when every shard is synced. (Four threads gave 26 % more saves/s and 2.75 times the p99 of reads: one.)
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ..wire.errors import StoreError
from ..wire.messages import Commit, Committed, CommittedSection, Erase, Refusal, SectionStatus, Write
from .reads import require_served
from .shards import OwnedShard

__all__ = ["QUEUE_BYTES_MAX", "CommitJob", "Writer"]

QUEUE_BYTES_MAX: Final = 64 << 20
"""Bytes of commits that may wait for the disk, over all peers; beyond it commits are refused as OVERLOADED."""

_OBJECT_BYTES: Final = 100
"""What a write or an operation costs once it is decoded: the smallest write takes 200 bytes for its 11 on the wire."""

_GROUP_BYTES_MAX: Final = 16 << 20
"""Bytes of one group: at 100 MB/s of sync a sixth of a second, which is what a small save may wait behind it."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class CommitJob:
    """One Commit of `frame_bytes` on its way through the writer; `deadline` is on the monotonic clock, in seconds."""

    peer: bytes
    commit: Commit
    deadline: float
    frame_bytes: int
    results: list[CommittedSection] = field(default_factory=list[CommittedSection])
    size: int = field(init=False)
    """Bytes of memory that it takes while it waits."""

    def __post_init__(self) -> None:
        objects = sum([1 + len(write.operations) for section in self.commit.sections for write in section.writes])
        self.size = self.frame_bytes + _OBJECT_BYTES * objects

    def answer(self) -> Committed:
        """Return the reply, sections in the order of the request."""
        self.results.sort(key=lambda section: section.index)
        return Committed(self.commit.request, self.results)


@dataclass(slots=True)
class _ShardGroup:
    shard: OwnedShard
    writes: list[Write]
    parts: list[tuple[CommitJob, int, int]]  # the job, the index of its section, how many writes are its


class Writer:
    """Commits jobs in order of arrival; `deliver` gets finished ones in the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        shards: Mapping[tuple[str, int], OwnedShard],
        deliver: Callable[[list[CommitJob]], None],
    ) -> None:
        self._loop = loop
        self._shards = shards
        self._deliver = deliver
        self._jobs: queue.SimpleQueue[CommitJob | None] = queue.SimpleQueue()
        self._queued_bytes = 0  # changed in the loop's thread only
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        """Begin to commit."""
        self._thread.start()

    def submit(self, job: CommitJob) -> bool:
        """Queue a job; return False where too much waits already, and nothing is queued."""
        if self._queued_bytes + job.size > QUEUE_BYTES_MAX:
            return False
        self._queued_bytes += job.size
        self._jobs.put(job)
        return True

    def stop(self, timeout_s: float) -> None:
        """Commit what is queued and end the thread; gives up waiting after `timeout_s`."""
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
                            CommittedSection(index, SectionStatus.INTERNAL, 0, [], "see the node's log")
                            for index in range(len(job.commit.sections))
                        ]
                self._loop.call_soon_threadsafe(self._finish, group)
            if ended:
                return

    def _gather(self) -> tuple[list[CommitJob], bool]:
        """Wait for a job; return it with all others that wait, and whether the end was among them."""
        group: list[CommitJob] = []
        size = 0
        job = self._jobs.get()
        while job is not None:
            group.append(job)
            size += job.size
            if size >= _GROUP_BYTES_MAX:
                return group, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: list[CommitJob]) -> None:
        now = time.monotonic()
        by_shard: dict[tuple[str, int], _ShardGroup] = {}
        for job in group:
            late = now > job.deadline
            for index, section in enumerate(job.commit.sections):
                shard = self._shards.get((section.store, section.shard))
                status = SectionStatus.TOO_LATE if late else require_served(shard, section.epoch)
                if shard is None or status != SectionStatus.OK:
                    detail = shard.damage if shard is not None else ""
                    job.results.append(CommittedSection(index, status, 0, [], detail))
                    continue
                gathered = by_shard.get((section.store, section.shard))
                if gathered is None:
                    gathered = by_shard[section.store, section.shard] = _ShardGroup(shard, [], [])
                gathered.writes += section.writes
                gathered.parts.append((job, index, len(section.writes)))
        for gathered in by_shard.values():
            _commit_shard(gathered)

    def _finish(self, group: list[CommitJob]) -> None:
        self._queued_bytes -= sum(job.size for job in group)
        self._deliver(group)


def _commit_shard(group: _ShardGroup) -> None:
    shard = group.shard
    status, detail, results = SectionStatus.OK, "", list[int | Refusal]()
    fragments = shard.fragments
    assert fragments is not None, "require_served let it pass"
    refusals = [_refuse_unknown_kinds(write, shard) for write in group.writes]
    try:
        applied = iter(
            fragments.commit(
                [write for write, refusal in zip(group.writes, refusals, strict=True) if refusal is None],
                time.time_ns() // 1_000_000,
            )
        )
        results = [next(applied) if refusal is None else refusal for refusal in refusals]
    except StoreError as error:
        status, detail = shard.note(error), str(error)
    start = 0
    for job, index, count in group.parts:
        part = results[start : start + count]
        start += count
        job.results.append(CommittedSection(index, status, fragments.version, part, detail))


def _refuse_unknown_kinds(write: Write, shard: OwnedShard) -> Refusal | None:
    for operation in write.operations:
        if not isinstance(operation, Erase) and operation.kind not in shard.kinds:
            return Refusal(f"store {shard.store!r} keeps no kind {operation.kind!r}")
    return None

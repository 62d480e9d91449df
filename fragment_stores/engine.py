"""The roles of an engine: what a node asks of the shards that it keeps.

An `Engine` opens shards. Every shard is a ShardReader, a ShardWriter and a ShardLog; a feature that not every engine
has is a capability, a role of its own that a node asks for (`isinstance(shard, ShardCopy)`). Any thread may read; one
thread at a time commits. A commit is durable when it returns, and seen by every read that begins afterwards.

`fragment_stores.registry` finds the engine that a topology names. `tests/fragment_stores/conformance.py` holds every
rule as a test that any engine is run through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from ..wire.protocol.messages import Rejection, Write
from .image_batch import ImageBatch, PendingBatch

__all__ = [
    "CopiedShard",
    "Engine",
    "LogRow",
    "Shard",
    "ShardCopy",
    "ShardIdentity",
    "ShardLog",
    "ShardReader",
    "ShardSync",
    "ShardWarmUp",
    "ShardWriter",
    "StoreStatistics",
]

FORMAT = 1
"""Number of the on-disk layout; a store of another number is rejected."""


class ShardIdentity(msgspec.Struct, array_like=True, frozen=True):
    """Whose shard this is, kept with the data, so that data in the wrong place is rejected instead of served."""

    format: int
    cluster_uuid: str
    store: str
    shard: int
    shards: int
    epoch: int


class LogRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One committed write as the shard's log keeps it, under its version.

    `operations`: (operation number as in `wire.protocol.messages`, kind; "" for all kinds). `digest` says what the
    write was for (`wire.protocol.write_digest`), 0 if that is not known. `removed`: of a write that deletes, the
    kinds that were there.
    """

    agent: bytes
    write_id: bytes
    operations: list[tuple[int, str]]
    digest: int = 0
    removed: list[str] | None = None


class StoreStatistics(NamedTuple):
    """Sizes of one shard."""

    agents: int
    log_rows: int
    disk_bytes: int


class CopiedShard(NamedTuple):
    """The content of a copy: its newest version, as its own clock says, and its agents."""

    version: int
    agents: int


class ShardReader(Protocol):
    """Reads, from any thread."""

    def read(
        self, agents: Sequence[bytes], kinds: frozenset[str] | None = None, known: Sequence[int] | None = None
    ) -> ImageBatch | PendingBatch:
        """Return the present image of each agent, empty if there is none; close the batch.

        The reader does not wait: a read that needs a disk or a network is pending, and continues by itself. "Present"
        is a moment between the call and the time when it is done.

        `kinds`: only these, None for all. `known`: for each agent the version that the caller has, 0 for none; an image
        that still has it is UNCHANGED and nothing else. An image that cannot be decoded is given complete.

        Raises:
            InvalidRequestError: an id is empty. One that is too long has no image.
            StoreCorrupt, StoreError: the data cannot be trusted, or not be read now.
        """
        ...

    def join(self, head: bytes, batches: Sequence[ImageBatch]) -> bytes:
        """Return `head` and, one after another, the images of these batches, which readers of this engine gave.

        Each image is copied once. The batches are open.
        """
        ...

    def agents_after(self, position: bytes, agents_max: int, prefix: bytes = b"") -> list[bytes] | Future[list[bytes]]:
        """Return ids in byte order, those greater than `position`, at most `agents_max`; at once, or pending.

        Up to the first one that does not begin with `prefix`.

        Raises:
            InvalidRequestError: the position is too long for an id.
            StoreCorrupt, StoreError: the data cannot be trusted, or not be read now.
        """
        ...


class ShardWriter(Protocol):
    """Commits, from one thread at a time."""

    @property
    def version(self) -> int:
        """The newest committed version."""
        ...

    @property
    def clock_ms(self) -> int:
        """The time of the newest commit, UTC: the shard's own clock, which never goes back."""
        ...

    @property
    def next_expiry_ms(self) -> int:
        """No fragment expires before this time, by the shard's clock; 0 if none ever does.

        It may be too early, until the next `sweep`, and is never too late.
        """
        ...

    def begin_generation(self, generation: int, origin: int = 0) -> None:
        """Take versions of this generation from now on; it must be newer than every version in the store.

        They follow one another from `origin` on (`wire.protocol.versions`).

        Raises:
            StoreCorrupt: it is not: the control store is older than the data.
        """
        ...

    def commit(self, writes: Sequence[Write], now_ms: int, epoch: int) -> list[int | Rejection]:
        """Apply writes in order in one transaction, durable on return.

        Each result is the write's version, 0 if there was nothing to delete, or a Rejection: a write that cannot be
        applied fails alone. One whose id the log still has was applied before: it is answered with its first result,
        and applied no second time; or rejected, if it had other content then. `now_ms` is the wall clock, UTC;
        the shard's own clock never goes back. `epoch` is that under which the writes were accepted.

        Several shards may be committed at once, in a thread each: an engine that keeps the interpreter busy ensures
        that they do not keep readers from it.

        Raises:
            EpochMismatch: the shard has another epoch; nothing of it was applied.
            StoreFull, StoreError: nothing of it was applied.
        """
        ...

    def sweep(self, before_ms: int, rows_max: int, now_ms: int) -> tuple[int, int]:
        """Remove fragments that expired by `before_ms`, in one logged commit; look at `rows_max` expiry rows at most.

        Returns how many rows were looked at, and how many fragments removed. A commit takes away the row of a fragment
        that it ends; one that an older version has left is removed without touching the image.

        Raises:
            StoreFull, StoreError: nothing of it was done.
        """
        ...

    def postpone_expiry(self, since_ms: int, by_ms: int, now_ms: int) -> int:
        """Let fragments written at `since_ms` (by the shard's clock) or later expire `by_ms` later; return how many.

        Their versions stay: this is no save. `now_ms` is the shard's clock from then on.

        Raises:
            StoreFull, StoreError: nothing of it was done.
        """
        ...


class ShardLog(Protocol):
    """The log of committed writes, from any thread; the engine trims it to a length, as far as no pin holds it."""

    def log_after(self, version: int, rows_max: int) -> list[tuple[int, LogRow]]:
        """Return what changed after `version`: committed writes in order, without gaps, at most `rows_max`.

        Raises:
            LogTrimmed: rows after this position have gone; read the images instead, and continue from `log_trimmed`.
            StoreCorrupt, StoreError: the data cannot be trusted, or not be read now.
        """
        ...

    def log_trimmed(self) -> int:
        """Return the newest version whose row has gone from the log, 0 if none has: where `log_after` can begin."""
        ...

    def pin_log(self, position: int) -> AbstractContextManager[None]:
        """Keep the rows of all versions greater than `position` in the log while the block runs.

        Raises:
            LogTrimmed: some have gone already.
        """
        ...


class Shard(ShardReader, ShardWriter, ShardLog, Protocol):
    """One shard, open once: its images, its log and its identity."""

    @property
    def identity(self) -> ShardIdentity:
        """Whose shard this is."""
        ...

    def statistics(self) -> StoreStatistics:
        """Return the sizes of the shard.

        Raises:
            StoreError: they cannot be read.
        """
        ...

    def close(self) -> None:
        """Close it; every batch must be closed before."""
        ...


@runtime_checkable
class ShardCopy(Protocol):
    """Capability of a shard: consistent copies, for backups; from any thread."""

    def write_copy(self, sink: Callable[[bytes], None]) -> CopiedShard:
        """Deliver a consistent copy of the present moment to `sink`, piece by piece; commits continue meanwhile.

        The pieces are one file that the engine can open. An exception of `sink` ends the copy.

        Raises:
            StoreError: the data cannot be read, or contradicts itself.
        """
        ...


@runtime_checkable
class ShardSync(Protocol):
    """Capability of a shard: commits that are durable later (durability "async")."""

    def sync(self) -> None:
        """Make every commit durable.

        Raises:
            StoreError: what was committed since the last sync may not be durable.
        """
        ...


@runtime_checkable
class ShardWarmUp(Protocol):
    """Capability of a shard: reading ahead what a start will need."""

    def warm_up(self) -> None:
        """Ask the operating system to read the data ahead; returns at once."""
        ...


class Engine(Protocol):
    """One way to keep shards, with the options of one store of a topology."""

    def open(self, path: Path, identity: ShardIdentity, *, create: bool, durable: bool = True) -> Shard:
        """Open a shard, whose directory `path` is the engine's to make and use.

        `identity` is what the placement says of it; `create` permits to make it if it does not exist yet. With
        `durable` every commit is durable when it returns; without, the shard is a ShardSync.

        Raises:
            StoreCorrupt: it is missing though it should exist, or is corrupt.
            DataDirectoryError: it is another shard's or cluster's, or the directory cannot be made.
            StoreFull, StoreError: it cannot be opened here.
        """
        ...

    def read_identity(self, path: Path) -> ShardIdentity | None:
        """Return whose shard is in this directory, None if there is none; the shard is not open.

        Raises:
            StoreCorrupt, StoreError: there is one that cannot be read.
        """
        ...

"""The engine of a shard as a node asks it: the FragmentStore protocol.

One store object is one shard. Any thread may take snapshots; one thread at a time commits. A commit is durable when it
returns, and seen by every snapshot taken afterwards. `tests/fragment_stores/conformance.py` holds every rule as a test
that any engine is run through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import msgspec

from ..wire.protocol.messages import Refusal, Write
from .image_batch import FoundImages

__all__ = ["NO_TURN", "CopiedShard", "FragmentStore", "LogRow", "ShardIdentity", "Snapshot", "StoreStatistics"]

NO_TURN: AbstractContextManager[object] = nullcontext()
"""Nobody else commits at the time."""

FORMAT = 1
"""Number of the on-disk layout; a store of another number is refused."""


class ShardIdentity(msgspec.Struct, array_like=True, frozen=True):
    """Whose shard this is, kept with the data, so that data in the wrong place is refused instead of served."""

    format: int
    cluster_uuid: str
    store: str
    shard: int
    shards: int
    epoch: int


class LogRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One committed write as the shard's log keeps it, under its version.

    `operations`: (operation number as in `wire.protocol.messages`, kind; "" for all kinds). `digest` says what the
    write was for (`wire.protocol.write_digest`), 0 where that is not known. `removed`: of a write that deletes, the
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
    """What a copy holds: its newest version, as its own clock says, and its agents."""

    version: int
    agents: int


class Snapshot(Protocol):
    """One moment of a shard. Images lie where they are until it ends: encode or copy them before."""

    @property
    def version(self) -> int:
        """A version that this moment includes; it may include newer ones."""
        ...

    def images(self, agents: Sequence[bytes]) -> list[bytes | memoryview]:
        """Return the image of each agent, empty where there is none.

        Raises:
            InvalidRequestError: an id is empty. One that is too long has no image.
            StoreDamaged: the data cannot be trusted.
        """
        ...

    def find(self, agents: Sequence[bytes]) -> FoundImages:
        """Find the image of each agent, to be joined into a frame.

        Raises:
            InvalidRequestError, StoreDamaged: as `images`.
        """
        ...

    def agents_after(self, position: bytes, agents_max: int, prefix: bytes = b"") -> list[bytes]:
        """Return ids in byte order, those greater than `position`, at most `agents_max`.

        Up to the first one that does not begin with `prefix`.

        Raises:
            InvalidRequestError: the position is too long for an id.
            StoreDamaged: the data cannot be trusted.
        """
        ...

    def log_after(self, version: int, rows_max: int) -> list[tuple[int, LogRow]]:
        """Return what changed after `version`: committed writes in order, without gaps, at most `rows_max`.

        Raises:
            LogTrimmed: rows after this position have gone; read the images instead, and go on from `log_trimmed`.
            StoreDamaged: the data cannot be trusted.
        """
        ...

    def log_trimmed(self) -> int:
        """Return the newest version whose row has gone from the log, 0 if none has: where `log_after` can begin."""
        ...

    def close(self) -> None:
        """End the snapshot and every view that it gave."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FragmentStore(Protocol):
    """One shard's images, log and identity in one engine."""

    @property
    def identity(self) -> ShardIdentity:
        """Whose shard this is."""
        ...

    @property
    def version(self) -> int:
        """The newest committed version."""
        ...

    @property
    def clock_ms(self) -> int:
        """The time of the newest commit, UTC: the shard's own clock, which never goes back."""
        ...

    def begin_generation(self, generation: int, origin: int = 0) -> None:
        """Take versions of this generation from now on; it must be newer than every version in the store.

        They follow one another from `origin` on (`wire.protocol.versions`).

        Raises:
            StoreDamaged: it is not: the control store is older than the data.
        """
        ...

    def snapshot(self) -> Snapshot:
        """Return the present moment for reading."""
        ...

    def pin_log(self, position: int) -> AbstractContextManager[None]:
        """Keep the rows of all versions greater than `position` in the log while the block runs; from any thread.

        Raises:
            LogTrimmed: some have gone already.
        """
        ...

    def write_copy(self, sink: Callable[[bytes], None]) -> CopiedShard:
        """Hand a consistent copy of the present moment to `sink`, piece by piece; commits go on meanwhile.

        The pieces are one file that the engine can open. What `sink` raises ends the copy.

        Raises:
            StoreError: the data cannot be read, or contradicts itself.
        """
        ...

    def commit(
        self, writes: Sequence[Write], now_ms: int, turn: AbstractContextManager[object] = NO_TURN
    ) -> list[int | Refusal]:
        """Apply writes in order in one transaction, durable on return.

        Each result is the write's version, 0 where there was nothing to delete, or a Refusal: a write that cannot be
        applied fails alone. One whose id the log still has was applied before: it is answered with its first result,
        and applied no second time; or refused, where it was for something else then. `now_ms` is the wall clock, UTC;
        the shard's own clock never goes back.

        `turn` is entered for the part that keeps the interpreter busy, and left before the sync: threads that commit to
        several shards share a lock, so that one of them works while the others wait for the disk.

        Raises:
            StoreFull, StoreError: nothing of it was applied.
        """
        ...

    def sweep(self, before_ms: int, rows_max: int, now_ms: int) -> tuple[int, int]:
        """Remove fragments that expired by `before_ms`, in one logged commit; look at `rows_max` expiry rows at most.

        Returns how many rows were looked at, and how many fragments removed. A commit takes away the row of a fragment
        that it ends; one that an older version has left all the same goes without touching the image.

        Raises:
            StoreFull, StoreError: nothing of it was done.
        """
        ...

    def postpone_expiry(self, since_ms: int, by_ms: int, now_ms: int) -> int:
        """Let fragments written at `since_ms` (by the shard's clock) or later expire `by_ms` later; return how many.

        Their versions stay: nobody has saved anything. `now_ms` is the shard's clock from then on.

        Raises:
            StoreFull, StoreError: nothing of it was done.
        """
        ...

    def sync(self) -> None:
        """Make every commit durable; needed only where commits are not so by themselves (durability "async").

        Raises:
            StoreError: what was committed since the last sync may not be durable.
        """
        ...

    def warm_up(self) -> None:
        """Ask the operating system to read the data ahead; returns at once."""
        ...

    def statistics(self) -> StoreStatistics:
        """Return the sizes of the shard."""
        ...

    def close(self) -> None:
        """Close it; every snapshot must be closed before."""
        ...

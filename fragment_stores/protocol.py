"""What a node asks of the engine that keeps a shard: the FragmentStore protocol.

One store object is one shard. Any thread may take snapshots; one thread at a time commits. A commit is durable when it
returns, and seen by every snapshot taken afterwards. `tests/fragment_stores/conformance.py` holds every rule as a test
that any engine is run through.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import msgspec

from ..wire.messages import Refusal, Write

__all__ = ["FragmentStore", "LogRow", "ShardIdentity", "Snapshot", "StoreStatistics"]

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

    `operations`: (operation number as in `wire.messages`, kind; "" for all kinds).
    """

    agent: bytes
    write_id: bytes
    operations: list[tuple[int, str]]


class StoreStatistics(NamedTuple):
    """Sizes of one shard."""

    agents: int
    log_rows: int
    disk_bytes: int


class Snapshot(Protocol):
    """One moment of a shard. Images are views that end with it: encode or copy them before."""

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

    def agents_after(self, position: bytes, agents_max: int) -> list[bytes]:
        """Return ids in byte order, those greater than `position`, at most `agents_max`.

        Raises:
            InvalidRequestError: the position is too long for an id.
            StoreDamaged: the data cannot be trusted.
        """
        ...

    def log_after(self, version: int, rows_max: int) -> list[tuple[int, LogRow]]:
        """Return committed writes in order, those with greater versions, at most `rows_max`."""
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

    def begin_generation(self, generation: int) -> None:
        """Take versions of this generation from now on; it must be newer than every version in the store.

        Raises:
            StoreDamaged: it is not: the control store is older than the data.
        """
        ...

    def snapshot(self) -> Snapshot:
        """Return the present moment for reading."""
        ...

    def commit(self, writes: Sequence[Write], now_ms: int) -> list[int | Refusal]:
        """Apply writes in order in one transaction, durable on return.

        Each result is the write's version, 0 where there was nothing to delete, or a Refusal: a write that cannot be
        applied fails alone. `now_ms` is the wall clock, UTC; the shard's own clock never goes back.

        Raises:
            StoreFull, StoreError: nothing of it was applied.
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

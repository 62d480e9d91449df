"""Shards as files: an engine's capability that backup, restore and verify of a stopped cluster need."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from .engine import ShardIdentity

__all__ = ["Finding", "ShardFiles", "ShardVerifier", "Verified"]


class Finding(NamedTuple):
    """Something that is wrong with a shard.

    `where`: "format" if it is of a version that cannot be read here, "structure" or "meta" if it cannot be served;
    else the part of the data that contradicts another.
    """

    where: str
    detail: str


class Verified(msgspec.Struct):
    """The content of a shard as it was seen; filled in while findings are yielded."""

    identity: ShardIdentity | None = None
    version: int = 0
    clock_ms: int = 0
    trimmed: int = 0
    agents: int = 0
    fragments: int = 0
    log_rows: int = 0
    expiry_rows: int = 0
    stale_expiry_rows: int = 0


class ShardVerifier(Protocol):
    """Reads files of shards completely, one after the other, and survives any content."""

    def verify(
        self, path: Path, tell: Callable[[int], None] = lambda entries: None
    ) -> tuple[list[Finding], Verified | None]:
        """Return what is wrong with a file that has no writer, and what was seen of it; None if it could not be read.

        `tell` is called now and then with the number of entries read.
        """
        ...


@runtime_checkable
class ShardFiles(Protocol):
    """Capability of an engine: each shard is one file in its directory, and a copy of it such a file."""

    @property
    def data_file(self) -> str:
        """Its name in the directory."""
        ...

    def has_data(self, directory: Path) -> bool:
        """Return whether a shard was ever written in this directory."""
        ...

    def verifier(self) -> AbstractContextManager[ShardVerifier]:
        """Return a verifier of files; it ends with the block."""
        ...

    def is_copy(self, directory: Path, identity: ShardIdentity, version: int) -> bool:
        """Return whether a shard is in a directory as it was restored, and nothing was written to it since.

        Raises:
            StoreCorrupt, StoreError: it cannot be read.
        """
        ...

    def give_identity(self, directory: Path, identity: ShardIdentity) -> None:
        """Let a copy in a directory of its own be the shard that it is restored as: its epoch may have grown.

        Raises:
            StoreCorrupt: the copy is not of this cluster, store and shard.
            StoreError: it cannot be opened here.
        """
        ...

"""The file control store: the placement in a file beside the data, for the nodes of one host.

The file is replaced, never written in place: under a lock on a file beside it, the current revision is compared, the
new placement is written to a temporary file, synced, renamed over the old one, and the directory synced. So a reader
needs no lock and sees a complete placement whenever any process dies; a swap that returned true survives the machine's
death; and of several processes that swap at once exactly one wins per revision. The lock is the kernel's (flock): it
ends with the process that holds it. No method touches the disk in the event loop: a disk may hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Final

import msgspec

from ..durable_files import make_directory_durably, replace_file
from ..errors import ConfigurationError, PlacementError
from ..private_files import FILE_MODE
from .control_store import LOST_REMEDY
from .placement import Placement, decode_placement, encode_placement

__all__ = ["PLACEMENT_FILE", "FileControlStore"]

PLACEMENT_FILE: Final = "placement.json"
"""Name of the placement's file in a cluster's data directory. No node's directory can have it: names have no dots."""

WATCH_INTERVAL_S: Final = 0.5
"""A watch looks at the file this often: soon enough for changes that people make."""

LOCK_WAIT_S: Final = 10.0
"""How long a swap waits for the lock. A holder needs milliseconds; after this long it is stopped or its disk hangs."""

LOCK_RETRY_S: Final = 0.005
"""Pause between attempts at the lock: flock(2) itself knows no deadline."""


class FileControlStore:
    """The placement in a file (`placement.json` in the cluster's data directory), shared by the processes of one host.

    Directory and file are made by the first swap; reading makes nothing. Methods raise PlacementError for a corrupt
    file and ConfigurationError for one that cannot be read or written; both name it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        lock_wait_s: float = LOCK_WAIT_S,
        watch_interval_s: float = WATCH_INTERVAL_S,
    ) -> None:
        """Keep the placement in the file `path`; the lock and the temporary file are beside it."""
        self._lock_wait_s: Final = lock_wait_s
        self._watch_interval_s: Final = watch_interval_s
        self.path: Final = Path(os.path.abspath(path))
        self._lock_path: Final = self.path.with_suffix(".lock")
        self._temporary_path: Final = self.path.with_suffix(".tmp")

    @classmethod
    def in_directory(cls, data_dir: str | os.PathLike[str]) -> FileControlStore:
        """Return the control store of the cluster with this data directory."""
        return cls(Path(data_dir) / PLACEMENT_FILE)

    async def read(self) -> Placement | None:
        """Return the placement in the file, or None if there is no file. Runs in a thread: a disk may hang."""
        return await asyncio.to_thread(self._read)

    async def compare_and_swap(self, expected_revision: int, placement: Placement) -> bool:
        """See `ControlStore`. Runs in a thread, as it waits for the lock (10 s at most) and for the disk.

        Raises:
            ConfigurationError: the directory cannot be written, or the lock is held for too long.
            PlacementError: the file there is corrupt; it is left as it is.
        """
        return await asyncio.to_thread(self._compare_and_swap, expected_revision, placement)

    def put_restored(self, placement: Placement) -> bool:
        """Keep a placement that comes from a backup, with its own revision, if there is none; return whether it was.

        Raises: as `compare_and_swap`.
        """
        return self._compare_and_swap(0, placement, revision=placement.revision)

    async def watch(self) -> AsyncIterator[Placement]:
        """See `ControlStore`. Looks every 0.5 s.

        Raises:
            PlacementError: the file was corrupt, or was there and is not any more. A new watch can be begun.
        """
        # Whole files are compared, which stat(2) cannot stand in for: an inode's number is used again, and two
        # changes can fall into one tick of its clock. A file of 48 shards has 4 KB.
        seen: bytes | None = None
        while True:
            encoded = await asyncio.to_thread(self._read_bytes)
            if encoded is None and seen is not None:
                raise PlacementError(f"{self.path}: the placement is gone; {LOST_REMEDY}")
            if encoded is not None and encoded != seen:
                seen = encoded
                yield self._decode(encoded)
            await asyncio.sleep(self._watch_interval_s)

    def _read(self) -> Placement | None:
        encoded = self._read_bytes()
        return None if encoded is None else self._decode(encoded)

    def _read_bytes(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"{self.path}: cannot be read: {error.strerror}") from error

    def _decode(self, encoded: bytes) -> Placement:
        try:
            return decode_placement(encoded)
        except PlacementError as error:
            raise PlacementError(f"{self.path}: {error}") from error

    def _compare_and_swap(self, expected_revision: int, placement: Placement, revision: int | None = None) -> bool:
        try:
            make_directory_durably(self.path.parent)
            with self._locked():
                current = self._read()
                if (0 if current is None else current.revision) != expected_revision:
                    return False
                kept = expected_revision + 1 if revision is None else revision
                self._replace(msgspec.structs.replace(placement, revision=kept))
                return True
        except OSError as error:
            raise ConfigurationError(
                f"{self.path}: cannot be written: {error.strerror} ({error.filename}); cluster.data_dir must be a "
                f"directory that this user can write, on a disk with space left"
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Generator[None, None, None]:
        deadline = time.monotonic() + self._lock_wait_s
        while True:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, FILE_MODE)
            try:
                self._lock_before(deadline, lock)
                # Someone may have deleted the file between open and lock: such a lock excludes no other process.
                if _is_at(self._lock_path, lock):
                    yield
                    return
            finally:
                os.close(lock)

    def _lock_before(self, deadline: float, lock: int) -> None:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise ConfigurationError(
                        f"{self._lock_path}: another process has held this lock for {self._lock_wait_s:.0f} s; "
                        f"find it with `fuser {self._lock_path}`, and continue or end it"
                    ) from error
                time.sleep(LOCK_RETRY_S)
            else:
                return

    def _replace(self, placement: Placement) -> None:
        """Put the placement into the file, completely and durably; the caller has the lock."""
        replace_file(self.path, encode_placement(placement), self._temporary_path)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False

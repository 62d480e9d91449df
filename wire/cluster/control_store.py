"""The control store, which keeps the placement: read, compare-and-swap, watch.

`ControlStore` is what nodes, launcher and clients ask of it; `FileControlStore` keeps it in a file beside the data,
for the nodes of one host.

The file is replaced, never written in place: under a lock on a file beside it, the current revision is compared, the
new placement is written to a temporary file, synced, renamed over the old one, and the folder synced. So a reader
needs no lock and sees a whole placement whenever any process dies; a swap that returned true survives the machine's
death; and of several processes that swap at once exactly one wins per revision. The lock is the kernel's (flock): it
ends with the process that holds it.

`establish_placement` and `take_generation` are what every node does at its start, however many start at once. A
placement that is missing while shards on disk hold data is lost, not new: it is refused, as a recomputed one could
give shards to the wrong nodes and repeat generations, and so versions.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Final, Protocol

import msgspec

from ..durable_files import make_folder_durably, replace_file
from ..errors import ConfigurationError, PlacementError
from ..private_files import FILE_MODE
from .placement import (
    Placement,
    decode_placement,
    encode_placement,
    initial_placement,
    reconcile,
    with_new_generation,
)
from .topology import Topology

__all__ = [
    "PLACEMENT_FILE",
    "ControlStore",
    "FileControlStore",
    "establish_placement",
    "require_cluster",
    "take_generation",
]

PLACEMENT_FILE: Final = "placement.json"
"""Name of the placement's file in a cluster's data folder. No node's folder can have it: names have no dots."""

WATCH_INTERVAL_S: Final = 0.5
"""A watch looks at the file this often: soon enough for changes that people make."""

LOCK_WAIT_S: Final = 10.0
"""How long a swap waits for the lock. A holder needs milliseconds; after this long it is stopped or its disk hangs."""

LOCK_RETRY_S: Final = 0.005
"""Pause between attempts at the lock: flock(2) itself knows no deadline."""

SWAP_ATTEMPTS_MAX: Final = 10_000
"""Lost swaps before giving up. Each is another process's success, so that only a fault can use them up."""

_LOST_REMEDY: Final = (
    "restore placement.json from a backup; it is never computed again, and the shards were not touched"
)
_ATTEMPTS_USED_UP: Final = (
    f"the placement could not be changed in {SWAP_ATTEMPTS_MAX} attempts: something changes it all the time"
)


class ControlStore(Protocol):
    """A place that keeps one cluster's placement. Its methods raise PlacementError for a damaged one."""

    async def read(self) -> Placement | None:
        """Return the current placement, or None if there is none yet."""
        ...

    async def compare_and_swap(self, expected_revision: int, placement: Placement) -> bool:
        """Put `placement` in place of the one with `expected_revision` (0: of none), durably.

        It is kept with revision `expected_revision` + 1, whatever its own. Returns whether it was: if not, another
        process was first, and nothing was changed.
        """
        ...

    def watch(self) -> AsyncIterator[Placement]:
        """Yield the current placement (once there is one), then each change; of quick changes only the last."""
        ...


class FileControlStore:
    """The placement in a file (`placement.json` in the cluster's data folder), shared by the processes of one host.

    Folder and file are made by the first swap; reading makes nothing. Methods raise PlacementError for a damaged file
    and ConfigurationError for one that cannot be read or written; both name it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Keep the placement in the file `path`; the lock and the temporary file are beside it."""
        self.path: Final = Path(os.path.abspath(path))
        self._lock_path: Final = self.path.with_suffix(".lock")
        self._temporary_path: Final = self.path.with_suffix(".tmp")

    @classmethod
    def in_folder(cls, data_dir: str | os.PathLike[str]) -> FileControlStore:
        """Return the control store of the cluster with this data folder."""
        return cls(Path(data_dir) / PLACEMENT_FILE)

    async def read(self) -> Placement | None:
        """Return the placement in the file, or None if there is no file."""
        return self._read()

    async def compare_and_swap(self, expected_revision: int, placement: Placement) -> bool:
        """See `ControlStore`. Runs in a thread, as it waits for the lock (10 s at most) and for the disk.

        Raises:
            ConfigurationError: the folder cannot be written, or the lock is held for too long.
            PlacementError: the file there is damaged; it is left as it is.
        """
        return await asyncio.to_thread(self._compare_and_swap, expected_revision, placement)

    def put_restored(self, placement: Placement) -> bool:
        """Keep a placement that comes from a backup, with its own revision, where there is none; return whether it was.

        Raises: as `compare_and_swap`.
        """
        return self._compare_and_swap(0, placement, revision=placement.revision)

    async def watch(self) -> AsyncIterator[Placement]:
        """See `ControlStore`. Looks every 0.5 s.

        Raises:
            PlacementError: the file was damaged, or was there and is not any more. A new watch can be begun.
        """
        # Whole files are compared, which stat(2) cannot stand in for: an inode's number is used again, and two
        # changes can fall into one tick of its clock. A file of 48 shards has 4 KB.
        seen: bytes | None = None
        while True:
            encoded = self._read_bytes()
            if encoded is None and seen is not None:
                raise PlacementError(f"{self.path}: the placement is gone; {_LOST_REMEDY}")
            if encoded is not None and encoded != seen:
                seen = encoded
                yield self._decode(encoded)
            await asyncio.sleep(WATCH_INTERVAL_S)

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
            make_folder_durably(self.path.parent)
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
                f"folder that this user can write, on a disk with space left"
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Generator[None, None, None]:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, FILE_MODE)
            try:
                self._lock_before(deadline, lock)
                # Someone may have deleted the file between open and lock: such a lock excludes nobody.
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
                        f"{self._lock_path}: another process has held this lock for {LOCK_WAIT_S:.0f} s; "
                        f"find it with `fuser {self._lock_path}`, and continue or end it"
                    ) from error
                time.sleep(LOCK_RETRY_S)
            else:
                return

    def _replace(self, placement: Placement) -> None:
        """Put the placement into the file, whole and durably; the caller has the lock."""
        replace_file(self.path, encode_placement(placement), self._temporary_path)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


async def _nobody_objects() -> None:
    """Let a new cluster be made."""


async def establish_placement(
    topology: Topology,
    control: ControlStore,
    shards_on_disk: Callable[[], str | None],
    *,
    cluster_uuid: str = "",
    before_making: Callable[[], Awaitable[None]] = _nobody_objects,
) -> Placement:
    """Return the cluster's placement, brought up to date with the topology; made if the cluster is new.

    Any number of processes may do so at once; all get the same one. `shards_on_disk` returns the path of a shard in the
    data folder that was ever written, or None; it is asked only where there is no placement. With `cluster_uuid` it has
    to be that cluster's, which began before: none is made then. `before_making` may object to a new cluster, by an
    error of its own; of those that are made at once it is asked for each.

    Raises:
        PlacementError: the placement is lost or damaged, or the topology contradicts it; what to do is in the message.
        ConfigurationError: the control store cannot be read or written.
    """
    for _attempt in range(SWAP_ATTEMPTS_MAX):
        current = await control.read()
        require_cluster(topology.data_dir, current, cluster_uuid)
        if current is None:
            shard = shards_on_disk()
            if shard is not None:
                # Another process may have made both since the read: the placement always comes first.
                if await control.read() is not None:
                    continue
                raise PlacementError(
                    f"{topology.data_dir}: there is no placement, but a shard has been written: {shard}; {_LOST_REMEDY}"
                )
            try:
                await before_making()
            except ConfigurationError:
                if await control.read() is None:
                    raise
                continue  # who serves already has made it meanwhile
            expected, wanted = 0, initial_placement(topology, uuid.uuid4().hex)
        else:
            expected, wanted = current.revision, _reconcile(topology, current)
            if wanted is current:
                return current
        if await control.compare_and_swap(expected, wanted):
            return msgspec.structs.replace(wanted, revision=expected + 1)
    raise PlacementError(_ATTEMPTS_USED_UP)


def _reconcile(topology: Topology, placement: Placement) -> Placement:
    try:
        return reconcile(topology, placement)
    except PlacementError as error:
        raise PlacementError(f"data folder {topology.data_dir}: {error}") from error


def require_cluster(data_dir: str, placement: Placement | None, cluster_uuid: str) -> None:
    """Refuse a data directory in which the cluster that somebody began with is not any more; "" began with none.

    Raises:
        PlacementError: there is no placement, or another cluster's.
    """
    if not cluster_uuid or (placement is not None and placement.cluster_uuid == cluster_uuid):
        return
    there = "is not there any more" if placement is None else f"holds cluster {placement.cluster_uuid} now"
    raise PlacementError(
        f"{data_dir}: the data of cluster {cluster_uuid}, with which this began, {there}: the directory was moved,"
        " unmounted or replaced; put it back; nothing is made anew"
    )


async def take_generation(control: ControlStore, node: str, cluster_uuid: str = "") -> Placement:
    """Return the placement with a generation that no other caller ever got; it is durable when this returns.

    `node` has opened its shards before, those of `cluster_uuid`; those that are new get their first epoch.

    Raises:
        PlacementError: there is no placement (see `establish_placement`), it is damaged or another cluster's, or
            generations are used up.
        ConfigurationError: the control store cannot be read or written.
    """
    for _attempt in range(SWAP_ATTEMPTS_MAX):
        current = await control.read()
        if current is None:
            raise PlacementError(f"there is no placement to take a generation from; {_LOST_REMEDY}")
        require_cluster("the data directory", current, cluster_uuid)
        wanted = with_new_generation(current, node)
        if await control.compare_and_swap(current.revision, wanted):
            return msgspec.structs.replace(wanted, revision=current.revision + 1)
    raise PlacementError(_ATTEMPTS_USED_UP)

"""The shards that this node owns, opened: their data checked against the placement, and the directory locked.

A node holds a lock on its data directory for life, taken before it binds anything: a second process on the same data is
rejected before it can disturb the first. Data of another cluster, another node or another shard is rejected too, at the
start; a shard that is corrupt or missing is named and not served, and the others are.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..fragment_stores.engine import FORMAT, Engine, Shard, ShardIdentity, ShardSync, ShardWarmUp
from ..fragment_stores.registry import DEFAULT_ENGINE
from ..wire.cluster.placement import Placement
from ..wire.cluster.topology import Topology
from ..wire.durable_files import make_directory_durably
from ..wire.errors import (
    DataDirectoryError,
    EpochMismatch,
    PlacementError,
    StoreCorrupt,
    StoreError,
    StoreFull,
    TopologyError,
)
from ..wire.private_files import FILE_MODE, make_private
from ..wire.protocol.messages import SectionStatus, ShardStatus
from ..wire.protocol.versions import ORIGINS, generation_of
from .store_engines import all_engines, store_engine

__all__ = [
    "OwnedShard",
    "any_shard_on_disk",
    "begin_generation",
    "close_shards",
    "locked_directory",
    "open_shards",
    "require_older",
    "shard_directory",
]

SERVING: Final = "serving"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class OwnedShard:
    """One shard of this node; `fragments` is None, and `damage` says why, if its data cannot be trusted."""

    store: str
    shard: int
    epoch: int
    kinds: frozenset[str]
    fragments: Shard | None
    damage: str = ""
    last_error: str = ""
    """Why its last commit failed."""
    engine: str = DEFAULT_ENGINE
    """The name of its engine: readers of one engine can join their images into one frame."""
    sync_interval_s: float = 0.0
    """How often it is synced; 0 if every commit is."""
    offset_ms: int = 0
    """How far its clock is ahead of the monotonic one; grows only. `nodes.node_clock` sets it."""
    doubt_ms: int = 0
    """Since when, by its clock, the wall clock is in doubt; 0 if it is not."""

    @property
    def name(self) -> str:
        """Its name in records: store/shard."""
        return f"{self.store}/{self.shard}"

    def now_ms(self, monotonic_ms: int) -> int:
        """Return its time, UTC, at a moment of the monotonic clock."""
        return self.offset_ms + monotonic_ms

    def note(self, error: StoreError) -> SectionStatus:
        """Log this error, and return the status of a section that met it."""
        if isinstance(error, EpochMismatch):
            return SectionStatus.MOVED
        _log.error("shard fails", extra={"store": self.store, "shard": self.shard, "detail": str(error)})
        if isinstance(error, StoreCorrupt):
            self.damage = str(error)
            return SectionStatus.CORRUPT
        self.last_error = str(error)
        return SectionStatus.DISK_FULL if isinstance(error, StoreFull) else SectionStatus.INTERNAL

    def status(self, wall_offset_ms: int | None = None) -> ShardStatus:
        """Return its entry in StatusReply; `wall_offset_ms`: the wall clock less the monotonic one."""
        if self.fragments is None:
            return ShardStatus(self.store, self.shard, self.epoch, 0, 0, 0, self.damage)
        state, notice, agents, disk_bytes = self.damage or SERVING, "", 0, 0
        try:
            sizes = self.fragments.statistics()
            agents, disk_bytes = sizes.agents, sizes.disk_bytes
        except StoreError as error:
            notice = str(error)
        version = self.fragments.version
        ahead_ms = 0 if wall_offset_ms is None else self.offset_ms - wall_offset_ms
        return ShardStatus(
            self.store, self.shard, self.epoch, version, agents, disk_bytes, state, self.last_error, notice, ahead_ms
        )


def shard_directory(topology: Topology, node: str, store: str, shard: int) -> Path:
    """Return the directory of a shard's data: data_dir/node/store/shard."""
    return Path(topology.data_dir) / node / store / f"{shard:04d}"


def any_shard_on_disk(topology: Topology) -> str | None:
    """Return the directory of some shard that was written by any node of this data_dir, None if there is none."""
    engines = all_engines(topology)
    for folder in sorted(path for path in Path(topology.data_dir).glob("*/*/*") if path.is_dir()):
        for engine in engines:
            try:
                if engine.read_identity(folder) is not None:
                    return str(folder)
            except StoreError:
                return str(folder)
    return None


@contextmanager
def locked_directory(folder: Path) -> Generator[None]:
    """Hold the lock on a directory, which is made if need be; freed when the process ends, however it ends.

    Raises:
        DataDirectoryError: another process holds it, or the directory cannot be written.
    """
    try:
        make_directory_durably(folder)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        raise DataDirectoryError(
            f"{folder}: cannot be written: {error.strerror}; make it writable, or give the cluster another data_dir"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise DataDirectoryError(f"{folder}: in use by process {holder}; end it first") from error
        make_private(folder / "lock")  # an earlier version let others read it
        os.truncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def open_shards(
    topology: Topology, placement: Placement, node: str, damaged: Mapping[Path, str] = {}
) -> dict[tuple[str, int], OwnedShard]:
    """Open every shard that the placement gives to this node, by (store, shard).

    A shard of epoch 0 was never opened: it is made. Any other has to exist. Directories in `damaged` are known to be
    corrupt, for the reason given, and are not opened.

    Raises:
        TopologyError: a store's engine is unavailable, or lacks a capability that its store asks for.
        DataDirectoryError: data of another cluster, store, shard, count or epoch is in a shard's place.
        StoreFull, StoreError: a shard cannot be opened, for a reason that concerns the machine.
    """
    opened: dict[tuple[str, int], OwnedShard] = {}
    engines: dict[str, Engine] = {}
    try:
        for store, shard, epoch in placement.shards_of(node):
            identity = ShardIdentity(
                FORMAT, placement.cluster_uuid, store, shard, len(placement.shards[store]), max(epoch, 1)
            )
            spec = topology.stores[store]
            if store not in engines:
                engines[store] = store_engine(topology, store)
            kinds = frozenset(topology.kinds_of(store))
            owned = OwnedShard(store, shard, identity.epoch, kinds, None, engine=spec.engine)
            owned.sync_interval_s = spec.sync_interval_ms / 1_000 if spec.durability == "async" else 0.0
            opened[store, shard] = owned
            folder = shard_directory(topology, node, store, shard)
            try:
                if folder in damaged:
                    raise StoreCorrupt(damaged[folder])
                durable = not owned.sync_interval_s
                owned.fragments = engines[store].open(folder, identity, create=epoch == 0, durable=durable)
                if not durable and not isinstance(owned.fragments, ShardSync):
                    raise TopologyError(
                        f'stores.{store}.durability: engine "{spec.engine}" has no "async"; permitted: "sync"'
                    )
                if isinstance(owned.fragments, ShardWarmUp):
                    owned.fragments.warm_up()
            except StoreCorrupt as error:
                owned.note(error)
    except BaseException:
        close_shards(opened)
        raise
    return opened


def require_older(shards: Mapping[tuple[str, int], OwnedShard], placement: Placement) -> None:
    """Reject shards with versions unknown to the placement, before a generation is taken for them.

    Raises:
        PlacementError: the placement file is older than the data.
    """
    for owned in shards.values():
        version = 0 if owned.fragments is None else owned.fragments.version
        if generation_of(version) > placement.generation:
            raise PlacementError(
                f"shard {owned.store}/{owned.shard} has version {version}, of generation {generation_of(version)}; the"
                f" placement knows generations up to {placement.generation}: the placement file is older than the"
                " data; restore the newest one"
            )


def begin_generation(shards: Mapping[tuple[str, int], OwnedShard], generation: int) -> None:
    """Let every shard take versions of a new generation from now on, each from an origin of its own.

    The origin is drawn by chance (`wire.protocol.versions`): the versions that another life of these shards has used
    are not known here.
    """
    for owned in shards.values():
        if owned.fragments is not None:
            owned.fragments.begin_generation(generation, secrets.randbelow(ORIGINS))


def close_shards(shards: Mapping[tuple[str, int], OwnedShard]) -> None:
    """Close every shard that is open."""
    for owned in shards.values():
        if owned.fragments is not None:
            owned.fragments.close()
            owned.fragments = None

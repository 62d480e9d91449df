"""Copies of shards for a backup, made by the node in a thread of their own, one at a time.

    request -> loop -> Backups.submit -> thread: the engine's copy, at the pace asked for -> a file -> loop -> reply

Neither the loop nor the writer waits for it. The copy is one moment of the shard; its version is read in the same
transaction. A peer's request can do no harm: a node writes only into a directory that has a marker with this cluster's
uuid, only new files, and only with names that a shard's copy can have. The copy ends unfinished when the marker is
removed (the client has given up), when the budget is spent, or when the node stops.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import xxhash

from ..fragment_stores.engine import ShardCopy
from ..wire.errors import StoreError
from ..wire.private_files import FILE_MODE
from ..wire.protocol.backup_messages import BACKUP_FILE_PATTERN, BACKUP_MARKER_FILE, Backup, BackupMarker, BackupReply
from ..wire.protocol.messages import SectionStatus
from ..wire.transport.loop_calls import LoopCalls
from .read_path import require_served
from .shard_table import OwnedShard

__all__ = ["BackupJob", "Backups"]

_WAITING_MAX: Final = 64
"""Copies that may wait; a client asks for one at a time."""

_SYNC_BYTES: Final = 16 << 20
"""The disk gets at most this much at once: at 100 MB/s a sixth of a second, the longest that a save's sync may
wait behind it."""

_MARKER_BYTES_MAX: Final = 4_096

_marker_decoder = msgspec.json.Decoder(BackupMarker)

_log = logging.getLogger(__name__)


class BackupJob(NamedTuple):
    """One Backup and whom to answer; `deadline` is in seconds of the monotonic clock."""

    peer: bytes
    backup: Backup
    deadline: float


class _Refused(Exception):
    """The error of a copy that cannot be made; its message is the reply's detail."""


class Backups:
    """The maker of copies, in order of arrival; `deliver` gets each reply in the loop's thread."""

    def __init__(
        self,
        calls: LoopCalls,
        shards: Mapping[tuple[str, int], OwnedShard],
        cluster_uuid: str,
        deliver: Callable[[bytes, BackupReply], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`monotonic` gives the seconds by which deadlines are judged."""
        self._calls = calls
        self._shards = shards
        self._cluster_uuid = cluster_uuid
        self._deliver = deliver
        self._monotonic = monotonic
        self._jobs: queue.Queue[BackupJob | None] = queue.Queue(_WAITING_MAX)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def submit(self, job: BackupJob) -> bool:
        """Queue a job; return False if too many wait already, and nothing is queued."""
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            return False
        if self._thread is None:  # most nodes never need it
            self._thread = threading.Thread(target=self._run, name="backups", daemon=True)
            self._thread.start()
        return True

    def stop(self, timeout_s: float) -> None:
        """Cancel the running copy and all queued ones, and end the thread."""
        self._stopping.set()
        if self._thread is not None:
            with contextlib.suppress(queue.Full):  # then the thread does not wait for more
                self._jobs.put_nowait(None)
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            job = self._jobs.get()
            if job is None:
                return
            try:
                answer = self._serve(job)
            except Exception:
                _log.exception("backup fails")
                answer = BackupReply(job.backup.request, SectionStatus.INTERNAL, detail="see the node's log")
            self._calls.call(partial(self._deliver, job.peer, answer))

    def _serve(self, job: BackupJob) -> BackupReply:
        backup = job.backup
        shard = self._shards.get((backup.store, backup.shard))
        status = require_served(shard, backup.epoch)
        if status == SectionStatus.OK and self._monotonic() > job.deadline:
            status = SectionStatus.TOO_LATE
        if shard is None or status != SectionStatus.OK:
            return BackupReply(backup.request, status, detail=shard.damage if shard is not None else "")
        try:
            answer = self._copy(shard, job)
        except _Refused as refused:
            return BackupReply(backup.request, SectionStatus.INTERNAL, detail=str(refused))
        except StoreError as error:
            return BackupReply(backup.request, shard.note(error), detail=str(error))
        except OSError as error:
            detail = f"{backup.path}: cannot be written: {error.strerror}"
            return BackupReply(backup.request, SectionStatus.INTERNAL, detail=detail)
        facts = {"path": backup.path, "version": answer.version, "bytes": answer.bytes}
        _log.info("shard backed up", extra={"store": backup.store, "shard": backup.shard, **facts})
        return answer

    def _copy(self, shard: OwnedShard, job: BackupJob) -> BackupReply:
        backup = job.backup
        assert shard.fragments is not None, "require_served let it pass"
        if not isinstance(shard.fragments, ShardCopy):
            raise _Refused(f"store {shard.store!r}: its engine {shard.engine!r} makes no copies of shards")
        path = Path(backup.path)
        if not path.is_absolute() or "\0" in backup.path or BACKUP_FILE_PATTERN.fullmatch(path.name) is None:
            raise _Refused(f"{backup.path}: not a place for a shard's copy")
        with _opened_directory(path.parent) as folder:
            self._require_marker(folder, path.parent)
            # Before the copy as well as after it: it may take an hour.
            _require_new(path.name, folder, backup.path)
            temporary = f".{path.name}.{secrets.token_hex(4)}.partial"
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE, dir_fd=folder
            )
            try:
                try:
                    copied = _PacedFile(descriptor, lambda: self._require_wanted(job, folder), self._pace(backup))
                    facts = shard.fragments.write_copy(copied.write)
                    copied.finish()
                finally:
                    os.close(descriptor)
                _require_new(path.name, folder, backup.path)
                os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                raise
            os.fsync(folder)
        checksum = copied.checksum.hexdigest()
        return BackupReply(backup.request, SectionStatus.OK, facts.version, facts.agents, copied.bytes, checksum)

    def _pace(self, backup: Backup) -> Callable[[int], None]:
        """Return a function that waits until so many bytes may have been written; a stopping node waits no longer."""
        began, rate = time.monotonic(), backup.rate_bytes_s

        def wait(written: int) -> None:
            if rate:
                self._stopping.wait(max(0.0, began + written / rate - time.monotonic()))

        return wait

    def _require_marker(self, folder: int, path: Path) -> None:
        try:
            descriptor = os.open(BACKUP_MARKER_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
            with open(descriptor, "rb") as file:
                marker = _marker_decoder.decode(file.read(_MARKER_BYTES_MAX))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            raise _Refused(f"{path}: no backup is in progress there: it has no {BACKUP_MARKER_FILE}") from None
        if marker.cluster_uuid != self._cluster_uuid:
            raise _Refused(f"{path}: a backup of another cluster ({marker.cluster_uuid}) is in progress there")

    def _require_wanted(self, job: BackupJob, folder: int) -> None:
        if self._stopping.is_set():
            raise _Refused("the node stops")
        if self._monotonic() > job.deadline:
            raise _Refused("the deadline has passed before the copy was whole")
        try:
            os.stat(BACKUP_MARKER_FILE, dir_fd=folder)
        except OSError:
            raise _Refused("the backup was given up") from None


class _PacedFile:
    """A new file that is written no faster than asked for, synced as it grows, and checksummed."""

    def __init__(self, descriptor: int, require_wanted: Callable[[], None], wait_after: Callable[[int], None]) -> None:
        self._descriptor = descriptor
        self._require_wanted = require_wanted
        self._wait_after = wait_after
        self._unsynced = 0
        self.bytes = 0
        self.checksum = xxhash.xxh3_128()

    def write(self, piece: bytes) -> None:
        """Write a piece; return when the next may come."""
        self._require_wanted()
        self.checksum.update(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.bytes += len(piece)
        self._unsynced += len(piece)
        if self._unsynced >= _SYNC_BYTES:
            self.sync()
        self._wait_after(self.bytes)

    def sync(self) -> None:
        """Make all written bytes durable, and free their pages: they are not read soon, and wakes need the room."""
        os.fdatasync(self._descriptor)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self._unsynced = 0

    def finish(self) -> None:
        """Make the entire file durable."""
        self.sync()
        os.fsync(self._descriptor)


@contextmanager
def _opened_directory(path: Path) -> Generator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _require_new(name: str, folder: int, path: str) -> None:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    raise _Refused(f"{path}: exists already, and is not overwritten")

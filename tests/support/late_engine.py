"""An engine in memory that answers late, out of order, and sometimes with an error, as one across a network would.

`engine = "tests.support.late_engine:LateEngine"`. Its shards live as long as their process, whoever opens them.

Options: `late_ms`, how late a read is answered, 0 for at once or some milliseconds later, as chance has it;
`fail_every`, N for an error instead of every Nth read; `log_rows_max`.
"""

import bisect
import heapq
import itertools
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

from dawnchorus.fragment_stores.apply_write import apply_write
from dawnchorus.fragment_stores.engine import LogRow, ShardIdentity, StoreStatistics
from dawnchorus.fragment_stores.image_batch import ImageBatch, ImageList, PendingBatch, join_lists
from dawnchorus.fragment_stores.log_pins import LogPins
from dawnchorus.fragment_stores.log_rows import indeterminate, log_row, misused_id
from dawnchorus.wire.errors import (
    ConfigurationError,
    DataDirectoryError,
    EpochMismatch,
    InvalidRequestError,
    LogTrimmed,
    ProtocolError,
    StoreCorrupt,
    StoreError,
)
from dawnchorus.wire.protocol.image import decode_image, encode_image, split_image, version_of
from dawnchorus.wire.protocol.limits import AGENT_ID_BYTES_MAX
from dawnchorus.wire.protocol.messages import DeleteKind, Rejection, Write
from dawnchorus.wire.protocol.versions import first_version, generation_of

__all__ = ["LateEngine", "LateShard"]

LOG_ROWS_MAX = 16_384


class Options(msgspec.Struct, forbid_unknown_fields=True):
    """The table `[stores.NAME."tests.support.late_engine:LateEngine"]`."""

    late_ms: int = 0
    fail_every: int = 0
    log_rows_max: int = LOG_ROWS_MAX


class Kept:
    """The data of one shard, whoever has it open."""

    def __init__(self, identity: ShardIdentity) -> None:
        self.identity = identity
        self.images: dict[bytes, bytes] = {}
        self.log: list[tuple[int, LogRow]] = []
        self.version = 0
        self.clock_ms = 0
        self.trimmed = 0


_kept: dict[Path, Kept] = {}


class LateEngine:
    """An engine that opens shards in memory."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        try:
            self.options = msgspec.convert(dict(options), Options)
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"options: {error}") from error

    def open(self, path: Path, identity: ShardIdentity, *, create: bool, durable: bool = True) -> "LateShard":
        """Open a shard."""
        assert durable, "it is no ShardSync"
        kept = _kept.get(path)
        if kept is None:
            if not create:
                raise StoreCorrupt(f"{path}: the shard's data is missing")
            kept = _kept[path] = Kept(identity)
        for field in ShardIdentity.__struct_fields__:
            here, there = getattr(kept.identity, field), getattr(identity, field)
            if here != there:
                raise DataDirectoryError(f"{path}: the shard has {field} {here!r}, the placement says {there!r}")
        return LateShard(kept, self.options)

    def read_identity(self, path: Path) -> ShardIdentity | None:
        """Return whose shard it is."""
        return _kept[path].identity if path in _kept else None


class LateShard:
    """One shard."""

    def __init__(self, kept: Kept, options: Options) -> None:
        self._kept = kept
        self._options = options
        self._lock = threading.Lock()  # held while one moment becomes the next, and while one is looked at
        self._chance = random.Random(0)
        self._reads = itertools.count(1)
        self._pins = LogPins()
        self._pins.note(kept.trimmed)
        self.identity = kept.identity
        self.version = kept.version
        self._applied = {row.write_id: version for version, row in kept.log if row.write_id}

    @property
    def clock_ms(self) -> int:
        """Time of the newest commit."""
        return self._kept.clock_ms

    @property
    def next_expiry_ms(self) -> int:
        """The time at which the first fragment expires."""
        with self._lock:
            images = list(self._kept.images.values())
        expiring = [fragment.expires_ms for image in images for fragment in decode_image(image).values()]
        return min(filter(None, expiring), default=0)

    # --- reader ---

    def read(
        self, agents: Sequence[bytes], kinds: frozenset[str] | None = None, known: Sequence[int] | None = None
    ) -> ImageBatch | PendingBatch:
        """Read at once, and answer after a random delay."""
        if b"" in agents:
            raise InvalidRequestError("an agent id is empty")
        with self._lock:
            batch = ImageList([self._kept.images.get(agent, b"") for agent in agents], self.version, kinds, known)
        failing = self._options.fail_every and not next(self._reads) % self._options.fail_every
        late_s = self._options.late_ms / 1_000 or self._chance.choice([0, 0, 0.001, 0.004])
        if not late_s and not failing:
            return batch
        future: PendingBatch = Future()
        _postman.send(late_s, future, StoreError("the network is down") if failing else batch)
        return future

    join = staticmethod(join_lists)

    def agents_after(self, position: bytes, agents_max: int, prefix: bytes = b"") -> list[bytes] | Future[list[bytes]]:
        """List ids."""
        if len(position) > AGENT_ID_BYTES_MAX:
            raise InvalidRequestError("a position is an agent id: this one is too long")
        with self._lock:
            ids = sorted(self._kept.images)
        ids = ids[bisect.bisect_right(ids, position) :]
        listed = list(itertools.takewhile(lambda agent: agent.startswith(prefix), ids[:agents_max]))
        if self._chance.choice([True, False]):
            return listed
        future: Future[list[bytes]] = Future()
        _postman.send(0.001, future, listed)
        return future

    # --- writer ---

    def begin_generation(self, generation: int, origin: int = 0) -> None:
        """Take versions of this generation."""
        if generation <= generation_of(self.version):
            raise StoreCorrupt(f"version {self.version} is newer than generation {generation}")
        self.version = first_version(generation, origin)

    def commit(self, writes: Sequence[Write], now_ms: int, epoch: int) -> list[int | Rejection]:
        """Apply writes."""
        if epoch != self.identity.epoch:
            raise EpochMismatch(f"the shard has epoch {self.identity.epoch}, the writes have {epoch}")
        with self._lock:
            before = self._kept.version
            results = [self._apply_once(write, max(now_ms, self.clock_ms)) for write in writes]
            if self._kept.version != before:
                self._kept.clock_ms = max(now_ms, self.clock_ms)
            self._trim()
        return results

    def _apply_once(self, write: Write, now_ms: int) -> int | Rejection:
        version = self._applied.get(write.write_id)
        if version is not None:
            row = next(row for known, row in self._kept.log if known == version)
            return misused_id(row, write) or version
        if write.repeated and write.seen < self._kept.trimmed:
            return indeterminate(self._kept.trimmed)
        return self._apply(write, now_ms)

    def _apply(self, write: Write, now_ms: int) -> int | Rejection:
        before = self._kept.images.get(write.agent)
        version = self.version + 1
        try:
            after = apply_write(before, write, version, now_ms)
        except ProtocolError as error:
            return Rejection(f"the agent's image is corrupt: {error}")
        if isinstance(after, Rejection):
            return after
        if after is before:
            return 0
        self._kept.log.append((version, log_row(write, before, now_ms)))
        if after is None:
            del self._kept.images[write.agent]
        else:
            self._kept.images[write.agent] = bytes(after)
        self.version = self._kept.version = version
        if write.write_id:
            self._applied[write.write_id] = version
        return version

    def _trim(self) -> None:
        log = self._kept.log
        with self._pins.lock:
            while len(log) > self._options.log_rows_max and log[0][0] <= self._pins.trim_limit():
                self._kept.trimmed, row = log.pop(0)
                self._applied.pop(row.write_id, None)
                self._pins.note(self._kept.trimmed)

    def sweep(self, before_ms: int, rows_max: int, now_ms: int) -> tuple[int, int]:
        """Remove what expired; a row is one time at which something of an agent expires."""
        with self._lock:
            rows = sorted(
                {
                    (fragment.expires_ms, agent)
                    for agent, image in self._kept.images.items()
                    for fragment in decode_image(image).values()
                    if 0 < fragment.expires_ms <= before_ms
                }
            )[:rows_max]
            removed = 0
            for agent in {agent: None for _, agent in rows}:
                fragments = decode_image(self._kept.images[agent])
                gone = [kind for kind, fragment in fragments.items() if 0 < fragment.expires_ms <= before_ms]
                self._apply(Write(agent, b"", 0, [DeleteKind(kind) for kind in gone]), max(now_ms, self.clock_ms))
                removed += len(gone)
            if rows:
                self._kept.clock_ms = max(now_ms, self.clock_ms)
            self._trim()
        return len(rows), removed

    def postpone_expiry(self, since_ms: int, by_ms: int, now_ms: int) -> int:
        """Let what was written since then expire later."""
        postponed = 0
        with self._lock:
            for agent, image in self._kept.images.items():
                fragments: dict[str, Any] = dict(split_image(image))
                for kind, fragment in decode_image(image).items():
                    if fragment.expires_ms and fragment.updated_ms >= since_ms:
                        expires_ms = fragment.expires_ms + by_ms
                        fragments[kind] = msgspec.structs.replace(fragment, expires_ms=expires_ms)
                        postponed += 1
                self._kept.images[agent] = encode_image(version_of(image), fragments)
            if postponed:
                self._kept.clock_ms = max(now_ms, self.clock_ms)
        return postponed

    # --- log ---

    def log_after(self, version: int, rows_max: int) -> list[tuple[int, LogRow]]:
        """Return what changed."""
        with self._lock:
            if version < self._kept.trimmed:
                raise LogTrimmed(version, self._kept.trimmed)
            return [row for row in self._kept.log if row[0] > version][:rows_max]

    def log_trimmed(self) -> int:
        """Return where the log begins."""
        return self._kept.trimmed

    def pin_log(self, position: int) -> AbstractContextManager[None]:
        """Keep rows."""
        return self._pins.pin(position)

    # --- shard ---

    def statistics(self) -> StoreStatistics:
        """Return its sizes."""
        return StoreStatistics(len(self._kept.images), len(self._kept.log), 0)

    def close(self) -> None:
        """Leave it in memory."""


class Postman:
    """A thread that delivers results when they are due."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Future[Any], object]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._started = False

    def send(self, late_s: float, future: Future[Any], result: object) -> None:
        """Deliver a result, or an error, so many seconds from now."""
        with self._changed:
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="postman", daemon=True).start()
            heapq.heappush(self._due, (time.monotonic() + late_s, next(self._numbers), future, result))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due or self._due[0][0] > time.monotonic():
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                _, _, future, result = heapq.heappop(self._due)
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


_postman = Postman()

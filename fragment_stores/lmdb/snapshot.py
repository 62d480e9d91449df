"""One moment of a shard in LMDB: a read transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Self

import lmdb

from ...wire.errors import InvalidRequestError, LogTrimmed
from ...wire.protocol.limits import AGENT_ID_BYTES_MAX
from ..engine import LogRow
from ..image_batch import ImageBatch, cut_down
from .errors import FAILURES, translate
from .lookup import FIND_MIN, Values, find, join, views, warm
from .schema import IMAGES, TRIMMED_KEY, Databases, row_decoder, version_key, version_of_key

__all__ = ["LMDBBatch", "LMDBSnapshot", "join_batches"]


class LMDBBatch:
    """Images of one read transaction, where they are in its map; the transaction ends with the batch."""

    __slots__ = ("_snapshot", "sizes", "values", "version")

    def __init__(self, sizes: list[int], values: Values, snapshot: LMDBSnapshot) -> None:
        self.sizes = sizes
        self.version = snapshot.version
        self.values = values
        self._snapshot = snapshot

    def cut(self, images_max: int) -> None:
        """Keep the first ones only."""
        place_items = len(self.values) // max(1, len(self.sizes))  # a view is one element, a place some bytes
        self.values = self.values[: images_max * place_items]
        del self.sizes[images_max:]

    def rest_after(self, images: int) -> ImageBatch | None:
        """Return None: later images are read again, rather than kept in a transaction that stays open."""
        return None

    def close(self) -> None:
        """End the transaction."""
        self._snapshot.close()


def join_batches(head: bytes, batches: Sequence[ImageBatch]) -> bytes:
    """Return the bytes `head` and, one after another, the images of LMDBBatches; each is copied once."""
    values: list[Values] = []
    for batch in batches:
        assert isinstance(batch, LMDBBatch), "a frame has batches of one engine"
        values.append(batch.values)
    return join(head, values)


class LMDBSnapshot:
    """A read transaction on one shard; `release` is called once, when it is closed."""

    __slots__ = ("_databases", "_path", "_release", "_transaction", "version")

    def __init__(
        self,
        transaction: lmdb.Transaction[memoryview],
        databases: Databases,
        path: Path,
        version: int,
        release: Callable[[], None],
    ) -> None:
        self._transaction = transaction
        self._databases = databases
        self._path = path
        self._release: Callable[[], None] | None = release
        self.version = version

    def images(self, agents: Sequence[bytes]) -> list[bytes | memoryview]:
        """Return the image of each agent, empty if there is none; 0.3 to 1 us each when warm."""
        try:
            return list(map(self._transaction.get, agents, repeat(b"")))
        except lmdb.BadValsizeError as error:
            raise InvalidRequestError("an agent id is empty") from error
        except lmdb.Error as error:
            raise translate(error, self._path) from error

    def read(
        self, agents: Sequence[bytes], kinds: frozenset[str] | None, known: Sequence[int] | None, checks: int
    ) -> LMDBBatch:
        """Find the image of each agent, 0.3 us each for many; the batch then owns the snapshot; it ends on failure.

        `checks`: for how many agents to look beforehand whether their pages are in memory.

        Raises:
            BlockingIOError: the disk has to be read (`warm`). A few agents are waited for unless there are checks.
        """
        try:
            found = self._find(list(agents), checks) if checks or len(agents) >= FIND_MIN else None
            if found is None:
                images = self.images(agents)
            elif kinds is None and known is None:
                return LMDBBatch(*found, self)
            else:
                assert views is not None, "`find` is there"
                images = views(found[1])
            return LMDBBatch(cut_down(images, kinds, known), images, self)
        except BaseException:
            self.close()
            raise

    def _find(self, agents: list[bytes], checks: int) -> tuple[list[int], bytes] | None:
        """Return the sizes and places of images, None if LMDB has to be asked."""
        record = self._record()
        return None if record is None or find is None else find(record, self._databases.page_bytes, agents, checks)

    def warm(self, agents: Sequence[bytes]) -> None:
        """Wait until the pages that a read of these agents needs are in memory; other threads run meanwhile."""
        record = self._record()
        if record is not None and warm is not None:
            warm(record, self._databases.page_bytes, list(agents))

    def _record(self) -> memoryview | None:
        """Return LMDB's record of the database of images."""
        try:
            return self._transaction.get(IMAGES, db=self._databases.main)
        except lmdb.Error as error:
            raise translate(error, self._path) from error

    def agents_after(self, position: bytes, agents_max: int, prefix: bytes = b"") -> list[bytes]:
        """Return ids in byte order, those greater than `position`, at most `agents_max`, while they have the prefix."""
        found: list[bytes] = []
        if len(position) > AGENT_ID_BYTES_MAX:
            raise InvalidRequestError("a position is an agent id: this one is too long")
        try:
            with self._transaction.cursor() as cursor:
                # A zero byte more is the next key in byte order.
                here = cursor.set_range(position + b"\0") if position else cursor.first()
                while here and len(found) < agents_max:
                    agent = bytes(cursor.key())
                    if not agent.startswith(prefix):
                        break
                    found.append(agent)
                    here = cursor.next()
        except lmdb.Error as error:
            raise translate(error, self._path) from error
        return found

    def agents(self) -> int:
        """Return how many agents there are."""
        try:
            entries: int = self._transaction.stat(self._databases.images)["entries"]
        except lmdb.Error as error:
            raise translate(error, self._path) from error
        return entries

    def log_after(self, version: int, rows_max: int) -> list[tuple[int, LogRow]]:
        """Return committed writes in order, those with greater versions, at most `rows_max`."""
        trimmed = self.log_trimmed()
        if version < trimmed:
            raise LogTrimmed(version, trimmed)
        rows: list[tuple[int, LogRow]] = []
        try:
            with self._transaction.cursor(self._databases.log) as cursor:
                here = cursor.set_range(version_key(version + 1))
                while here and len(rows) < rows_max:
                    rows.append((version_of_key(cursor.key()), row_decoder.decode(cursor.value())))
                    here = cursor.next()
        except FAILURES as error:
            raise translate(error, self._path) from error
        return rows

    def log_trimmed(self) -> int:
        """Return the newest version whose row has gone from the log, 0 if none has."""
        try:
            return version_of_key(self._transaction.get(TRIMMED_KEY, b"", db=self._databases.meta))
        except lmdb.Error as error:
            raise translate(error, self._path) from error

    def close(self) -> None:
        """End the transaction; every view that it gave is invalid from now on."""
        self._transaction.abort()
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""One moment of a shard in LMDB: a read transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import lmdb
import msgspec

from ...wire.errors import InvalidRequestError, LogTrimmed
from ...wire.protocol.limits import AGENT_ID_BYTES_MAX
from ..engine import LogRow
from ..image_batch import FoundImages
from .errors import FAILURES, translate
from .lookup import FIND_MIN, find
from .schema import IMAGES, Databases

__all__ = ["LMDBSnapshot", "row_decoder"]

row_decoder: Final = msgspec.msgpack.Decoder(LogRow)


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
        """Return the image of each agent, empty where there is none; 0.3 to 1 us each when warm."""
        try:
            return list(map(self._transaction.get, agents, repeat(b"")))
        except lmdb.BadValsizeError as error:
            raise InvalidRequestError("an agent id is empty") from error
        except lmdb.Error as error:
            raise translate(error, self._path) from error

    def find(self, agents: Sequence[bytes]) -> FoundImages:
        """Find the image of each agent; 0.3 us each for many, as `images` for a few."""
        if find is not None and len(agents) >= FIND_MIN:
            try:
                record = self._transaction.get(IMAGES, db=self._databases.main)
            except lmdb.Error as error:
                raise translate(error, self._path) from error
            found = None if record is None else find(record, self._databases.page_bytes, list(agents))
            if found is not None:
                return FoundImages(*found)
        return FoundImages.of(self.images(agents))

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

    def log_after(self, version: int, rows_max: int) -> list[tuple[int, LogRow]]:
        """Return committed writes in order, those with greater versions, at most `rows_max`."""
        trimmed = self.log_trimmed()
        if version < trimmed:
            raise LogTrimmed(version, trimmed)
        rows: list[tuple[int, LogRow]] = []
        try:
            with self._transaction.cursor(self._databases.log) as cursor:
                here = cursor.set_range((version + 1).to_bytes(8, "big"))
                while here and len(rows) < rows_max:
                    rows.append((int.from_bytes(cursor.key(), "big"), row_decoder.decode(cursor.value())))
                    here = cursor.next()
        except FAILURES as error:
            raise translate(error, self._path) from error
        return rows

    def log_trimmed(self) -> int:
        """Return the newest version whose row has gone from the log, 0 if none has."""
        try:
            return int.from_bytes(self._transaction.get(b"trimmed", b"", db=self._databases.meta), "big")
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

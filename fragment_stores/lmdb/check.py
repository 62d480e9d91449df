"""The check of a shard in LMDB: everything in it is read, and compared with everything else.

`verify_environment` looks at one environment that has no writer, and yields what is wrong. LMDB keeps no checksums: a
corrupt page may make it read beyond the file's end, which ends the process (SIGBUS), so that a caller that does not
know a file to be intact calls this in a process of its own.

These are compared:
    every database   its keys grow, and it has as many entries as it says
    images           each decodes, belongs to its shard, and is no older than its fragments, nor newer than the clock
    log              rows decode, have no gaps and end at the clock's version; the newest of an agent has its image's
    expiry           each fragment that expires has its row; rows of fragments that are gone are only counted
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Final

import lmdb
import msgspec

from ...wire.errors import ProtocolError
from ...wire.protocol.image import HEADER_BYTES, decode_image, version_of
from ...wire.protocol.limits import AGENT_ID_BYTES_MAX
from ...wire.protocol.shard_hash import shard_of
from ...wire.protocol.versions import begins_generation, generation_of
from ..engine import LogRow
from ..shard_files import Finding, Verified
from .schema import (
    CLOCK_KEY,
    DATABASES,
    EXPIRY,
    IDENTITY_KEY,
    IMAGES,
    LOG,
    META,
    TRIMMED_KEY,
    decode_clock,
    expiry_row,
    identity_decoder,
    row_decoder,
    version_of_key,
)

__all__ = ["open_copy", "verify_environment"]

_TELL_EVERY: Final = 1_024
"""Entries between two updates of the progress bar."""

_PUT: Final = 1
"""The number of a Put in a row of the log: a kind that it sets is there."""


def open_copy(path: Path) -> lmdb.Environment:
    """Open one LMDB file for reading, without its lock file: it may have no writer meanwhile.

    Raises:
        lmdb.Error, OSError: it is none, or cannot be read.
    """
    return lmdb.open(str(path), subdir=False, max_dbs=4, readonly=True, lock=False, create=False)


def verify_environment(
    environment: lmdb.Environment, verified: Verified, tell: Callable[[int], None] = lambda entries: None
) -> Generator[Finding]:
    """Yield what is wrong with a shard; `tell` is called now and then with the number of entries seen.

    If LMDB itself cannot continue, that is the last finding.
    """
    try:
        databases: dict[bytes, Any] = {}
        for name in DATABASES:
            try:
                databases[name] = environment.open_db(name, create=False)
            except lmdb.NotFoundError:
                yield Finding("structure", f"there is no database {name.decode()!r}")
        if len(databases) < len(DATABASES):
            return
        with environment.begin(buffers=True) as transaction:
            yield from _Verification(transaction, databases, verified, tell).run()
    except lmdb.Error as error:
        yield Finding("structure", f"LMDB cannot read it: {error}")


class _Verification:
    def __init__(
        self,
        transaction: lmdb.Transaction[memoryview],
        databases: dict[bytes, Any],
        verified: Verified,
        tell: Callable[[int], None],
    ) -> None:
        self._transaction = transaction
        self._databases = databases
        self._verified = verified
        self._tell = tell
        self._entries = 0
        self._misplaced: list[Finding] = []
        self._newest: dict[bytes, tuple[int, LogRow]] = {}
        """Version and row of each agent's newest write."""

    def run(self) -> Iterator[Finding]:
        yield from self._verify_meta()
        yield from self._verify_log()
        yield from self._verify_images()
        yield from self._verify_expiry()
        yield from self._misplaced

    def _walk(self, name: bytes) -> Iterator[tuple[bytes, memoryview]]:
        """Yield all entries of a database, with a finding if its keys do not grow or entries are missing."""
        database = self._databases[name]
        before: bytes | None = None
        count = 0
        for key, value in self._transaction.cursor(database):
            here = bytes(key)
            if before is not None and here <= before:
                text = f"database {name.decode()!r}: key {here!r} stands behind {before!r}"
                self._misplaced.append(Finding("structure", text))
            before = here
            count += 1
            self._entries += 1
            if not self._entries % _TELL_EVERY:
                self._tell(self._entries)
            yield here, value
        expected = self._transaction.stat(database)["entries"]
        if count != expected:
            text = f"database {name.decode()!r} says that it has {expected:,} entries, and has {count:,}"
            self._misplaced.append(Finding("structure", text))

    def _verify_meta(self) -> Iterator[Finding]:
        meta = {key: bytes(value) for key, value in self._walk(META)}
        try:
            self._verified.identity = identity_decoder.decode(meta.get(IDENTITY_KEY, b""))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            yield Finding("meta", f"it does not say whose shard it is: {error}")
        clock = decode_clock(meta.get(CLOCK_KEY))
        if clock is not None:
            self._verified.version, self._verified.clock_ms = clock
        else:
            yield Finding("meta", "its clock is missing")
        self._verified.trimmed = version_of_key(meta.get(TRIMMED_KEY, b""))

    def _verify_log(self) -> Iterator[Finding]:
        last = trimmed = self._verified.trimmed
        for key, value in self._walk(LOG):
            self._verified.log_rows += 1
            version = version_of_key(key)
            if len(key) != 8 or version <= trimmed:
                yield Finding("log", f"row {version}: should have gone, the log begins after {trimmed}")
                continue
            if version != last + 1 and not (
                begins_generation(version) and generation_of(version) > generation_of(last)
            ):
                yield Finding("log", f"rows between {last} and {version} are missing")
            last = version
            try:
                row = row_decoder.decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                yield Finding("log", f"row {version} cannot be decoded: {error}")
                continue
            self._newest[row.agent] = version, row
        clock = self._verified.version
        # A sweep that removes nothing may store the clock of a generation in which nothing was written yet.
        if last != clock and (last > clock or not begins_generation(clock, 0)):
            yield Finding("log", f"its newest row has version {last}, and the shard's clock {clock}")

    def _verify_images(self) -> Iterator[Finding]:
        rows = self._newest
        for agent, image in self._walk(IMAGES):
            self._verified.agents += 1
            name = agent.decode(errors="backslashreplace")
            yield from (Finding("images", f"agent {name!r}: {problem}") for problem in self._image(agent, image))
            version = version_of(image)
            row = rows.pop(agent, None)
            if row is not None and row[0] != version:
                yield Finding("log", f"agent {name!r}: its image has version {version}, its newest row {row[0]}")
            elif row is None and version > self._verified.trimmed:
                yield Finding("log", f"agent {name!r}: its image has version {version}, of which there is no row")
        for agent, (written, last) in rows.items():
            if last.operations and last.operations[-1][0] == _PUT:
                name = agent.decode(errors="backslashreplace")
                yield Finding("images", f"agent {name!r}: has no image, and was written by version {written}")

    def _image(self, agent: bytes, image: memoryview) -> Iterator[str]:
        identity, clock = self._verified.identity, self._verified.version
        if len(agent) > AGENT_ID_BYTES_MAX:
            yield f"its id has {len(agent)} bytes; the limit is {AGENT_ID_BYTES_MAX}"
        try:
            agent.decode()
        except UnicodeDecodeError:
            yield "its id is not UTF-8"
        if identity is not None and (there := shard_of(agent, identity.shards)) != identity.shard:
            yield f"belongs to shard {there}"
        if len(image) < HEADER_BYTES:
            yield "its image is shorter than a version"
            return
        try:
            fragments = decode_image(image)
        except ProtocolError as error:
            yield str(error)
            return
        version = version_of(image)
        if version > clock:
            yield f"its image has version {version}, newer than the shard's clock {clock}"
        if not fragments:
            yield "its image has no fragment"
        for kind, fragment in fragments.items():
            self._verified.fragments += 1
            if not 0 < fragment.version <= version:
                yield f"fragment {kind!r} has version {fragment.version}, its image {version}"
            if fragment.expires_ms:
                row = expiry_row(fragment.expires_ms, agent)
                if self._transaction.get(row, db=self._databases[EXPIRY]) is None:
                    yield f"fragment {kind!r} expires, and has no row in the expiry index"

    def _verify_expiry(self) -> Iterator[Finding]:
        images = self._databases[IMAGES]
        for key, _ in self._walk(EXPIRY):
            self._verified.expiry_rows += 1
            if not 8 < len(key) <= 8 + AGENT_ID_BYTES_MAX:
                yield Finding("expiry", f"row {key!r} is none")
                continue
            image = self._transaction.get(key[8:], db=images)
            expires_ms = int.from_bytes(key[:8], "big")
            try:
                fragments = {} if image is None else decode_image(image)
            except ProtocolError:
                continue  # named already
            if all([fragment.expires_ms != expires_ms for fragment in fragments.values()]):
                self._verified.stale_expiry_rows += 1

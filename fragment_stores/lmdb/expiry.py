"""The expiry index of a shard in LMDB: finding due rows, and postponing expiry."""

from __future__ import annotations

from typing import Any

import lmdb
import msgspec

from ...wire.errors import ProtocolError
from ...wire.protocol.image import Fragment, decode_fragment, encode_image, split_image, version_of
from .schema import Databases, expiry_row

__all__ = ["due_rows", "first_expiry_ms", "postpone"]


def first_expiry_ms(cursor: lmdb.Cursor[Any]) -> int:
    """Return the time of the first row of the index, 0 if it has none."""
    return int.from_bytes(cursor.key()[:8], "big") if cursor.first() else 0


def due_rows(cursor: lmdb.Cursor[memoryview], before_ms: int, rows_max: int) -> dict[bytes, bytes]:
    """Return the agents of the first expiry rows that are due, by row."""
    due: dict[bytes, bytes] = {}
    here = cursor.first()
    while here and len(due) < rows_max:
        row = bytes(cursor.key())
        if int.from_bytes(row[:8], "big") > before_ms:
            break
        due[row] = row[8:]
        here = cursor.next()
    return due


def postpone(transaction: lmdb.Transaction[memoryview], databases: Databases, since_ms: int, by_ms: int) -> int:
    """Let fragments written at `since_ms` or later expire `by_ms` later; return how many.

    The transaction's default database is that of the images. They keep their versions: this is no save. 5 us
    for each agent with a fragment that expires.
    """
    with transaction.cursor(databases.expiry) as cursor:
        # Fragments written since then expire after that. The rows are collected before the first is changed.
        agents: dict[bytes, None] = {}
        here = cursor.set_range(since_ms.to_bytes(8, "big"))
        while here:
            agents[bytes(cursor.key()[8:])] = None
            here = cursor.next()
    return sum([_postpone_agent(transaction, databases.expiry, agent, since_ms, by_ms) for agent in agents])


def _postpone_agent(
    transaction: lmdb.Transaction[memoryview], expiry: Any, agent: bytes, since_ms: int, by_ms: int
) -> int:
    image = transaction.get(agent)
    if image is None:
        return 0
    fragments: dict[str, Fragment | msgspec.Raw] = {}
    before: set[int] = set()
    after: set[int] = set()
    moved = 0
    try:
        for kind, raw in split_image(image).items():
            fragment = decode_fragment(raw)
            fragments[kind] = raw
            if not fragment.expires_ms:
                continue
            before.add(fragment.expires_ms)
            expires_ms = fragment.expires_ms
            if fragment.updated_ms >= since_ms:
                expires_ms += by_ms
                fragments[kind] = msgspec.structs.replace(fragment, expires_ms=expires_ms)
                moved += 1
            after.add(expires_ms)
    except ProtocolError:
        return 0  # corrupt: a wake of the agent reports it, and verify names it
    if moved:
        transaction.put(agent, encode_image(version_of(image), fragments))
        for expires_ms in before - after:
            transaction.delete(expiry_row(expires_ms, agent), db=expiry)
        for expires_ms in after - before:
            transaction.put(expiry_row(expires_ms, agent), b"", db=expiry)
    return moved

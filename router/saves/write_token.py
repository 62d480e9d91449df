"""The token of a save: its write id, an idempotency key. Pure.

A save without a key of its caller's gets 16 bytes from its client. The text that its caller sees contains them, and for
each store the shard version that was known when it was first sent: with it a node can decide whether its log reaches
back far enough to say whether the save was applied.

A caller may choose the text itself, before the save is sent, so that it can be repeated even if no answer and no error
ever came back. Such a key names one save of its agent: the same key of another agent is another save. It does not say
when it was first sent, so a node knows it for as long as it is in its log, and treats it as new after that.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from hashlib import blake2b
from typing import Final

import msgspec

from ...wire.errors import InvalidRequestError
from ...wire.protocol.limits import WRITE_ID_BYTES_MAX, WRITE_KEY_BYTES_MAX
from ...wire.protocol.messages import Operation, Put
from ...wire.protocol.write_digest import operations_digest

__all__ = ["WriteToken", "key_digest", "key_token", "parse_token"]

_KEY_ID_BYTES: Final = 24
"""Bytes of the write id derived from a caller's key: not the 16 of a client's own, so that the two never collide."""

_encoder = msgspec.msgpack.Encoder(order="deterministic")


class WriteToken(msgspec.Struct, frozen=True, gc=False):
    """A save's write id, and by store the shard version that was known when it was first sent.

    `key` is the caller's own text, if it chose one.
    """

    write_id: bytes
    seen: dict[str, int]
    key: str = ""

    def __str__(self) -> str:
        if self.key:
            return self.key
        text = self.write_id.hex()
        for store, version in self.seen.items():
            text += f".{store}:{version:x}"
        return text


def parse_token(text: str, stores: Container[str]) -> WriteToken | None:
    """Return the token that an error or a Saved showed as `write_id`, None if it is a text of the caller's own.

    A token names some of `stores`.

    Raises:
        InvalidRequestError: it can be neither.
    """
    try:
        first, *rest = text.split(".")
        write_id = bytes.fromhex(first)
        seen = {store: int(version, 16) for store, version in (part.split(":") for part in rest)}
    except ValueError:
        write_id, seen = b"", {}
    valid = all([store in stores and 0 <= version < 1 << 64 for store, version in seen.items()])
    if 0 < len(write_id) <= WRITE_ID_BYTES_MAX and seen and valid:
        return WriteToken(write_id, seen)
    try:
        size = len(str.encode(text))
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"write_id is valid Unicode, not {text!r}; nothing was sent") from error
    if not 0 < size <= WRITE_KEY_BYTES_MAX:
        raise InvalidRequestError(
            f"write_id has 1 to {WRITE_KEY_BYTES_MAX} bytes of UTF-8; {text[:40]!r} has {size}; nothing was sent"
        )
    return None


def key_token(agent: bytes, key: str, seen: dict[str, int]) -> WriteToken:
    """Return the token of a caller's own key, for a save of this agent."""
    hashed = blake2b(len(agent).to_bytes(2, "big") + agent + key.encode(), digest_size=_KEY_ID_BYTES)
    return WriteToken(hashed.digest(), seen, key)


def key_digest(operations: Iterable[Operation]) -> int:
    """Return the digest of all operations of a save under a caller's key, whatever the order of its mappings.

    A caller that repeats it may have made its values anew: equal ones count as the same.
    """
    return operations_digest(
        [
            msgspec.structs.replace(operation, value=_in_order(operation.value))
            if isinstance(operation, Put) and operation.encoding
            else operation
            for operation in operations
        ]
    )


def _in_order(encoded: bytes) -> bytes:
    try:
        return _encoder.encode(msgspec.msgpack.decode(encoded))
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        return encoded  # keys that have no order, such as numbers beside strings

"""The image that a write makes of the one before: pure, the same for every engine."""

from __future__ import annotations

from typing import cast

import msgspec

from ..wire.errors import ProtocolError
from ..wire.protocol.image import Fragment, decode_fragment, encode_image, expires_ms_of, split_image
from ..wire.protocol.limits import (
    AGENT_ID_BYTES_MAX,
    FRAGMENT_BYTES_MAX,
    IMAGE_BYTES_MAX,
    TTL_MS_MAX,
    WRITE_ID_BYTES_MAX,
    WRITE_OPERATIONS_MAX,
)
from ..wire.protocol.messages import DeleteAgent, DeleteKind, Put, Rejection, RejectionCode, Write

__all__ = ["apply_write", "removed_kinds"]


def apply_write(
    image: memoryview | bytes | None,
    write: Write,
    version: int,
    now_ms: int,
    begun: set[int] | None = None,
    ended: set[int] | None = None,
) -> bytes | memoryview | Rejection | None:
    """Return the agent's image after the write, None if nothing is left of it, or why it cannot be applied.

    `image` is the one before, if any; a write that changes nothing (it deletes absent kinds) gives it back.

    For an index of expiry: `begun` is given each time (ms) at which a fragment that is put here expires; `ended` each
    at which a fragment of the image before would have expired and none of the image after does.

    Raises:
        ProtocolError: the image before cannot be decoded.
    """
    if not 0 < len(write.agent) <= AGENT_ID_BYTES_MAX:
        return Rejection(f"an agent id has 1 to {AGENT_ID_BYTES_MAX} bytes, not {len(write.agent)}")
    try:
        write.agent.decode()
    except UnicodeDecodeError:
        return Rejection(f"an agent id is UTF-8: {write.agent!r} is not")
    if len(write.write_id) > WRITE_ID_BYTES_MAX:
        return Rejection(f"a write id has at most {WRITE_ID_BYTES_MAX} bytes, not {len(write.write_id)}")
    if len(write.operations) > WRITE_OPERATIONS_MAX:
        return Rejection(f"a write has at most {WRITE_OPERATIONS_MAX} operations, not {len(write.operations)}")
    if write.expect is not None and len(write.expect) > WRITE_OPERATIONS_MAX:
        return Rejection(f"a write expects at most {WRITE_OPERATIONS_MAX} kinds, not {len(write.expect)}")
    # Fragments that are not written stay undecoded, as views of `image`, until the new image is made.
    fragments = {} if image is None else cast("dict[str, Fragment | msgspec.Raw]", split_image(image))
    if write.expect is not None:
        found = {kind: _live_version(fragments.get(kind), now_ms) for kind in write.expect}
        if found != write.expect:
            differing = ", ".join(f"{kind} {found[kind]}" for kind in found if found[kind] != write.expect[kind])
            return Rejection(f"other versions are there: {differing}", RejectionCode.CONFLICT, found)
    before = None if ended is None or image is None else {**fragments}
    changed = False
    for operation in write.operations:
        if isinstance(operation, Put):
            if len(operation.value) > FRAGMENT_BYTES_MAX:
                size = f"{len(operation.value):,} bytes; the limit is {FRAGMENT_BYTES_MAX:,}"
                return Rejection(f"fragment {operation.kind!r} has {size}")
            expires_ms = 0
            if operation.ttl_ms or operation.expires_ms:
                expires_ms = operation.expires_ms or now_ms + operation.ttl_ms
                if expires_ms > now_ms + TTL_MS_MAX:
                    lives_ms = expires_ms - now_ms
                    return Rejection(f"fragment {operation.kind!r} lives at most {TTL_MS_MAX} ms, not {lives_ms}")
                if begun is not None:
                    begun.add(expires_ms)
            fragments[operation.kind] = Fragment(
                version, operation.schema, operation.encoding, now_ms, expires_ms, operation.value
            )
            changed = True
        elif isinstance(operation, DeleteKind):
            changed |= fragments.pop(operation.kind, None) is not None
        else:
            changed |= bool(fragments)
            fragments.clear()
    if not changed:
        return image
    merged = encode_image(version, fragments) if fragments else None
    if merged is not None and len(merged) > IMAGE_BYTES_MAX:
        size = f"{len(merged):,} bytes; the limit is {IMAGE_BYTES_MAX:,} (2 MiB)"
        return Rejection(f"the agent's image would have {size}")
    if ended is not None and before is not None:
        _note_ended(ended, before, fragments)
    return merged


def _note_ended(
    ended: set[int], before: dict[str, Fragment | msgspec.Raw], after: dict[str, Fragment | msgspec.Raw]
) -> None:
    for kind, part in before.items():
        if after.get(kind) is not part and (expires_ms := _expires_ms(part)):
            ended.add(expires_ms)
    if ended:  # kinds that were saved together share a row
        ended.difference_update([_expires_ms(part) for part in after.values()])


def _expires_ms(part: Fragment | msgspec.Raw) -> int:
    return expires_ms_of(part) if isinstance(part, msgspec.Raw) else part.expires_ms


def removed_kinds(image: memoryview | bytes | None, write: Write, now_ms: int) -> list[str]:
    """Return the kinds that are there before a write and that it deletes; what has expired is not there.

    Raises:
        ProtocolError: the image cannot be decoded.
    """
    fragments = {} if image is None else split_image(image)
    there = [kind for kind, fragment in fragments.items() if _is_there(fragment, now_ms)]
    if any([isinstance(operation, DeleteAgent) for operation in write.operations]):
        return there
    dropped = {operation.kind for operation in write.operations if isinstance(operation, DeleteKind)}
    return [kind for kind in there if kind in dropped]


def _is_there(fragment: msgspec.Raw, now_ms: int) -> bool:
    try:
        return _live_version(fragment, now_ms) > 0
    except ProtocolError:
        return True  # corrupt, and deleted like any other


def _live_version(fragment: Fragment | msgspec.Raw | None, now_ms: int) -> int:
    """Return a fragment's version, 0 if there is none or it has expired."""
    if isinstance(fragment, msgspec.Raw):
        fragment = decode_fragment(fragment)
    if fragment is None or (fragment.expires_ms and fragment.expires_ms <= now_ms):
        return 0
    return fragment.version

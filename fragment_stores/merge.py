"""What a write makes of an image: pure, the same for every engine."""

from __future__ import annotations

import msgspec

from ..wire.image import Fragment, decode_fragment, encode_image, split_image
from ..wire.limits import (
    AGENT_ID_BYTES_MAX,
    FRAGMENT_BYTES_MAX,
    IMAGE_BYTES_MAX,
    TTL_MS_MAX,
    WRITE_ID_BYTES_MAX,
    WRITE_OPERATIONS_MAX,
)
from ..wire.messages import Drop, Put, Refusal, RefusalCode, Write

__all__ = ["merge"]


def merge(
    image: memoryview | bytes | None, write: Write, version: int, now_ms: int
) -> bytes | memoryview | Refusal | None:
    """Return the agent's image after the write, None where nothing is left of it, or why it cannot be applied.

    `image` is the one before, None where there is none. A write that changes nothing (it deletes what is not there)
    gives back `image` itself.

    Raises:
        ProtocolError: the image before cannot be decoded.
    """
    if not 0 < len(write.agent) <= AGENT_ID_BYTES_MAX:
        return Refusal(f"an agent id has 1 to {AGENT_ID_BYTES_MAX} bytes, not {len(write.agent)}")
    try:
        write.agent.decode()
    except UnicodeDecodeError:
        return Refusal(f"an agent id is UTF-8: {write.agent!r} is not")
    if len(write.write_id) > WRITE_ID_BYTES_MAX:
        return Refusal(f"a write id has at most {WRITE_ID_BYTES_MAX} bytes, not {len(write.write_id)}")
    if len(write.operations) > WRITE_OPERATIONS_MAX:
        return Refusal(f"a write has at most {WRITE_OPERATIONS_MAX} operations, not {len(write.operations)}")
    if write.expect is not None and len(write.expect) > WRITE_OPERATIONS_MAX:
        return Refusal(f"a write expects at most {WRITE_OPERATIONS_MAX} kinds, not {len(write.expect)}")
    # What is not written stays undecoded: it is views of `image` until the new image is made.
    fragments: dict[str, Fragment | msgspec.Raw] = {} if image is None else {**split_image(image)}
    if write.expect is not None:
        found = {kind: _live_version(fragments.get(kind), now_ms) for kind in write.expect}
        if found != write.expect:
            differing = ", ".join(f"{kind} {found[kind]}" for kind in found if found[kind] != write.expect[kind])
            return Refusal(f"other versions are there: {differing}", RefusalCode.CONFLICT, found)
    changed = False
    for operation in write.operations:
        if isinstance(operation, Put):
            if len(operation.value) > FRAGMENT_BYTES_MAX:
                size = f"{len(operation.value):,} bytes; the limit is {FRAGMENT_BYTES_MAX:,}"
                return Refusal(f"fragment {operation.kind!r} has {size}")
            if operation.ttl_ms > TTL_MS_MAX:
                return Refusal(f"fragment {operation.kind!r} lives at most {TTL_MS_MAX} ms, not {operation.ttl_ms}")
            expires_ms = now_ms + operation.ttl_ms if operation.ttl_ms else 0
            fragments[operation.kind] = Fragment(
                version, operation.schema, operation.encoding, now_ms, expires_ms, operation.value
            )
            changed = True
        elif isinstance(operation, Drop):
            changed |= fragments.pop(operation.kind, None) is not None
        else:
            changed |= bool(fragments)
            fragments.clear()
    if not changed:
        return image
    if not fragments:
        return None
    merged = encode_image(version, fragments)
    if len(merged) > IMAGE_BYTES_MAX:
        return Refusal(f"the agent's image would have {len(merged):,} bytes; the limit is {IMAGE_BYTES_MAX:,}")
    return merged


def _live_version(fragment: Fragment | msgspec.Raw | None, now_ms: int) -> int:
    """Return a fragment's version, 0 where there is none or it has expired."""
    if isinstance(fragment, msgspec.Raw):
        fragment = decode_fragment(fragment)
    if fragment is None or (fragment.expires_ms and fragment.expires_ms <= now_ms):
        return 0
    return fragment.version

"""The image: one agent's record in one store, on disk, on the wire and in the client's memory the same bytes.

    8 bytes   the image's version, big-endian: the version of its newest write
    rest      msgpack map: {kind: [version, schema, encoding, updated_ms, expires_ms, value]}

`version` of a fragment is that of the write that last set it; `schema` is the user's number for its layout (0 until
schemas come); `encoding` is one of the constants below; the times are milliseconds since 1970-01-01 UTC of the shard's
clock, `expires_ms` 0 for never; `value` is bytes. A store serves images without looking inside.

Formats: msgpack specification, https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Final

import msgspec

from ..errors import ProtocolError

__all__ = [
    "ENCODING_BYTES",
    "ENCODING_MSGPACK",
    "HEADER_BYTES",
    "Fragment",
    "decode_fragment",
    "decode_image",
    "encode_image",
    "expires_ms_of",
    "select_kinds",
    "split_image",
    "version_of",
]

HEADER_BYTES: Final = 8
ENCODING_BYTES: Final = 0
"""The value is the user's bytes as given."""
ENCODING_MSGPACK: Final = 1
"""The value is the msgpack of the user's object."""


class Fragment(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One agent's value of one kind, as an image holds it."""

    version: int
    schema: int
    encoding: int
    updated_ms: int
    expires_ms: int
    value: bytes


class _Head(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A fragment up to its value."""

    version: int
    schema: int
    encoding: int
    updated_ms: int
    expires_ms: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[str, Fragment])
_fragment_decoder = msgspec.msgpack.Decoder(Fragment)
_head_decoder = msgspec.msgpack.Decoder(_Head)
_raw_decoder = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])

# The exceptions of msgspec for bytes that are no image; text that is not UTF-8 is no DecodeError to it.
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode_image(version: int, fragments: Mapping[str, Fragment | msgspec.Raw]) -> bytes:
    """Return the image of these fragments, some of them as another image has them. Kinds keep their order."""
    return version.to_bytes(HEADER_BYTES, "big") + _encoder.encode(fragments)


def decode_image(image: bytes | memoryview) -> dict[str, Fragment]:
    """Return an image's fragments by kind; their values are copies.

    Raises:
        ProtocolError: the bytes are no image.
    """
    try:
        # The view keeps `image` alive only for the time of this call: the decoder copies what it returns.
        return _decoder.decode(memoryview(image)[HEADER_BYTES:])
    except _UNDECODABLE as error:
        raise ProtocolError(f"not an image: {error}") from error


def split_image(image: bytes | memoryview) -> dict[str, msgspec.Raw]:
    """Return an image's fragments by kind, undecoded: views of `image`, which must outlive them.

    For putting some of them back as they are: half the cost of decoding and encoding five of 512 bytes.

    Raises:
        ProtocolError: the bytes are no image. Whether each fragment is one is seen by `decode_fragment`.
    """
    try:
        return _raw_decoder.decode(memoryview(image)[HEADER_BYTES:])
    except _UNDECODABLE as error:
        raise ProtocolError(f"not an image: {error}") from error


def decode_fragment(raw: msgspec.Raw) -> Fragment:
    """Return one fragment of `split_image`.

    Raises:
        ProtocolError: the bytes are no fragment.
    """
    try:
        return _fragment_decoder.decode(raw)
    except _UNDECODABLE as error:
        raise ProtocolError(f"not an image: {error}") from error


def expires_ms_of(raw: msgspec.Raw) -> int:
    """Return when one fragment of `split_image` expires, 0 for never, also if the bytes are no fragment; 0.2 us."""
    try:
        return _head_decoder.decode(raw).expires_ms
    except _UNDECODABLE:
        return 0


def select_kinds(image: bytes | memoryview, kinds: Container[str]) -> bytes:
    """Return the image cut down to some kinds; it keeps its version, and the fragments their bytes.

    Raises:
        ProtocolError: the bytes are no image.
    """
    chosen = {kind: raw for kind, raw in split_image(image).items() if kind in kinds}
    return bytes(image[:HEADER_BYTES]) + _encoder.encode(chosen)


def version_of(image: bytes | memoryview) -> int:
    """Return an image's version: that of its newest write."""
    return int.from_bytes(image[:HEADER_BYTES], "big")

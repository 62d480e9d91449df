"""JSON documents that carry a checksum of their content: one that is corrupt or half-edited is noticed, not believed.

    {"checksum": "0123456789abcdef", "placement": {...}}

The checksum is XXH3-64 of the content as compact JSON, in 16 hexadecimal digits, so that white space does not count: a
person can read the document, which is indented.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec
import xxhash

__all__ = ["Content", "CorruptDocument", "decode_document", "encode_document"]

_CHECKSUM: Final = "checksum"

_document_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_fields_decoder: Final = msgspec.json.Decoder(dict[str, Any])


class CorruptDocument(Exception):
    """The bytes are no such document; the message says why, and leaves naming the file to the caller."""


class Content(NamedTuple):
    """The content of a document: as compact JSON, and its fields."""

    encoded: bytes
    fields: dict[str, Any]


def encode_document(name: str, content: bytes) -> bytes:
    """Return the document with this content, which is JSON, under a name."""
    compact = _compact(content)
    document = msgspec.json.encode({_CHECKSUM: _checksum(compact), name: msgspec.Raw(compact)})
    return msgspec.json.format(document, indent=2) + b"\n"


def decode_document(name: str, encoded: bytes) -> Content:
    """Return the content of a document.

    Raises:
        CorruptDocument: it is none, or its content is not what its checksum says.
    """
    try:
        document = _document_decoder.decode(encoded)
        if document.keys() != {_CHECKSUM, name}:
            raise CorruptDocument(f"it must have {_CHECKSUM} and {name}, and has {', '.join(document) or 'nothing'}")
        checksum = msgspec.json.decode(document[_CHECKSUM], type=str)
        fields = _fields_decoder.decode(document[name])
        content = _compact(bytes(document[name]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptDocument(str(error)) from error
    if checksum != _checksum(content):
        raise CorruptDocument("it does not match its checksum")
    return Content(content, fields)


def _compact(content: bytes) -> bytes:
    return msgspec.json.format(content, indent=-1)


def _checksum(content: bytes) -> str:
    return f"{xxhash.xxh3_64_intdigest(content):016x}"

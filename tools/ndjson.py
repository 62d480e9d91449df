"""Agents as lines of JSON: what `load` reads and `export` writes. Pure: bytes in, values out.

    {"agent_id": "agent-42", "fragments": {"profile": {"name": "Mia"}, "session": {"$bytes": "AAEC"}}}

One line is one agent. JSON has no bytes, so `{"$bytes": "<base64>"}` stands for them, anywhere in a value. A mapping of
the user's that looks like it survives by escaping: a mapping with a single key of the form `$bytes`, `$$bytes`, ...
gets one more `$` when written and loses one when read. Integers are exact within 64 bits, signed or unsigned; what JSON
or msgpack cannot hold exactly (larger integers, NaN, keys that are not text) is refused, never changed.

Formats: RFC 8259 (JSON), RFC 4648 section 4 (base64, padded), NDJSON as on https://github.com/ndjson/ndjson-spec.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from typing import Final, NamedTuple, cast

import orjson

from ..wire.limits import AGENT_ID_BYTES_MAX

__all__ = [
    "LINE_BYTES_MAX",
    "NESTING_MAX",
    "AgentLine",
    "BrokenLine",
    "NotJson",
    "encode_value",
    "format_line",
    "parse_line",
    "parse_value",
]

NESTING_MAX: Final = 200
"""Levels of lists and mappings in one value: orjson writes 254 at most, and a line adds two and `$bytes` one."""

LINE_BYTES_MAX: Final = 64 << 20
"""Bytes of one line; bounds what a file without line ends costs. An agent of ten stores full to the limit fits."""

_ESCAPED: Final = re.compile(r"\$+bytes", re.ASCII)
_LARGE: Final = float(1 << 63)
_KEYS: Final = ("agent_id", "fragments")


class BrokenLine(ValueError):
    """A line, or the JSON of one value, that cannot be taken as it stands; the message says what is wrong with it."""


class NotJson(ValueError):
    """A value that JSON cannot hold without changing it; the message says what."""


class AgentLine(NamedTuple):
    """One agent as it stood on a line: its id and its values by kind."""

    agent_id: str
    fragments: dict[str, object]


def parse_line(line: bytes) -> AgentLine:
    """Return the agent of one line.

    Raises:
        BrokenLine: not JSON, a key missing or too many, a wrong type, an id outside its limits, a broken `$bytes`.
    """
    document = _parse_json(line)
    if not isinstance(document, dict):
        raise BrokenLine(f"expected an object with agent_id and fragments, got {_json_type(document)}")
    fields = cast("dict[str, object]", document)
    for key in _KEYS:
        if key not in fields:
            raise BrokenLine(f"no {key}")
    if len(fields) > len(_KEYS):
        extra = ", ".join(repr(key) for key in fields if key not in _KEYS)
        raise BrokenLine(f"unknown key {extra}; a line has agent_id and fragments")
    agent_id = _check_agent_id(fields["agent_id"])
    fragments = fields["fragments"]
    if not isinstance(fragments, dict):
        raise BrokenLine(f"fragments must be an object of kind: value, got {_json_type(fragments)}")
    if not fragments:
        raise BrokenLine("fragments is empty: nothing to save")
    values = cast("dict[str, object]", fragments)
    return AgentLine(agent_id, {kind: _decode_field(value, line, kind) for kind, value in values.items()})


def parse_value(text: bytes) -> object:
    """Return the value that a JSON text stands for, `$bytes` included.

    Raises:
        BrokenLine: it is not JSON, or holds what cannot be kept exactly.
    """
    return _decode_field(_parse_json(text), text, "")


def format_line(agent_id: str, fragments: Mapping[str, object]) -> bytes:
    """Return an agent's line, its newline included; kinds keep the order of the mapping.

    Raises:
        NotJson: a value that JSON cannot hold.
    """
    values: dict[str, object] = {}
    for kind, value in fragments.items():
        try:
            values[kind] = encode_value(value)
        except NotJson as error:
            raise NotJson(f"{kind}: {error}") from None
    return orjson.dumps({"agent_id": agent_id, "fragments": values}, option=orjson.OPT_APPEND_NEWLINE)


def encode_value(value: object) -> object:
    """Return a value as plain JSON types, bytes as `{"$bytes": base64}`.

    Raises:
        NotJson: not a finite number, an integer beyond 64 bits, a key that is not text, a type that JSON has not, or
            nested deeper than NESTING_MAX.
    """
    return _encode(value, NESTING_MAX)


def _parse_json(text: bytes) -> object:
    try:
        return cast("object", orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise BrokenLine(f"not JSON: {error.msg} (column {error.colno})") from None


def _check_agent_id(agent_id: object) -> str:
    if not isinstance(agent_id, str):
        raise BrokenLine(f"agent_id must be a string, got {_json_type(agent_id)}")
    size = len(agent_id.encode())
    if not 1 <= size <= AGENT_ID_BYTES_MAX:
        raise BrokenLine(f"agent_id has {size} bytes of UTF-8; 1 to {AGENT_ID_BYTES_MAX} are permitted")
    return agent_id


def _decode_field(value: object, text: bytes, kind: str) -> object:
    try:
        try:
            return _decode(value, NESTING_MAX)
        except _Inexact:
            _check_integers(text)
            return _decode(value, NESTING_MAX, large=True)
    except BrokenLine as error:
        raise BrokenLine(f"{kind}: {error}" if kind else str(error)) from None


def _check_integers(text: bytes) -> None:
    # orjson reads an integer beyond 64 bits as a float, without a word. The standard parser tells the two apart; it is
    # slow, so it only runs where such a large float was met.
    try:
        json.loads(text, parse_int=_check_integer)
    except RecursionError:
        raise BrokenLine(f"nested deeper than {NESTING_MAX} levels") from None


class _Inexact(Exception):
    """A float so large that it may have been written as an integer."""


def _check_integer(digits: str) -> int:
    # Python's own limit of 4,300 digits to an int is not reached: 20 digits are more than 64 bits.
    if len(digits) > len("-9223372036854775808") or not -(1 << 63) <= int(digits) < 1 << 64:
        shown = digits if len(digits) <= 40 else f"{digits[:40]}..."
        raise BrokenLine(f"integer {shown} does not fit into 64 bits")
    return int(digits)


def _decode(value: object, levels: int, *, large: bool = False) -> object:
    if isinstance(value, float):
        if abs(value) >= _LARGE and not large:
            raise _Inexact
        return value
    if not isinstance(value, dict | list):
        return value
    key = ""
    if isinstance(value, dict) and len(mapping := cast("dict[str, object]", value)) == 1:
        ((key, item),) = mapping.items()
        if key == "$bytes":
            return _decode_bytes(item)
    if levels == 0:
        raise BrokenLine(f"nested deeper than {NESTING_MAX} levels")
    if isinstance(value, list):
        items = cast("list[object]", value)
        return [_decode(item, levels - 1, large=large) for item in items]
    mapping = cast("dict[str, object]", value)
    if _ESCAPED.fullmatch(key):
        return {key[1:]: _decode(mapping[key], levels - 1, large=large)}
    return {key: _decode(item, levels - 1, large=large) for key, item in mapping.items()}


def _decode_bytes(text: object) -> bytes:
    if not isinstance(text, str):
        raise BrokenLine(f"$bytes must be a string of base64, got {_json_type(text)}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BrokenLine(f"$bytes is not base64: {error}") from None


def _encode(value: object, levels: int) -> object:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise NotJson(f"integer {value} does not fit into 64 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotJson(f"JSON has no {value}")
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": base64.b64encode(cast("bytes", value)).decode("ascii")}
    if not isinstance(value, dict | list | tuple):
        raise NotJson(f"JSON has no {type(value).__name__}")
    if levels == 0:
        raise NotJson(f"nested deeper than {NESTING_MAX} levels")
    if isinstance(value, dict):
        return _encode_mapping(cast("dict[object, object]", value), levels)
    items = cast("list[object] | tuple[object, ...]", value)
    return [_encode(item, levels - 1) for item in items]


def _encode_mapping(mapping: dict[object, object], levels: int) -> dict[str, object]:
    encoded: dict[str, object] = {}
    for key, item in mapping.items():
        if not isinstance(key, str):
            raise NotJson(f"the key {key!r} is not text")
        encoded[key] = _encode(item, levels - 1)
    if len(encoded) == 1:
        ((key, item),) = encoded.items()
        if _ESCAPED.fullmatch(key):
            return {f"${key}": item}
    return encoded


_JSON_TYPES: Final[dict[type, str]] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def _json_type(value: object) -> str:
    return _JSON_TYPES[type(value)]

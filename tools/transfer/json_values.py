"""Values as JSON for people and other programs: what msgpack has and JSON has not stands in tagged objects.

    bytes                                   {"$bytes": "<base64>"}
    a datetime with a time zone             {"$datetime": "2026-01-02T03:04:05.678901Z"}, in UTC
    NaN and the infinities                  {"$float": "NaN"}, "Infinity", "-Infinity"
    a mapping with a key that is not text   {"$map": [[key, value], ...]}; a tuple as a key is a list
    an extension of msgpack's               {"$ext": [code, "<base64>"]}

A mapping of the user's that looks like one of these survives by escaping: a mapping with a single key of the form
`$bytes`, `$$bytes`, ... gets one more `$` when written and loses one when read, and the same for the other tags.

Integers are exact within 64 bits, signed or unsigned. Values that cannot be kept exactly (larger integers, a key that
is there twice) are rejected, never changed. Pure: bytes in, values out.

Formats: RFC 8259 (JSON), RFC 4648 section 4 (base64, padded), RFC 3339 (times). "NaN" and "Infinity" are spelled as in
the JSON of Protocol Buffers.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, cast

import msgspec
import orjson

from ...wire.protocol.limits import NESTING_MAX

__all__ = [
    "NotJson",
    "UnreadableJson",
    "encode_value",
    "json_type",
    "parse_json",
    "parse_time",
    "parse_value",
    "read_value",
    "write_json",
]

_ESCAPED: Final = re.compile(r"\$+(?:bytes|datetime|float|map|ext)", re.ASCII)
_LARGE: Final = float(1 << 63)
_FLOATS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class UnreadableJson(ValueError):
    """JSON that is none, or that holds what cannot be kept exactly; the message says what is wrong with it."""


class NotJson(ValueError):
    """A value that JSON cannot hold without changing it; the message says what."""


# --- reading ---


def parse_value(text: bytes) -> object:
    """Return the value that a JSON text stands for, tagged objects included.

    Raises:
        UnreadableJson: it is not JSON, or holds what cannot be kept exactly.
    """
    return read_value(parse_json(text), text)


def parse_json(text: bytes) -> object:
    """Return a JSON text as plain types, whose objects are to be read with `read_value`.

    Raises:
        UnreadableJson: it is not JSON, or an object in it has a key twice.
    """
    try:
        document = cast("object", orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise UnreadableJson(f"not JSON: {error.msg} (column {error.colno})") from None
    if _has_fewer_keys(document, text):
        _reject_duplicates(text)
    return document


def read_value(document: object, text: bytes) -> object:
    """Return the value that a part of a parsed JSON text stands for.

    Raises:
        UnreadableJson: it holds what cannot be kept exactly, or a broken tagged object.
    """
    try:
        return _read(document, NESTING_MAX)
    except _Inexact:
        _check_integers(text)
        return _read(document, NESTING_MAX, large=True)


def parse_time(text: object, what: str) -> datetime:
    """Return a time of RFC 3339, in UTC.

    Raises:
        UnreadableJson: it is none, or has more than microseconds.
    """
    if not isinstance(text, str) or not _TIME.fullmatch(text):
        shown = repr(text) if isinstance(text, str) else json_type(text)
        raise UnreadableJson(f'{what} must be a time such as "2026-01-02T03:04:05.678Z", got {shown:.60}')
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UnreadableJson(f"{what} is no time: {error}") from None


def _has_fewer_keys(document: object, text: bytes) -> bool:
    """Return whether a parsed document has fewer keys than its text: orjson keeps the last of two, without a word.

    Each key has a colon. Those within strings are as many in the text as in the document written again, unless one is
    escaped: 20 us for 20 KB, where counting the keys takes 320.
    """
    if b"\\u003" not in text:
        with contextlib.suppress(orjson.JSONEncodeError):  # deeper than it writes
            return orjson.dumps(document).count(b":") != text.count(b":")
    return _STRING.sub(b"", text).count(b":") != _count_keys(document)


def _count_keys(document: object) -> int:
    count, waiting = 0, [document]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            mapping = cast("dict[str, object]", item)
            count += len(mapping)
            waiting.extend(mapping.values())
        elif isinstance(item, list):
            waiting.extend(cast("list[object]", item))
    return count


def _reject_duplicates(text: bytes) -> None:
    def check(pairs: list[tuple[str, object]]) -> None:
        seen = set[str]()
        for key, _ in pairs:
            if key in seen:
                raise UnreadableJson(f"the key {key[:60]!r} is there twice")
            seen.add(key)

    try:
        json.loads(text, object_pairs_hook=check)
    except RecursionError:
        raise UnreadableJson("a key is there twice") from None


def _check_integers(text: bytes) -> None:
    # orjson reads an integer beyond 64 bits as a float, without a word. The standard parser tells the two apart; it is
    # slow, so it only runs where such a large float was met.
    try:
        json.loads(text, parse_int=_check_integer)
    except RecursionError:
        raise UnreadableJson(f"nested deeper than {NESTING_MAX} levels") from None


class _Inexact(Exception):
    """A float so large that it may have been written as an integer."""


def _check_integer(digits: str) -> int:
    # Python's own limit of 4,300 digits to an int is not reached: 20 digits are more than 64 bits.
    if len(digits) > len("-9223372036854775808") or not -(1 << 63) <= int(digits) < 1 << 64:
        shown = digits if len(digits) <= 40 else f"{digits[:40]}..."
        raise UnreadableJson(f"integer {shown} does not fit into 64 bits")
    return int(digits)


def _read(value: object, levels: int, *, large: bool = False) -> object:
    if isinstance(value, float):
        if abs(value) >= _LARGE and not large:
            raise _Inexact
        return value
    if not isinstance(value, dict | list):
        return value
    key = ""
    if isinstance(value, dict) and len(mapping := cast("dict[str, object]", value)) == 1:
        ((key, item),) = mapping.items()
        if key in _SCALARS:
            return _SCALARS[key](item)
    if levels == 0:
        raise UnreadableJson(f"nested deeper than {NESTING_MAX} levels")
    if isinstance(value, list):
        return [_read(item, levels - 1, large=large) for item in cast("list[object]", value)]
    mapping = cast("dict[str, object]", value)
    if key == "$map":
        return _read_map(mapping[key], levels - 1, large=large)
    if _ESCAPED.fullmatch(key):
        return {key[1:]: _read(mapping[key], levels - 1, large=large)}
    return {key: _read(item, levels - 1, large=large) for key, item in mapping.items()}


def _read_map(pairs: object, levels: int, *, large: bool) -> dict[object, object]:
    mapping: dict[object, object] = {}
    if not isinstance(pairs, list):
        raise UnreadableJson(f"$map must be a list of pairs, got {json_type(pairs)}")
    for pair in cast("list[object]", pairs):
        if not isinstance(pair, list) or len(entry := cast("list[object]", pair)) != 2:
            raise UnreadableJson("$map must be a list of pairs, a key and a value each")
        key = _as_key(_read(entry[0], levels, large=large))
        if key in mapping:
            raise UnreadableJson(f"$map has the key {key!r:.60} twice")
        mapping[key] = _read(entry[1], levels, large=large)
    return mapping


def _as_key(value: object) -> object:
    if isinstance(value, list):
        return tuple([_as_key(item) for item in cast("list[object]", value)])
    if isinstance(value, dict | msgspec.msgpack.Ext):
        raise UnreadableJson("$map has a key that is a mapping or an extension: no key can be")
    return value


def _read_bytes(text: object, tag: str = "$bytes") -> bytes:
    if not isinstance(text, str):
        raise UnreadableJson(f"{tag} must be a string of base64, got {json_type(text)}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnreadableJson(f"{tag} is not base64: {error}") from None


def _read_datetime(text: object) -> datetime:
    return parse_time(text, "$datetime")


def _read_float(text: object) -> float:
    if not isinstance(text, str) or text not in _FLOATS:
        raise UnreadableJson(f"$float is one of {', '.join(_FLOATS)}, got {text!r:.60}")
    return _FLOATS[text]


def _read_ext(item: object) -> msgspec.msgpack.Ext:
    if isinstance(item, list) and len(parts := cast("list[object]", item)) == 2:
        code, text = parts
        if isinstance(code, int) and not isinstance(code, bool) and -128 <= code <= 127:
            return msgspec.msgpack.Ext(code, _read_bytes(text, "$ext"))
    raise UnreadableJson("$ext is a list of a code from -128 to 127 and a string of base64")


_SCALARS: Final[dict[str, Callable[[object], object]]] = {
    "$bytes": _read_bytes,
    "$datetime": _read_datetime,
    "$float": _read_float,
    "$ext": _read_ext,
}


# --- writing ---


def encode_value(value: object) -> object:
    """Return a value as plain JSON types, with tagged objects for what JSON has not.

    Raises:
        NotJson: an integer beyond 64 bits, a type that no value of a fragment has, or nested deeper than NESTING_MAX.
    """
    return _encode(value, NESTING_MAX)


def write_json(document: object, *, pretty: bool = False) -> bytes:
    """Return plain JSON types as a line of JSON without its end, or over several lines for people."""
    try:
        return orjson.dumps(document, option=orjson.OPT_INDENT_2 if pretty else 0)
    except orjson.JSONEncodeError:
        # orjson ends at 254 levels; a value of NESTING_MAX mappings with numbers as keys has three times as many.
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _encode(value: object, levels: int) -> object:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise NotJson(f"integer {value} does not fit into 64 bits")
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return {"$float": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": _base64(value)}
    if isinstance(value, datetime) and value.tzinfo is not None:
        return {"$datetime": value.astimezone(UTC).isoformat().replace("+00:00", "Z")}
    if isinstance(value, msgspec.msgpack.Ext):
        return {"$ext": [value.code, _base64(value.data)]}
    if not isinstance(value, dict | list | tuple):
        raise NotJson(f"JSON has no {type(value).__name__}")
    if levels == 0:
        raise NotJson(f"nested deeper than {NESTING_MAX} levels")
    if isinstance(value, dict):
        return _encode_mapping(cast("dict[object, object]", value), levels - 1)
    items = cast("list[object] | tuple[object, ...]", value)
    return [_encode(item, levels - 1) for item in items]


def _encode_mapping(mapping: dict[object, object], levels: int) -> dict[str, object]:
    encoded: dict[str, object] = {}
    for key, item in mapping.items():
        if not isinstance(key, str):
            return {"$map": [[_encode(key, levels), _encode(item, levels)] for key, item in mapping.items()]}
        encoded[key] = _encode(item, levels)
    if len(encoded) == 1:
        ((key, item),) = encoded.items()
        if _ESCAPED.fullmatch(key):
            return {f"${key}": item}
    return encoded


def _base64(value: Any) -> str:
    return base64.b64encode(value).decode("ascii")


_JSON_TYPES: Final[dict[type, str]] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def json_type(value: object) -> str:
    """Return what a part of a parsed JSON text is, for people."""
    return _JSON_TYPES[type(value)]

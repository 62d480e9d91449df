"""Values as JSON: a round trip, with tags for types that JSON lacks, and rejection of all other values."""

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.router.client.value_codec import ValueCodec
from dawnchorus.tools.transfer.json_values import (
    NotJson,
    UnreadableJson,
    encode_value,
    parse_json,
    parse_value,
    write_json,
)
from dawnchorus.wire.protocol.limits import NESTING_MAX

Ext = msgspec.msgpack.Ext
CODEC = ValueCodec("context")

# Keys near the escape are what the escaping has to survive; everything else is met by plain text.
tags = st.sampled_from(["bytes", "datetime", "float", "map", "ext", "other"])
dollars = st.sampled_from(["", "$", "$$", "$$$"])
text_keys = st.tuples(dollars, tags).map("".join) | st.text(max_size=5)
moments = st.datetimes(timezones=st.just(UTC))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(1 << 63), max_value=(1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.just(math.nan)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | moments
    | st.builds(Ext, st.integers(-128, 127).filter(lambda code: code != -1), st.binary(max_size=9))
)
plain_keys: st.SearchStrategy[Any] = (
    text_keys
    | st.none()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=5)
    | moments
)
keys = plain_keys | st.tuples(plain_keys, st.tuples(plain_keys))


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Everything that holds other values."""
    return (
        st.lists(inner, max_size=3)
        | st.dictionaries(text_keys, inner, max_size=2)
        | st.dictionaries(keys, inner, max_size=3)
    )


values: st.SearchStrategy[Any] = st.recursive(scalars, nested, max_leaves=15)


def same(left: object, right: object) -> bool:
    """Equal in value and type throughout: 1, 1.0 and True are three values, and 0.0 and -0.0 two."""
    return (
        repr(left) == repr(right)
        if not has_ext(left)
        else msgspec.msgpack.encode(left) == msgspec.msgpack.encode(right)
    )


def is_mapping(value: Any) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def has_ext(value: Any) -> bool:
    """Return whether an extension, whose repr says nothing, is in a value."""
    if is_mapping(value):
        return any(map(has_ext, value.values()))
    return any(map(has_ext, value)) if is_list(value) else isinstance(value, Ext)


@given(values)
def test_savable_value_survives_json_of_any_writer(value: Any) -> None:
    _, encoded = CODEC.encode([value])  # what an export sees is what a wake gives
    [woken] = CODEC.decoder.decode(encoded)
    document = encode_value(woken)
    assert same(parse_value(write_json(document)), woken)
    assert same(parse_value(json.dumps(document, indent=1).encode()), woken)
    CODEC.encode(woken)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"$bytes": "AAEC"}', b"\x00\x01\x02"),
        (b'{"\\u0024bytes": ""}', b""),
        (b'{"$bytes": "AA==", "more": 1}', {"$bytes": "AA==", "more": 1}),
        (b'{"$$bytes": "not base64 !"}', {"$bytes": "not base64 !"}),
        (b'{"$$$bytes": 5}', {"$$bytes": 5}),
        (b'{"$$map": 5}', {"$map": 5}),
        (b'{"$other": 5}', {"$other": 5}),
        (b'{"$$other": 5}', {"$$other": 5}),
        (b'[{"a": {"$bytes": "/w=="}}]', [{"a": b"\xff"}]),
        (b"18446744073709551615", (1 << 64) - 1),
        (b"-9223372036854775808", -(1 << 63)),
        (b"1e30", 1e30),
        (b"18446744073709551616.0", float(1 << 64)),
        (b'{"$datetime": "2026-01-02T03:04:05Z"}', datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (b'{"$datetime": "2026-01-02T03:04:05.678901+02:00"}', datetime(2026, 1, 2, 1, 4, 5, 678901, tzinfo=UTC)),
        (b'{"$float": "NaN"}', math.nan),
        (b'{"$float": "-Infinity"}', -math.inf),
        (b'{"$map": [[1, "a"], ["1", {"$bytes": ""}], [null, 0]]}', {1: "a", "1": b"", None: 0}),
        (b'{"$map": [[[1, [2]], "a"]]}', {(1, (2,)): "a"}),
        (b'{"$map": []}', {}),
        (b'{"a": "1:2", "b:": ":"}', {"a": "1:2", "b:": ":"}),
        (b'{"a": "\\":", "b": {"a": 1}}', {"a": '":', "b": {"a": 1}}),
    ],
)
def test_what_a_json_text_stands_for(text: bytes, value: object) -> None:
    assert same(parse_value(text), value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "not JSON"),
        (b"NaN", "not JSON"),
        (b'{"$bytes": 5}', "$bytes must be a string of base64, got a number"),
        (b'{"$bytes": "A"}', "$bytes is not base64"),
        (b'{"$bytes": "AA==\\n"}', "$bytes is not base64"),
        (b'{"$datetime": 5}', '$datetime must be a time such as "2026-01-02T03:04:05.678Z", got a number'),
        (b'{"$datetime": "2026-01-02T03:04:05"}', "$datetime must be a time"),
        (b'{"$datetime": "2026-01-02T03:04:05.1234567Z"}', "$datetime must be a time"),
        (b'{"$datetime": "2026-13-02T03:04:05Z"}', "$datetime is no time"),
        (b'{"$datetime": "0001-01-01T00:00:00+14:00"}', "$datetime is no time"),
        (b'{"$float": 1.5}', "$float is one of NaN, Infinity, -Infinity"),
        (b'{"$float": "nan"}', "$float is one of"),
        (b'{"$map": {}}', "$map must be a list of pairs"),
        (b'{"$map": [[1]]}', "$map must be a list of pairs"),
        (b'{"$map": [1]}', "$map must be a list of pairs"),
        (b'{"$map": [[{}, 1]]}', "$map has a key that is a mapping"),
        (b'{"$map": [[[{"a": 1}], 1]]}', "$map has a key that is a mapping"),
        (b'{"$map": [[1, "a"], [2, "b"], [1, "c"]]}', "$map has the key 1 twice"),
        (b'{"$map": [[1, "a"], [true, "c"]]}', "$map has the key True twice"),
        (b'{"$ext": [300, ""]}', "$ext is a list of a code"),
        (b'{"$ext": [true, ""]}', "$ext is a list of a code"),
        (b'{"$ext": [3]}', "$ext is a list of a code"),
        (b'{"$ext": [3, "A"]}', "$ext is not base64"),
        (b"18446744073709551616", "integer 18446744073709551616 does not fit into 64 bits"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
        (b'[{"x": ":", "y": {"a": 1, "\\u0061": 3}}]', "the key 'a' is there twice"),
        (b'{"a:": 1, "a:": 3}', "the key 'a:' is there twice"),
    ],
)
def test_what_cannot_be_kept_is_rejected_by_name(text: bytes, complaint: str) -> None:
    with pytest.raises(UnreadableJson) as caught:
        parse_value(text)
    assert complaint in str(caught.value)


json_keys = st.sampled_from(['"a"', '"b"', '":"', '"a:\\""', '"\\u0061"', '"\\\\"', '"\\u003a"', '"\\u003A"'])


@given(
    st.lists(
        st.tuples(json_keys, st.sampled_from(['":"', '"\\u003a"', "{}", '{"a": 1}', '["a:", 5]', '"\\\\\\":"'])),
        max_size=5,
    )
)
def test_duplicate_key_is_rejected_and_no_other(pairs: list[tuple[str, str]]) -> None:
    text = "[{%s}]" % ", ".join([f"{key} : {value}" for key, value in pairs])  # noqa: UP031 -- braces
    once = {orjson.loads(key) for key, _ in pairs}
    if len(once) == len(pairs):
        assert len(orjson.loads(text)[0]) == len(pairs)
        parse_value(text.encode())
    else:
        with pytest.raises(UnreadableJson, match="is there twice"):
            parse_value(text.encode())


HOLDERS: list[Callable[[Any], Any]] = [lambda value: [value], lambda value: {"a": value}, lambda value: {1: value}]


@pytest.mark.parametrize("hold", HOLDERS)
def test_savable_nesting_is_shown_and_read(hold: Callable[[Any], Any]) -> None:
    value: Any = b"deep"
    for _ in range(NESTING_MAX):
        value = hold(value)
    CODEC.encode(value)
    document = {"values": {"context": encode_value(value)}}
    for pretty in (False, True):
        assert parse_json(write_json(document, pretty=pretty)) == document
    assert same(parse_value(write_json(encode_value(value))), value)
    with pytest.raises(NotJson, match="nested deeper"):
        encode_value(hold(value))
    with pytest.raises(UnreadableJson, match="nested deeper"):
        parse_value(b"[" + write_json(encode_value(value)) + b"]")
    with pytest.raises(UnreadableJson, match="nested deeper"):
        parse_value(b"[" * (NESTING_MAX + 1) + b"1e300" + b"]" * (NESTING_MAX + 1))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (datetime(2026, 1, 1), "JSON has no datetime"),
        ({1}, "JSON has no set"),
        (1 << 64, "integer 18446744073709551616 does not fit into 64 bits"),
    ],
)
def test_what_json_cannot_hold_is_rejected_by_name(value: object, complaint: str) -> None:
    with pytest.raises(NotJson) as caught:
        encode_value(value)
    assert str(caught.value) == complaint


PAGE = (Path(__file__).parents[3] / "docs" / "values.md").read_text(encoding="utf-8").split("## In JSON")[1]
ROWS = re.findall(r"^\| `(.+)` \| `(\{.+\})` \|$", PAGE.split("\n## ")[0], re.MULTILINE)


@pytest.mark.parametrize(("value", "text"), ROWS)
def test_the_table_of_the_documentation_holds(value: str, text: str) -> None:
    meant = eval(value, {"datetime": datetime, "UTC": UTC, "Ext": Ext})
    assert orjson.loads(write_json(encode_value(meant))) == orjson.loads(text)
    assert same(parse_value(text.encode()), meant)


def test_the_documentation_has_every_tag() -> None:
    assert len(ROWS) >= 9
    assert all([f'{{"${tag}"' in PAGE for tag in ("bytes", "datetime", "float", "map", "ext")])

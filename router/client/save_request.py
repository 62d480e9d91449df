"""A save as its caller requests it, checked before anything is sent: kinds and values, deletions, expectations.

Arguments become exact values here: an invalid number, or an object that only equals a name or a number, must fail its
caller's own call, and not the saves that travel in the same message.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from ...wire.errors import InvalidRequestError
from ...wire.protocol.messages import DeleteAgent, DeleteKind, Operation
from ..arguments import Seconds, exact_key, listed_ids
from ..saves.agent_write import AgentWrite, Saved, SavedVersions
from ..saves.save_coalescer import NewWrite
from ..wakes.agent_state import AgentState
from .kind_registry import Kinds, as_kinds

__all__ = ["Expect", "ManyDeletes", "ManyExpect", "ManySaves", "deletions", "expectations", "operations"]

Expect: TypeAlias = AgentState | Saved | Mapping[str, int] | int | None
"""The versions that a save expects: those of a state or of an earlier save, versions by kind, or 0: none yet."""

ManyExpect: TypeAlias = Mapping[str, Expect] | Collection[AgentState | Saved] | int | None
"""The same for many agents: by agent id, or states and results, each of which names its agent; or 0."""

T = TypeVar("T")


class MakeWrite(Protocol):
    """A function that makes a write and its token."""

    def __call__(
        self,
        agent_id: str,
        agent: bytes,
        hashed: int,
        operations: Mapping[str, list[Operation]],
        expect: Mapping[str, Mapping[str, int]] | None = None,
        write_id: str | None = None,
    ) -> AgentWrite:
        """Return the write."""
        ...


def operations(
    kinds: Kinds, fragments: Mapping[str, Any], ttl_s: Seconds | None, drop: Iterable[str] | None
) -> dict[str, list[Operation]]:
    """Return the operations of a save by store: those that write, and then those that delete.

    Raises:
        UnknownKindError, InvalidRequestError: nothing can be sent of it.
    """
    if not isinstance(fragments, dict):  # almost all are: 0.3 us less
        fragments = _mapping(fragments)
    if drop is None:
        return kinds.by_store(fragments, ttl_s)
    dropped = kinds.stores_of(drop)
    both = [kind for some in dropped.values() for kind in some or () if kind in fragments]
    if both:
        raise InvalidRequestError(f"a save cannot both write and drop {', '.join(map(repr, both))}")
    by_store = kinds.by_store(fragments, ttl_s) if fragments or not dropped else {}
    for store, some in dropped.items():
        by_store.setdefault(store, []).extend([DeleteKind(kind) for kind in some or ()])
    return by_store


def _mapping(fragments: object) -> Mapping[str, Any]:
    if not isinstance(fragments, Mapping):
        raise InvalidRequestError(f"a save takes a mapping of kinds to values, not {fragments!r}")
    return cast("Mapping[str, Any]", fragments)


def deletions(kinds: Kinds, chosen: Iterable[str] | None) -> dict[str, list[Operation]]:
    """Return the operations that delete these kinds, None for the entire agent, by store.

    Raises:
        UnknownKindError, InvalidRequestError: nothing can be sent of it.
    """
    by_store: dict[str, list[Operation]] = {
        store: [DeleteAgent()] if some is None else [DeleteKind(kind) for kind in some]
        for store, some in kinds.stores_of(chosen).items()
    }
    if not by_store:
        raise InvalidRequestError("a delete needs at least one kind")
    return by_store


def expectations(
    kinds: Kinds, agent_id: str, expect: Expect, by_store: Mapping[str, list[Operation]]
) -> dict[str, dict[str, int]]:
    """Return the versions that each store has to find, kind -> version, for these operations on an agent.

    Of a state, or of the result of a save, only the kinds being written or deleted count; 0 means that none of them may
    exist. A mapping may name other kinds as well, of the stores that are written.

    Raises:
        FragmentUnavailable: the state does not know the version of a kind being written.
        InvalidRequestError, UnknownKindError: it is none of these, or another agent's, or of a store not written.
    """
    if expect is None:
        return {}
    versions = _versions(agent_id, expect, _written(kinds, by_store))
    expected: dict[str, dict[str, int]] = {}
    for kind, version in versions.items():
        store = kinds.require(kind)
        if store not in by_store:
            raise InvalidRequestError(f"expect names {kind!r} of store {store!r}, to which nothing is written")
        expected.setdefault(store, {})[str.__str__(kind)] = _exact_version(kind, version)
    return expected


def _exact_version(kind: str, version: object) -> int:
    if not isinstance(version, int) or isinstance(version, bool) or not 0 <= version < 1 << 64:
        raise InvalidRequestError(f"expect: {version!r} is no version (of {kind!r})")
    return int.__add__(version, 0)


def _versions(
    agent_id: str, expect: AgentState | Saved | Mapping[str, int] | int, written: list[str]
) -> Mapping[str, int]:
    if isinstance(expect, AgentState | Saved):
        if expect.agent_id != agent_id:
            raise InvalidRequestError(f"expect is what agent {expect.agent_id!r} was, not {agent_id!r}")
        if isinstance(expect, AgentState):
            return {kind: expect.vouched_version(kind) for kind in written}
        unknown = [kind for kind in written if kind not in expect.versions]
        if unknown:
            raise InvalidRequestError(
                f"expect is a save that did not write {', '.join(unknown)}: their versions are not known"
            )
        saved = _not_there(expect.versions)
        return {kind: saved[kind] for kind in written}
    if isinstance(expect, Mapping):
        return _not_there(expect)
    if type(expect) is int and expect == 0:
        return dict.fromkeys(written, 0)
    raise InvalidRequestError(
        f"expect is a state, the result of a save, a mapping of kinds to versions, or 0, not {expect!r}"
    )


def _not_there(versions: Mapping[str, int]) -> Mapping[str, int]:
    """Return the expected versions: 0 for kinds that a save deleted."""
    if isinstance(versions, SavedVersions):
        return {kind: 0 if kind in versions.deleted else version for kind, version in versions.items()}
    return versions


def _written(kinds: Kinds, by_store: Mapping[str, list[Operation]]) -> list[str]:
    """Return the kinds that operations write or delete."""
    written: list[str] = []
    for store, some in by_store.items():
        for operation in some:
            written += kinds.of_store(store) if isinstance(operation, DeleteAgent) else [operation.kind]
    return written


# --- many agents ---


class ManySaves:
    """The saves that a `save_many` requests, by agent."""

    def __init__(
        self,
        kinds: Kinds,
        agents: Mapping[str, Mapping[str, Any]],
        expect: ManyExpect = None,
        ttl_s: Mapping[str, Seconds | None] | Seconds | None = None,
        write_id: Mapping[str, str | None] | str | None = None,
        drop: Mapping[str, Iterable[str] | None] | Iterable[str] | None = None,
    ) -> None:
        """Keep the arguments; errors in those of one agent are raised when its write is made."""
        self._kinds = kinds
        self.agents = agents
        self._expect = _expected_by_agent(expect)
        self._ttl_s = ttl_s
        self._write_id = write_id
        self._drop: Mapping[str, Iterable[str] | None] | Iterable[str] | None = None
        if drop is not None:
            self._drop = (
                cast("Mapping[str, Iterable[str] | None]", drop) if isinstance(drop, Mapping) else as_kinds(drop)
            )

    def new_write(self, make: MakeWrite) -> NewWrite:
        """Return a function that makes the write of one agent from its operations."""
        agents, kinds = self.agents, self._kinds
        if self._expect is None and self._write_id is None and self._drop is None and self._ttl_s is None:
            by_store_of = kinds.by_store

            def plain(agent_id: str, agent: bytes, hashed: int) -> AgentWrite:
                fragments = agents[agent_id]
                by_store = by_store_of(fragments if isinstance(fragments, dict) else _mapping(fragments))
                return make(agent_id, agent, hashed, by_store)

            return plain

        def new_write(agent_id: str, agent: bytes, hashed: int) -> AgentWrite:
            drop = _of_agent(self._drop, agent_id)
            by_store = operations(kinds, agents[agent_id], _of_agent(self._ttl_s, agent_id), drop)
            expected = expectations(kinds, agent_id, _expect_of(self._expect, agent_id), by_store)
            return make(agent_id, agent, hashed, by_store, expected, _key_of(self._write_id, agent_id))

        return new_write


class ManyDeletes:
    """The deletions that a `delete_many` requests, by agent."""

    def __init__(
        self,
        kinds: Kinds,
        ids: Iterable[str],
        chosen: Iterable[str] | None,
        expect: ManyExpect,
        write_id: Mapping[str, str | None] | str | None,
    ) -> None:
        """Keep the arguments.

        Raises:
            UnknownKindError, InvalidRequestError: nothing can be sent of them.
        """
        self._kinds = kinds
        self.agents = dict.fromkeys(listed_ids(ids))
        self._by_store = deletions(kinds, chosen)
        self._expect = _expected_by_agent(expect)
        self._write_id = write_id

    def new_write(self, make: MakeWrite) -> NewWrite:
        """Return a function that makes the write of one agent."""

        def new_write(agent_id: str, agent: bytes, hashed: int) -> AgentWrite:
            expected = expectations(self._kinds, agent_id, _expect_of(self._expect, agent_id), self._by_store)
            return make(agent_id, agent, hashed, self._by_store, expected, _key_of(self._write_id, agent_id))

        return new_write


def _of_agent(given: Mapping[str, T] | T, agent_id: str) -> T | None:
    """Return an option's value for one agent, from a mapping by agents or one value for all."""
    return cast("Mapping[str, T]", given).get(agent_id) if isinstance(given, Mapping) else given


def _key_of(write_id: Mapping[str, str | None] | str | None, agent_id: str) -> str | None:
    """Return one agent's write id."""
    key = _of_agent(write_id, agent_id)
    return key if key is None or type(key) is str else exact_key(key)


def _expect_of(expect: Mapping[str, Expect] | int | None, agent_id: str) -> Expect:
    """Return the expectation for one agent; in a mapping by agents none may be left out."""
    if not isinstance(expect, Mapping):
        return expect
    if agent_id not in expect:
        raise InvalidRequestError(f"expect does not name agent {agent_id!r}; give None for it to expect nothing")
    return expect[agent_id]


def _expected_by_agent(expect: ManyExpect) -> Mapping[str, Expect] | int | None:
    """Return the expectations of many saves by agent, also if given as states or results that name their agents.

    Raises:
        InvalidRequestError: it is no expectation for many saves.
    """
    if expect is None or (type(expect) is int and expect == 0):
        return expect
    if isinstance(expect, Mapping):
        return dict(cast("Mapping[str, Expect]", expect))
    some: object = expect  # a state by itself iterates over its kinds
    if isinstance(some, Collection) and not isinstance(some, str | bytes | AgentState):
        given = cast("Collection[object]", some)
        named = {one.agent_id: one for one in given if isinstance(one, AgentState | Saved)}
        if all([isinstance(one, AgentState | Saved) for one in given]):
            return named
    raise InvalidRequestError(
        f"expect is a mapping of agent ids to what each expects, a list of states, or 0, not {expect!r}"
    )

"""The write of one agent, and its result in each store: pure.

The writes of one agent to one store are applied together or not at all; to several stores they are not. So what became
of each store's part is kept apart: a version, a conflict, a rejection, or not known: it was sent, and no answer came.

A save is named by its write id for good (`write_token`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec

from ...wire.errors import (
    DeadlineExceeded,
    InvalidRequestError,
    SaveError,
    SaveIncomplete,
    SaveIndeterminate,
    SaveInterrupted,
    SaveRejected,
    VersionConflict,
)
from ...wire.protocol.limits import FRAME_BYTES_MAX, FRAME_BYTES_TARGET, IMAGE_BYTES_MAX
from ...wire.protocol.messages import DeleteKind, Operation, Put, Rejection, RejectionCode, Write
from ...wire.protocol.shard_hash import hash_agent
from .write_token import WriteToken

__all__ = ["AgentWrite", "Saved", "SavedVersions"]

_WRITE_BYTES: Final = 64
"""Bytes of a write beside its agent id and values, about; counted so that a frame keeps to its limit."""

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
"""What most writes have of conflicts and rejections: a dictionary each would be half of what a write costs to make."""


class SavedVersions(dict[str, int]):
    """Versions of the kinds that a save wrote, where it deleted some as well.

    Of one that it deleted (`deleted`) the version is that of the write that did, 0 where nothing was there. As `expect`
    all of those count as not there.
    """

    deleted: frozenset[str] = frozenset()


class Saved(msgspec.Struct, frozen=True, gc=False):
    """An acknowledged save: the version of each kind written (0 where there was nothing to delete).

    It can be given as `expect` to a later save of the agent. `write_id` names it for good (see `SaveError`).
    """

    agent_id: str
    versions: dict[str, int]
    token: WriteToken

    @property
    def write_id(self) -> str:
        """The save's name."""
        return str(self.token)


class AgentWrite(msgspec.Struct, eq=False, gc=False):
    """One agent's operations by store, with what each expects, and what became of each.

    A Struct, because a save_many makes one for each agent: 0.3 us beside looking at its values, where an initializer of
    our own took 0.8, and the garbage collector need not look at it.

    Raises:
        InvalidRequestError: its values for a store do not fit into one message.
    """

    agent_id: str
    agent: bytes
    token: WriteToken
    operations: Mapping[str, list[Operation]]
    expect: Mapping[str, Mapping[str, int]] | None = None
    """store -> kind -> version."""
    repeated: Collection[str] = ()
    """Stores that may have been sent it before, and have not said that they did not apply it."""
    digest: int = 0
    """Of all that it does, where its name is the caller's own; where it is 0, nodes compute one of their part."""
    hashed: int = -1
    """The agent's hash; where it is not given it is computed."""
    bytes_in_all: int = 0
    """Of the writes to all its stores, about."""
    open_parts: int = 0
    """How many stores' parts are on their way."""
    versions: Mapping[str, int] = _NOTHING
    """Stores that acknowledged, with the version."""
    rejected: Mapping[str, str] = _NOTHING
    """Stores in which surely nothing was written, with the reason."""
    transient: tuple[str, ...] = ()
    """Those among them that may take it a moment later."""
    conflicts: Mapping[str, dict[str, int]] = _NOTHING
    """Stores in which nothing was written because of what is there: kind -> version."""
    undecidable: Mapping[str, str] = _NOTHING
    """Stores that can no longer tell, with the reason."""
    removed: Mapping[str, Sequence[str]] = _NOTHING
    """Of stores in which it deletes, the kinds that were there, where they say so."""

    attempts: list[int] | None = None
    """How often it was tried again, which all attempts share: a list of one number, which makes no circle."""
    attempt: int = 0

    def __post_init__(self) -> None:
        if self.hashed < 0:
            self.hashed = hash_agent(self.agent)
        for store in self.operations:
            size = self._count_bytes(store)
            if size > FRAME_BYTES_MAX - FRAME_BYTES_TARGET:
                raise InvalidRequestError(
                    f"agent {self.agent_id!r}: {size:,} bytes for store {store!r} are too many: all kinds of an agent"
                    f" in one store have at most {IMAGE_BYTES_MAX:,} bytes (2 MiB)"
                )
            self.bytes_in_all += size

    def size(self, store: str) -> int:
        """Return the bytes of the write to one store, about.

        Counted again where there are several stores: a dictionary or a tuple of them each costs as much, and brings on
        more collections of garbage.
        """
        return self.bytes_in_all if len(self.operations) == 1 else self._count_bytes(store)

    def _count_bytes(self, store: str) -> int:
        operations = self.operations[store]
        size = len(self.agent) + _WRITE_BYTES * (1 + len(operations))
        for operation in operations:
            if isinstance(operation, Put):
                size += len(operation.value)
        return size

    def to_message(self, store: str, *, repeated: bool) -> Write:
        """Return the write for one store."""
        expect = None if self.expect is None else self.expect.get(store)
        return Write(
            self.agent,
            self.token.write_id,
            self.token.seen.get(store, 0),
            self.operations[store],
            None if expect is None else dict(expect),
            repeated or store in self.repeated,
            self.digest,
        )

    def handle_result(self, store: str, result: int | Rejection) -> None:
        """Take in what a node answered for one store."""
        if not isinstance(result, Rejection):
            # A write has one store as a rule; a mapping proxy takes 0.4 us to be copied.
            self.versions = {store: result} if self.versions is _NOTHING else {**self.versions, store: result}
        elif result.code == RejectionCode.CONFLICT and result.found is not None:
            self.conflicts = {**self.conflicts, store: result.found}
        elif result.code == RejectionCode.INDETERMINATE:
            self.undecidable = {**self.undecidable, store: result.reason}
        else:
            self.rejected = {**self.rejected, store: result.reason}

    def handle_removed(self, store: str, kinds: Sequence[str]) -> None:
        """Take note of what a write that deletes found in a store."""
        self.removed = {**self.removed, store: kinds}

    def reject(self, store: str, reason: str, *, transient: bool) -> None:
        """Take note that nothing was written in a store this time: surely nothing, where no other attempt was sent."""
        if store not in self.repeated and self.is_latest:
            self.rejected = {**self.rejected, store: reason}
            others = tuple([other for other in self.transient if other != store])
            self.transient = (*others, store) if transient else others

    def again(self) -> AgentWrite:
        """Return the same save, to be sent again to the stores that have not acknowledged it."""
        if self.is_latest:
            unsure = (*self.unknown, *self.undecidable)
        else:  # it was tried again before, and may have been applied by that
            unsure = tuple([store for store in self.operations if store not in self.versions])
        attempts = self.attempts or [0]
        attempts[0] += 1
        self.attempts = attempts
        write = AgentWrite(self.agent_id, self.agent, self.token, self.operations, self.expect, unsure, self.digest)
        write.versions, write.removed = self.versions, self.removed
        write.attempts, write.attempt = attempts, attempts[0]
        return write

    @property
    def is_latest(self) -> bool:
        """Whether this save was not tried again since, by an earlier error of it either."""
        return self.attempts is None or self.attempts[0] == self.attempt

    @property
    def unknown(self) -> tuple[str, ...]:
        """Stores that may have applied it or not."""
        settled = (self.versions, self.rejected, self.conflicts, self.undecidable)
        return tuple(store for store in self.operations if not any([store in known for known in settled]))

    def result(self, kinds_of: Callable[[str], Sequence[str]]) -> Saved | SaveError:
        """Return what the caller gets of this agent; `kinds_of` gives the kinds of a store that is erased whole."""
        saved = self._saved(kinds_of)
        if len(self.versions) == len(self.operations):
            return Saved(self.agent_id, saved, self.token)
        write_id = str(self.token)
        unknown = self.unknown
        found = {kind: version for kinds in self.conflicts.values() for kind, version in kinds.items()}
        if self.undecidable:
            reasons = "; ".join(f"{store}: {reason}" for store, reason in self.undecidable.items())
            return SaveIndeterminate(reasons, agent_id=self.agent_id, write_id=write_id)
        if not saved and not unknown and not self.rejected:
            return VersionConflict(agent_id=self.agent_id, write_id=write_id, found=found)
        if not saved and not unknown and not found:
            rejected, transient = dict(self.rejected), self.transient
            return SaveRejected(agent_id=self.agent_id, write_id=write_id, rejected=rejected, transient=transient)
        if not saved and not found and not self.rejected:
            reason = f"{', '.join(unknown)}: no answer in time; it may have been written or not"
            return DeadlineExceeded(reason, agent_id=self.agent_id, write_id=write_id)
        return SaveIncomplete(
            agent_id=self.agent_id,
            write_id=write_id,
            saved=saved,
            conflicting=found,
            rejected=dict(self.rejected),
            unknown=unknown,
            transient=self.transient,
        )

    def interrupted(self, kinds_of: Callable[[str], Sequence[str]], closed: str) -> SaveInterrupted | None:
        """Return the error of a save that was under way when its cluster was closed, None where nothing was sent of it.

        `closed` is the reason of what was rejected because of that.
        """
        if all([self.rejected.get(store) == closed for store in self.operations]):
            return None
        return SaveInterrupted(
            agent_id=self.agent_id,
            write_id=str(self.token),
            saved=self._saved(kinds_of),
            conflicting={kind: version for kinds in self.conflicts.values() for kind, version in kinds.items()},
            rejected=dict(self.rejected),
            unknown=self.unknown,
        )

    def _saved(self, kinds_of: Callable[[str], Sequence[str]]) -> dict[str, int]:
        """Return the version of each kind that is known to be written or deleted."""
        saved: dict[str, int] = {}
        deleted: list[str] | None = None
        for store, version in self.versions.items():
            for operation in self.operations[store]:
                if isinstance(operation, Put):
                    saved[operation.kind] = version
                    continue
                deleted = [] if deleted is None else deleted
                removed = self.removed.get(store)
                for kind in [operation.kind] if isinstance(operation, DeleteKind) else kinds_of(store):
                    saved[kind] = version if removed is None or kind in removed else 0
                    deleted.append(kind)
        if not deleted:
            return saved
        versions = SavedVersions(saved)
        versions.deleted = frozenset(deleted)
        return versions

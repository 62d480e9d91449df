"""The write of one agent, and its result in each store: pure.

The writes of one agent to one store are applied together or not at all; to several stores they are not. So the result
of each store is kept apart: a version, a conflict, a rejection, or unknown: it was sent, and no answer came.

A save keeps its write id for good (`write_token`).
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
"""Approximate bytes of a write besides its agent id and values; counted so that a frame stays within its limit."""

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
"""The conflicts and rejections of most writes: a dictionary for each would take half of the time to make a write."""


class SavedVersions(dict[str, int]):
    """Versions of the kinds that a save wrote, if it deleted some as well.

    A deleted kind (`deleted`) has the version of the write that deleted it, 0 if nothing was there. As `expect` all
    deleted kinds count as absent.
    """

    deleted: frozenset[str] = frozenset()


class Saved(msgspec.Struct, frozen=True, gc=False):
    """An acknowledged save: the version of each kind written (0 if there was nothing to delete).

    It can be given as `expect` to a later save of the agent. `write_id` identifies it for good (see `SaveError`).
    """

    agent_id: str
    versions: dict[str, int]
    token: WriteToken

    @property
    def write_id(self) -> str:
        """The save's write id: its idempotency key."""
        return str(self.token)


class AgentWrite(msgspec.Struct, eq=False, gc=False):
    """One agent's operations by store, with the versions that each expects, and the result of each.

    A Struct, because a save_many makes one for each agent: 0.3 us besides checking its values, while an initializer of
    our own took 0.8, and the garbage collector need not track it.

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
    """Stores to which it may have been sent before, and which have not reported that they did not apply it."""
    digest: int = 0
    """The digest of all its operations, if the caller chose its key; if it is 0, nodes compute one of their part."""
    hashed: int = -1
    """The agent's hash; computed if it is not given."""
    bytes_in_all: int = 0
    """The approximate bytes of the writes to all its stores."""
    open_parts: int = 0
    """The number of stores whose parts are in flight."""
    versions: Mapping[str, int] = _NOTHING
    """Stores that acknowledged it, with the version."""
    rejected: Mapping[str, str] = _NOTHING
    """Stores in which certainly nothing was written, with the reason."""
    transient: tuple[str, ...] = ()
    """Those among them that may accept it a moment later."""
    conflicts: Mapping[str, dict[str, int]] = _NOTHING
    """Stores in which nothing was written because of the versions there: kind -> version."""
    indeterminate: Mapping[str, str] = _NOTHING
    """Stores that can no longer say whether they applied it, with the reason."""
    removed: Mapping[str, Sequence[str]] = _NOTHING
    """The kinds that were there in stores in which it deletes, if they report them."""

    attempts: list[int] | None = None
    """How often it was retried, shared by all attempts: a list of one number, which makes no reference cycle."""
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
        """Return the approximate bytes of the write to one store.

        Counted again if there are several stores: a dictionary or a tuple of them costs as much each time, and causes
        more garbage collections.
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
        """Record the answer of a node for one store."""
        if not isinstance(result, Rejection):
            # A write usually has one store; copying a mapping proxy takes 0.4 us.
            self.versions = {store: result} if self.versions is _NOTHING else {**self.versions, store: result}
        elif result.code == RejectionCode.CONFLICT and result.found is not None:
            self.conflicts = {**self.conflicts, store: result.found}
        elif result.code == RejectionCode.INDETERMINATE:
            self.indeterminate = {**self.indeterminate, store: result.reason}
        else:
            self.rejected = {**self.rejected, store: result.reason}

    def handle_removed(self, store: str, kinds: Sequence[str]) -> None:
        """Record the kinds that a deleting write found in a store."""
        self.removed = {**self.removed, store: kinds}

    def reject(self, store: str, reason: str, *, transient: bool) -> None:
        """Record that this attempt wrote nothing in a store: certainly nothing, if no other attempt was sent."""
        if store not in self.repeated and self.is_latest:
            self.rejected = {**self.rejected, store: reason}
            others = tuple([other for other in self.transient if other != store])
            self.transient = (*others, store) if transient else others

    def again(self) -> AgentWrite:
        """Return the same save, to be resent to the stores that have not acknowledged it."""
        if self.is_latest:
            unsure = (*self.unknown, *self.indeterminate)
        else:  # it was retried before, and that attempt may have been applied
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
        """Whether this save was not retried since, not even by an earlier error of it."""
        return self.attempts is None or self.attempts[0] == self.attempt

    @property
    def unknown(self) -> tuple[str, ...]:
        """Stores that may or may not have applied it."""
        settled = (self.versions, self.rejected, self.conflicts, self.indeterminate)
        return tuple(store for store in self.operations if not any([store in known for known in settled]))

    def result(self, kinds_of: Callable[[str], Sequence[str]]) -> Saved | SaveError:
        """Return the caller's result for this agent; `kinds_of` gives the kinds of a store deleted completely."""
        saved = self._saved(kinds_of)
        if len(self.versions) == len(self.operations):
            return Saved(self.agent_id, saved, self.token)
        write_id = str(self.token)
        unknown = self.unknown
        found = {kind: version for kinds in self.conflicts.values() for kind, version in kinds.items()}
        if self.indeterminate:
            reasons = "; ".join(f"{store}: {reason}" for store, reason in self.indeterminate.items())
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
        """Return the error of a save that was under way when its cluster was closed, None if nothing of it was sent.

        `closed` is the reason of the parts that were rejected because of that.
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
        """Return the version of each kind that was certainly written or deleted."""
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

"""What is to be written of one agent, and what became of it: pure.

The writes of one agent to one store are applied together or not at all; to several stores they are not. So what became
of each store's part is kept apart: a version, a conflict, a refusal, or not known: it was sent, and no answer came.

A save is named by its write id for good. The token that a caller gets and may give again holds it, and for each store
the shard version that was known when it was first sent: with it a node can tell whether its log reaches back far
enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec

from ..wire.errors import (
    DeadlineExceeded,
    InvalidRequestError,
    SaveError,
    SaveIncomplete,
    SaveRefused,
    SaveUndecidable,
    VersionConflict,
)
from ..wire.hashing import hash_agent
from ..wire.limits import FRAME_BYTES_MAX, FRAME_BYTES_TARGET, WRITE_ID_BYTES_MAX
from ..wire.messages import Erase, Operation, Put, Refusal, RefusalCode, Write

__all__ = ["AgentWrite", "Saved", "WriteToken", "parse_token"]

_WRITE_BYTES: Final = 64
"""Bytes of a write beside its agent id and values, about; counted so that a frame keeps to its limit."""

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
"""What most writes have of conflicts and refusals: a dictionary each would be half of what a write costs to make."""


class WriteToken(msgspec.Struct, frozen=True, gc=False):
    """A save's name: its write id, and by store the shard version that was known when it was first sent."""

    write_id: bytes
    seen: dict[str, int]

    def __str__(self) -> str:
        text = self.write_id.hex()
        for store, version in self.seen.items():
            text += f".{store}:{version:x}"
        return text


class Saved(msgspec.Struct, frozen=True, gc=False):
    """An acknowledged save: the version of each kind written (0 where there was nothing to delete).

    `write_id` names it for good (see `SaveError`).
    """

    agent_id: str
    versions: dict[str, int]
    token: WriteToken

    @property
    def write_id(self) -> str:
        """The save's name."""
        return str(self.token)


def parse_token(text: str) -> WriteToken:
    """Return the token that an error or a Saved showed as `write_id`.

    Raises:
        InvalidRequestError: it is none of those.
    """
    try:
        first, *rest = text.split(".")
        write_id = bytes.fromhex(first)
        seen = {store: int(version, 16) for store, version in (part.split(":") for part in rest)}
    except (AttributeError, TypeError, ValueError):  # no text, or none of ours
        write_id, seen = b"", {}
    sound = all([0 <= version < 1 << 64 for version in seen.values()])
    if not 0 < len(write_id) <= WRITE_ID_BYTES_MAX or not seen or not sound:
        raise InvalidRequestError(
            f"write_id is what an earlier save gave as `.write_id`, not {text!r}; nothing was sent"
        )
    return WriteToken(write_id, seen)


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
    repeated: bool = False
    """Whether it may have been sent before."""
    hashed: int = -1
    """The agent's hash; where it is not given it is computed."""
    open_parts: int = 0
    """How many stores' parts are on their way."""
    versions: Mapping[str, int] = _NOTHING
    """Stores that acknowledged, with the version."""
    refused: Mapping[str, str] = _NOTHING
    """Stores in which surely nothing was written, with the reason."""
    conflicts: Mapping[str, dict[str, int]] = _NOTHING
    """Stores in which nothing was written because of what is there: kind -> version."""
    undecidable: Mapping[str, str] = _NOTHING
    """Stores that can no longer tell, with the reason."""

    def __post_init__(self) -> None:
        if self.hashed < 0:
            self.hashed = hash_agent(self.agent)
        for store in self.operations:
            size = self.size(store)
            if size > FRAME_BYTES_MAX - FRAME_BYTES_TARGET:
                raise InvalidRequestError(f"agent {self.agent_id!r}: {size:,} bytes for store {store!r} are too many")

    def size(self, store: str) -> int:
        """Return the bytes of the write to one store, about.

        Counted twice rather than kept: a dictionary each costs as much, and brings on a collection of 4 ms.
        """
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
            repeated or self.repeated,
        )

    def handle_result(self, store: str, result: int | Refusal) -> None:
        """Take in what a node answered for one store."""
        if not isinstance(result, Refusal):
            self.versions = {**self.versions, store: result}
        elif result.code == RefusalCode.CONFLICT and result.found is not None:
            self.conflicts = {**self.conflicts, store: result.found}
        elif result.code == RefusalCode.UNDECIDABLE:
            self.undecidable = {**self.undecidable, store: result.reason}
        else:
            self.refuse(store, result.reason)

    def refuse(self, store: str, reason: str) -> None:
        """Take note that surely nothing was written in a store."""
        self.refused = {**self.refused, store: reason}

    def again(self) -> AgentWrite:
        """Return the same save, to be sent again to the stores that have not acknowledged it."""
        write = AgentWrite(self.agent_id, self.agent, self.token, self.operations, self.expect, repeated=True)
        write.versions = self.versions
        return write

    @property
    def unknown(self) -> tuple[str, ...]:
        """Stores that may have applied it or not."""
        settled = (self.versions, self.refused, self.conflicts, self.undecidable)
        return tuple(store for store in self.operations if not any([store in known for known in settled]))

    def result(self, kinds_of: Callable[[str], Sequence[str]]) -> Saved | SaveError:
        """Return what the caller gets of this agent; `kinds_of` gives the kinds of a store that is erased whole."""
        saved: dict[str, int] = {}
        for store, version in self.versions.items():
            for operation in self.operations[store]:
                if isinstance(operation, Erase):
                    saved |= dict.fromkeys(kinds_of(store), version)
                else:
                    saved[operation.kind] = version
        if len(self.versions) == len(self.operations):
            return Saved(self.agent_id, saved, self.token)
        write_id = str(self.token)
        unknown = self.unknown
        found = {kind: version for kinds in self.conflicts.values() for kind, version in kinds.items()}
        if self.undecidable:
            reasons = "; ".join(f"{store}: {reason}" for store, reason in self.undecidable.items())
            return SaveUndecidable(reasons, agent_id=self.agent_id, write_id=write_id)
        if not saved and not unknown and not self.refused:
            return VersionConflict(agent_id=self.agent_id, write_id=write_id, found=found)
        if not saved and not unknown and not found:
            return SaveRefused(agent_id=self.agent_id, write_id=write_id, refused=dict(self.refused))
        if not saved and not found and not self.refused:
            reason = f"{', '.join(unknown)}: no answer in time; it may have been written or not"
            return DeadlineExceeded(reason, agent_id=self.agent_id, write_id=write_id)
        return SaveIncomplete(
            agent_id=self.agent_id,
            write_id=write_id,
            saved=saved,
            conflicting=found,
            refused=dict(self.refused),
            unknown=unknown,
        )

"""One save: writes of one or many agents, scattered over the nodes that own their shards, and their results gathered.

The writes of one agent to one store are applied together or not at all; to several stores they are not. So what became
of each store's part is kept apart: a version, a refusal, or not known: it was sent, and no answer came. A save is never
repeated on the way: until write ids are answered from the log, sending it twice could apply it twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from ..wire.errors import (
    DawnchorusError,
    DeadlineExceeded,
    InvalidRequestError,
    ProtocolError,
    SaveIncomplete,
    SaveRefused,
)
from ..wire.hashing import hash_agent
from ..wire.limits import FRAME_BYTES_MAX, FRAME_BYTES_TARGET
from ..wire.messages import (
    Commit,
    CommitSection,
    Committed,
    CommittedSection,
    Erase,
    FaultCode,
    Images,
    Operation,
    Put,
    Refusal,
    Scanned,
    SectionStatus,
    StatusReply,
    Write,
    encode,
)
from ..wire.placement import Placement
from .router import Router

__all__ = ["AgentWrite", "Saved", "Saving"]

_MESSAGE_WRITES_MAX: Final = 1_000
"""Writes of one Commit: a node answers a Commit when all its shards are synced."""

_WRITE_BYTES: Final = 64
"""Bytes of a write beside its agent id and values, about; counted so that a frame keeps to its limit."""

_RESULT_BYTES: Final = 16

_NOTHING_WRITTEN: Final = frozenset(SectionStatus) - {SectionStatus.OK, SectionStatus.INTERNAL}
"""Statuses that say so surely; after any other, also one not known yet, nobody can tell."""


class Saved(msgspec.Struct, frozen=True):
    """An acknowledged save: the version of each kind written (0 where there was nothing to delete).

    `write_id` (hexadecimal) names it in the shards' logs.
    """

    agent_id: str
    versions: dict[str, int]
    write_id: str


class AgentWrite:
    """What is to be written of one agent, by store, and what became of it."""

    __slots__ = ("agent", "agent_id", "operations", "refused", "sizes", "versions", "write_id")

    def __init__(
        self, agent_id: str, agent: bytes, write_id: bytes, operations: dict[str, Sequence[Operation]]
    ) -> None:
        """Take it; nothing is sent.

        Raises:
            InvalidRequestError: its values for a store do not fit into one message.
        """
        self.agent_id = agent_id
        self.agent = agent
        self.write_id = write_id
        self.operations = operations
        self.sizes = {store: _size(agent, some) for store, some in operations.items()}
        """Bytes of its write to each store, about."""
        for store, size in self.sizes.items():
            if size > FRAME_BYTES_MAX - FRAME_BYTES_TARGET:
                raise InvalidRequestError(f"agent {agent_id!r}: {size:,} bytes for store {store!r} are too many")
        self.versions: dict[str, int] = {}
        """Stores that acknowledged, with the version."""
        self.refused: dict[str, str] = {}
        """Stores in which surely nothing was written, with the reason."""

    def result(self, kinds_of: Callable[[str], Sequence[str]]) -> Saved | DawnchorusError:
        """Return what the caller gets of this agent; `kinds_of` gives the kinds of a store that is erased whole."""
        versions = {
            kind: version
            for store, version in self.versions.items()
            for kind in _kinds_written(self.operations[store], kinds_of(store))
        }
        names = {"agent_id": self.agent_id, "write_id": self.write_id.hex()}
        unknown = tuple(store for store in self.operations if store not in self.versions and store not in self.refused)
        if not unknown and not self.refused:
            return Saved(versions=versions, **names)
        if not unknown and not versions:
            return SaveRefused(refused=self.refused, **names)
        if not versions and not self.refused:
            reason = "no answer in time; it may have been written or not"
            return DeadlineExceeded(f"{', '.join(unknown)}: {reason}", **names)
        return SaveIncomplete(saved=versions, refused=self.refused, unknown=unknown, **names)


def _size(agent: bytes, operations: Sequence[Operation]) -> int:
    values = sum([len(operation.value) for operation in operations if isinstance(operation, Put)])
    return values + len(agent) + _WRITE_BYTES * (1 + len(operations))


def _kinds_written(operations: Sequence[Operation], all_kinds: Sequence[str]) -> list[str]:
    kinds: list[str] = []
    for operation in operations:
        kinds += all_kinds if isinstance(operation, Erase) else [operation.kind]
    return kinds


class _Section:
    """Writes to one shard of one store."""

    __slots__ = ("epoch", "shard", "store", "writes")

    def __init__(self, store: str, shard: int, epoch: int) -> None:
        self.store = store
        self.shard = shard
        self.epoch = epoch
        self.writes: list[AgentWrite] = []

    def to_message(self) -> CommitSection:
        writes = [Write(write.agent, write.write_id, 0, list(write.operations[self.store])) for write in self.writes]
        return CommitSection(self.store, self.shard, self.epoch, writes)


class _CommitExchange:
    """Some sections of a save, at one node."""

    __slots__ = ("_saving", "deadline", "node", "number", "repeatable", "sections", "size", "writes")

    def __init__(self, saving: Saving, node: str) -> None:
        self.number = 0
        self.node = node
        self.deadline = saving.deadline
        self.repeatable = False
        self._saving = saving
        self.sections: dict[tuple[str, int], _Section] = {}
        self.size = 0
        self.writes = 0

    @property
    def expected_bytes(self) -> int:
        # What is on its way to the node counts as well: one window bounds both directions.
        return self.size + _RESULT_BYTES * self.writes

    def add(self, store: str, shard: int, epoch: int, write: AgentWrite, size: int) -> None:
        section = self.sections.get((store, shard))
        if section is None:
            section = self.sections[store, shard] = _Section(store, shard, epoch)
        section.writes.append(write)
        self.size += size
        self.writes += 1

    def encode(self, budget_us: int) -> bytes:
        return encode(Commit(self.number, budget_us, [section.to_message() for section in self.sections.values()]))

    def handle_reply(self, reply: Images | Committed | Scanned | StatusReply) -> bool:
        if not isinstance(reply, Committed):
            raise ProtocolError(f"{type(reply).__name__} does not answer a Commit")
        asked = list(self.sections.values())
        for section in reply.sections:
            if section.index >= len(asked):
                raise ProtocolError(f"section {section.index} of {len(asked)}")
            self._saving.handle_section(asked[section.index], section)
        self._saving.handle_answered(self)
        return True

    def handle_failure(self, code: FaultCode | None, reason: str) -> None:
        if code is not None and code != FaultCode.INTERNAL:
            for section in self.sections.values():
                self._saving.refuse(section, f"{code.name}: {reason}")
        self._saving.handle_answered(self)


class Saving:
    """Writes on their way, until each store has answered or the deadline has come."""

    def __init__(
        self,
        router: Router,
        writes: Iterable[AgentWrite],
        deadline: float,
        handle_acknowledged: Callable[[str, bytes, int], None],
    ) -> None:
        """Plan it. `deadline` is in seconds of the monotonic clock.

        `handle_acknowledged` is told store, agent and version of each acknowledged write.
        """
        assert router.placement is not None
        self._router = router
        self._handle_acknowledged = handle_acknowledged
        self.deadline = deadline
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._exchanges: list[_CommitExchange] = []
        open_exchanges: dict[str, _CommitExchange] = {}
        for write in writes:
            hashed = hash_agent(write.agent)
            for store in write.operations:
                self._place(router.placement, write, store, hashed, open_exchanges)
        self._waiting = set(self._exchanges)

    def _place(
        self,
        placement: Placement,
        write: AgentWrite,
        store: str,
        hashed: int,
        open_exchanges: dict[str, _CommitExchange],
    ) -> None:
        owners = placement.shards[store]
        shard = hashed % len(owners)
        owner = owners[shard]
        size = write.sizes[store]
        exchange = open_exchanges.get(owner.node)
        full = exchange is not None and (
            exchange.size + size > FRAME_BYTES_TARGET or exchange.writes >= _MESSAGE_WRITES_MAX
        )
        if exchange is None or full:
            exchange = open_exchanges[owner.node] = _CommitExchange(self, owner.node)
            self._exchanges.append(exchange)
        exchange.add(store, shard, owner.serving_epoch, write, size)

    async def run(self) -> None:
        """Send everything, and return when each part is answered, at the latest at the deadline."""
        if not self._exchanges:
            return
        timer = asyncio.get_running_loop().call_at(self.deadline, self._finish)
        try:
            self._router.submit(self._exchanges)
            await self._done
        finally:
            timer.cancel()
            for exchange in self._waiting:
                if not self._router.cancel([exchange]):
                    for section in exchange.sections.values():
                        self.refuse(section, f"node {exchange.node!r} could not be reached in time; nothing was sent")

    def handle_section(self, section: _Section, committed: CommittedSection) -> None:
        """Take in the results of one section."""
        if committed.status != SectionStatus.OK:
            if committed.status in _NOTHING_WRITTEN:
                name = SectionStatus(committed.status).name
                self.refuse(section, f"{name}: {committed.detail}" if committed.detail else name)
            return
        if len(committed.results) != len(section.writes):
            raise ProtocolError(f"{len(committed.results)} results for {len(section.writes)} writes")
        for write, result in zip(section.writes, committed.results, strict=True):
            if isinstance(result, Refusal):
                write.refused[section.store] = result.reason
            else:
                write.versions[section.store] = result
                self._handle_acknowledged(section.store, write.agent, result)

    def refuse(self, section: _Section, reason: str) -> None:
        """Take note that surely nothing of a section was written."""
        for write in section.writes:
            write.refused[section.store] = reason

    def handle_answered(self, exchange: _CommitExchange) -> None:
        """An exchange is over, one way or another."""
        self._waiting.discard(exchange)
        if not self._waiting:
            self._finish()

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

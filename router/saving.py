"""A save under way: writes of one or many agents, scattered over the nodes of their shards, and their results gathered.

When a connection breaks, what was on its way is sent again on the next one, within the deadline: a node that has
applied it already answers with the first result. What an `AgentWrite` has not heard of by then is unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ..wire.errors import ProtocolError
from ..wire.limits import FRAME_BYTES_TARGET
from ..wire.messages import (
    Answer,
    Commit,
    CommitSection,
    Committed,
    CommittedSection,
    FaultCode,
    Refusal,
    SectionStatus,
    encode,
)
from .agent_write import AgentWrite
from .exchange import Exchange
from .router import Router

__all__ = ["Saving"]

_MESSAGE_WRITES_MAX: Final = 1_000
"""Writes of one Commit: a node answers a Commit when all its shards are synced."""

_RESULT_BYTES: Final = 16

_NOTHING_WRITTEN: Final = frozenset(SectionStatus) - {SectionStatus.OK, SectionStatus.INTERNAL}
"""Statuses that say so surely; after any other, also one not known yet, nobody can tell."""


class _Section:
    """Writes to one shard of one store."""

    __slots__ = ("epoch", "shard", "store", "writes")

    def __init__(self, store: str, shard: int, epoch: int) -> None:
        self.store = store
        self.shard = shard
        self.epoch = epoch
        self.writes: list[AgentWrite] = []

    def to_message(self, *, repeated: bool) -> CommitSection:
        writes = [write.to_message(self.store, repeated=repeated) for write in self.writes]
        return CommitSection(self.store, self.shard, self.epoch, writes)


class _CommitExchange(Exchange):
    """Some sections of a save, at one node. Sent twice, a refusal says nothing of what became of the first."""

    __slots__ = ("_saving", "sections", "size", "writes")

    cancellable = False
    waits_for_disk = True

    def __init__(self, saving: Saving, node: str) -> None:
        super().__init__(node, saving.deadline, 0, saving)
        self._saving = saving
        self.sections: dict[tuple[str, int], _Section] = {}
        self.size = 0
        self.writes = 0

    def add(self, store: str, shard: int, epoch: int, write: AgentWrite, size: int) -> None:
        section = self.sections.get((store, shard))
        if section is None:
            section = self.sections[store, shard] = _Section(store, shard, epoch)
        section.writes.append(write)
        # Who tries again knows that the node may be taken for dead: it waits for it, as long as it may.
        self.patient = self.patient or write.repeated
        self.size += size
        self.writes += 1
        # What is on its way to the node counts as well: one window bounds both directions.
        self.expected_bytes += size + _RESULT_BYTES

    def encode(self, budget_us: int, sent_us: int) -> bytes:
        repeated = self.sendings - self.unserved > 1
        sections = [section.to_message(repeated=repeated) for section in self.sections.values()]
        return encode(Commit(self.number, budget_us, sections, sent_us))

    def handle_reply(self, reply: Answer) -> bool:
        if not isinstance(reply, Committed):
            raise ProtocolError(f"{type(reply).__name__} does not answer a Commit")
        asked = list(self.sections.values())
        for section in reply.sections:
            if section.index >= len(asked):
                raise ProtocolError(f"section {section.index} of {len(asked)}")
            self._saving.handle_section(asked[section.index], section, sendings=self.sendings - self.unserved)
        self._saving.handle_answered(self)
        return True

    def handle_failure(self, code: FaultCode | None, reason: str) -> None:
        if code is not None and code not in (FaultCode.INTERNAL, FaultCode.OVERLOADED):
            self.unserved += 1  # the node refused it as a whole; flow control has counted where that was for too much
        if self.sendings == self.unserved:
            for section in self.sections.values():
                self._saving.refuse(section, f"{code.name}: {reason}" if code else reason)
        self._saving.handle_answered(self)


class Saving:
    """Writes on their way, until each store has answered or the deadline has come."""

    def __init__(
        self,
        router: Router,
        deadline: float,
        handle_acknowledged: Callable[[str, list[tuple[bytes, int]]], None],
        handle_settled: Callable[[AgentWrite], None],
    ) -> None:
        """Begin; `add` the writes, then `send`. `deadline` is in seconds of the monotonic clock.

        `handle_acknowledged` is told of each store the agents of acknowledged writes with their versions;
        `handle_settled` is given each write once no more will be heard of it.
        """
        assert router.placement is not None
        self._router = router
        self._placement = router.placement
        self._handle_acknowledged = handle_acknowledged
        self._handle_settled = handle_settled
        self.deadline = deadline
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._filling: dict[str, _CommitExchange] = {}
        self._waiting: set[_CommitExchange] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, write: AgentWrite) -> None:
        """Take a write; a message that it fills goes off at once."""
        for store in write.operations:
            if store in write.versions:
                continue  # acknowledged before this is sent again
            owners = self._placement.shards[store]
            shard = write.hashed % len(owners)
            owner = owners[shard]
            size = write.size(store)
            exchange = self._filling.get(owner.node)
            if exchange is not None and (
                exchange.size + size > FRAME_BYTES_TARGET or exchange.writes >= _MESSAGE_WRITES_MAX
            ):
                self._router.submit([exchange])
                exchange = None
            if exchange is None:
                exchange = self._filling[owner.node] = _CommitExchange(self, owner.node)
                self._waiting.add(exchange)
            write.open_parts += 1
            exchange.add(store, shard, owner.serving_epoch, write, size)

    def send(self) -> None:
        """Send what is not sent yet; each write is settled when its parts are answered, at the latest at the deadline.

        The last one settled may be so before this returns.
        """
        filling, self._filling = self._filling, {}
        if not self._waiting:
            self._finish()
            return
        self._timer = asyncio.get_running_loop().call_at(self.deadline, self._expire)
        self._router.submit(filling.values())

    async def run(self) -> None:
        """Send, and return when all is settled."""
        self.send()
        try:
            await self._done
        finally:
            self._finish()

    def handle_section(self, section: _Section, committed: CommittedSection, *, sendings: int) -> None:
        """Take in the results of one section, sent that often."""
        if committed.status != SectionStatus.OK:
            if committed.status in _NOTHING_WRITTEN and sendings == 1:
                name = SectionStatus(committed.status).name
                self.refuse(section, f"{name}: {committed.detail}" if committed.detail else name)
            return
        if len(committed.results) != len(section.writes):
            raise ProtocolError(f"{len(committed.results)} results for {len(section.writes)} writes")
        self._router.note_version(section.store, section.shard, committed.version)
        store = section.store
        acknowledged: list[tuple[bytes, int]] = []
        for write, result in zip(section.writes, committed.results, strict=True):
            write.handle_result(store, result)
            if not isinstance(result, Refusal):
                acknowledged.append((write.agent, result))
        self._handle_acknowledged(store, acknowledged)

    def refuse(self, section: _Section, reason: str) -> None:
        """Take note that surely nothing of a section was written: nothing now, and it was never sent before."""
        for write in section.writes:
            if not write.repeated:
                write.refuse(section.store, reason)

    def handle_answered(self, exchange: _CommitExchange) -> None:
        """An exchange is over, one way or another."""
        if exchange not in self._waiting:
            return
        self._waiting.discard(exchange)
        self._settle(exchange)
        if not self._waiting and not self._filling:
            self._finish()

    def _settle(self, exchange: _CommitExchange) -> None:
        for section in exchange.sections.values():
            for write in section.writes:
                write.open_parts -= 1
                if not write.open_parts:
                    self._handle_settled(write)

    def _expire(self) -> None:
        self._router.take_in()
        self._finish()

    def _finish(self) -> None:
        """All is answered, or it is too late, or nobody waits any more."""
        if self._done.done() and not self._waiting:
            return
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting = self._waiting, set()
        self._router.cancel(waiting)
        for exchange in waiting:
            if not exchange.sendings:
                for section in exchange.sections.values():
                    self.refuse(section, f"node {exchange.node!r} could not be reached in time; nothing was sent")
            self._settle(exchange)
        if not self._done.done():
            self._done.set_result(None)

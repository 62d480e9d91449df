"""A save under way: writes of one or many agents, scattered over the nodes of their shards, and their results gathered.

When a connection breaks, the writes in flight are resent on the next one, within the deadline: a node that has applied
them already answers with the first result. A part of an `AgentWrite` without an answer by then is unknown.

A write whose agent has an earlier one in flight to the same store is held until that has ended (`save_order`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Final, Protocol

from ...wire.cluster.placement import Placement
from ...wire.errors import ProtocolError
from ...wire.protocol.limits import FRAME_BYTES_TARGET
from ...wire.protocol.messages import (
    Answer,
    Commit,
    CommitReply,
    CommitReplySection,
    CommitSection,
    FaultCode,
    Rejection,
    RejectionCode,
    SectionStatus,
    encode,
)
from ..dispatch.exchange import Exchange
from ..dispatch.judgement import Judgement
from .agent_write import AgentWrite
from .save_order import Held, SaveOrder

__all__ = ["CLOSED", "CommitRouter", "Saving"]

CLOSED: Final = "the cluster was closed; nothing was sent"
"""The reason of writes rejected because the cluster was closed before they could be sent."""

_BEHIND_ANOTHER: Final = "an earlier save of this agent was still on its way; nothing was sent"

_AGAIN_S: Final = 0.05
"""How long after its node was overloaded a retried save is offered to it once more."""

_MESSAGE_WRITES_MAX: Final = 1_000
"""The most writes of one Commit: a node answers a Commit when all its shards are synced."""

_RESULT_BYTES: Final = 16

_TRANSIENT_FAULTS: Final = frozenset({FaultCode.OVERLOADED, FaultCode.NO_HELLO})
_TRANSIENT: Final = frozenset(
    {SectionStatus.OVERLOADED, SectionStatus.TOO_LATE, SectionStatus.SEALED, SectionStatus.MOVED}
)
"""Statuses which say that nothing was written, and that the same save may be accepted a moment later."""

_NOTHING_WRITTEN: Final = frozenset(SectionStatus) - {SectionStatus.OK, SectionStatus.INTERNAL}
"""Statuses that are certain to mean it; after any other, even an unknown one, the save may have been written."""


class CommitRouter(Protocol):
    """The methods of a router that a saving needs."""

    @property
    def placement(self) -> Placement | None:
        """The node that serves each shard."""
        ...

    def submit(self, exchanges: Collection[Exchange]) -> None:
        """Send exchanges, each when its node has room for it."""

    def cancel(self, exchanges: Iterable[Exchange]) -> None:
        """Forget exchanges for which no caller waits any more."""

    def note_version(self, store: str, shard: int, version: int) -> None:
        """Record a version that a shard has reached."""

    def version_seen(self, store: str, shard: int) -> int:
        """Return the newest version of a shard that it knows."""
        ...

    def why_down(self, node: str) -> str:
        """Return why a node is not connected, "" if it is."""
        ...

    def receive(self) -> None:
        """Receive the replies that have arrived already."""


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
    """Some sections of a save, at one node. If it was sent twice, a rejection says nothing about the first sending."""

    __slots__ = ("_saving", "reason", "sections", "size", "writes")

    cancellable = False
    waits_for_disk = True

    def __init__(self, saving: Saving, node: str) -> None:
        super().__init__(node, saving.deadline, 0, saving)
        self._saving = saving
        self.sections: dict[tuple[str, int], _Section] = {}
        self.size = 0
        self.writes = 0
        self.reason = ""
        """Why it was not accepted when it was last offered."""

    def add(self, store: str, shard: int, epoch: int, write: AgentWrite, size: int) -> None:
        section = self.sections.get((store, shard))
        if section is None:
            if not self.writes:
                self._saving.handle_filling(self)
            section = self.sections[store, shard] = _Section(store, shard, epoch)
        section.writes.append(write)
        self.size += size
        self.writes += 1
        # The request's own bytes count as well: one window bounds both directions.
        self.expected_bytes += size + _RESULT_BYTES

    def encode(self, budget_us: int, sent_us: int) -> bytes:
        repeated = self.sendings - self.unserved > 1
        sections = [section.to_message(repeated=repeated) for section in self.sections.values()]
        return encode(Commit(self.number, budget_us, sent_us, None, sections))

    def handle_reply(self, reply: Answer) -> bool:
        if not isinstance(reply, CommitReply):
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
            self.unserved += 1  # the node rejected all of it; flow control has counted it if it was for overload
        if self.sendings == self.unserved:
            self.reason = f"{code.name}: {reason}" if code else reason
            if (code is None or code == FaultCode.OVERLOADED) and self._saving.offers_again(self):
                return
            transient = code is None or code in _TRANSIENT_FAULTS
            for section in self.sections.values():
                self._saving.reject(section, self.reason, transient=transient)
        self._saving.handle_answered(self)

    def belongs_to(self, saving: Saving) -> bool:
        """Return whether it carries the writes of this saving."""
        return self._saving is saving

    def is_full(self, size: int) -> bool:
        """Return whether a write of so many bytes has to travel in another exchange."""
        return self.writes > 0 and (self.size + size > FRAME_BYTES_TARGET or self.writes >= _MESSAGE_WRITES_MAX)


class Saving:
    """Writes in flight, until each store has answered or the deadline has passed."""

    def __init__(
        self,
        router: CommitRouter,
        order: SaveOrder,
        loop: asyncio.AbstractEventLoop,
        deadline: float,
        handle_acknowledged: Callable[[str, list[tuple[bytes, int]]], None],
        handle_settled: Callable[[AgentWrite], None],
        patient: bool,
        clock: Callable[[], float],
    ) -> None:
        """Begin; `add` the writes, then `send`. `deadline` is in seconds of `clock`, the monotonic one.

        `order` has the saves of this client that are in flight. `handle_acknowledged` is notified for each store of the
        agents of acknowledged writes with their versions; `handle_settled` receives each write once no more answers can
        change its result. With `patient` they wait until the deadline for a node that is not to be asked at the moment.
        """
        assert router.placement is not None
        self._router = router
        self._order = order
        self._loop = loop
        self._placement = router.placement
        self._handle_acknowledged = handle_acknowledged
        self._handle_settled = handle_settled
        self._patient = patient
        self._clock = clock
        self.deadline = deadline
        self._filling: dict[str, _CommitExchange] = {}
        # In insertion order: a set's order differs from run to run.
        self._waiting: dict[_CommitExchange, None] = {}
        self._held: dict[Held, None] = {}
        self._timer: Judgement | None = None
        self._sends_later = True
        """Whether `send` is about to be called."""

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is in flight."""
        return not self._waiting and not self._held

    def add(self, write: AgentWrite) -> None:
        """Add a write; a message that it fills is sent at once. A write acknowledged everywhere has no parts."""
        versions = write.versions
        for store in write.operations:
            if store in versions:
                continue  # acknowledged before this attempt
            write.open_parts += 1
            size = write.size(store)
            owners = self._placement.shards[store]
            shard = write.hashed % len(owners)
            owner = owners[shard]
            exchange = self._exchange(owner.node, size)
            if self._order.enter(store, write.agent, exchange):
                exchange.add(store, shard, owner.serving_epoch, write, size)
            else:
                held = Held(self, store, write)
                self._held[held] = None
                self._order.hold(held)

    def carry(self, held: Held, carrier: object) -> object:
        """Put a held write into a message, and send it at the end of this turn of the loop."""
        write, store = held.write, held.store
        size = write.size(store)
        if carrier is not None and (
            not isinstance(carrier, _CommitExchange) or not carrier.belongs_to(self) or carrier.is_full(size)
        ):
            return None
        self._held.pop(held, None)
        owners = self._placement.shards[store]
        shard = write.hashed % len(owners)
        owner = owners[shard]
        exchange = self._exchange(owner.node, size)
        exchange.add(store, shard, owner.serving_epoch, write, size)
        if not self._sends_later:
            self._sends_later = True
            self._loop.call_soon(self._send_filling)
        return exchange

    def _exchange(self, node: str, size: int) -> _CommitExchange:
        """Return the message being filled for a node, with room for so many bytes."""
        exchange = self._filling.get(node)
        if exchange is not None:
            if not exchange.is_full(size):
                return exchange
            self._router.submit([exchange])
        exchange = self._filling[node] = _CommitExchange(self, node)
        # A retry knows that the node may be marked down: it waits for it, until its deadline.
        exchange.patient = self._patient
        return exchange

    def handle_filling(self, exchange: _CommitExchange) -> None:
        """Note a message that has its first write."""
        self._waiting[exchange] = None

    def send(self) -> None:
        """Send the rest; each write is settled when its parts are answered, at the latest at the deadline.

        The last write may be settled before this returns.
        """
        if not self.is_over:
            self._timer = Judgement(self.deadline, self._expire, self._loop, self._clock)
        self._send_filling()

    def _send_filling(self) -> None:
        self._sends_later = False
        filling, self._filling = self._filling, {}
        self._router.submit([exchange for exchange in filling.values() if exchange in self._waiting])

    def handle_section(self, section: _Section, committed: CommitReplySection, *, sendings: int) -> None:
        """Receive the results of one section, which was sent `sendings` times."""
        if committed.status != SectionStatus.OK:
            if committed.status in _NOTHING_WRITTEN and sendings == 1:
                name = SectionStatus(committed.status).name
                reason = f"{name}: {committed.detail}" if committed.detail else name
                self.reject(section, reason, transient=committed.status in _TRANSIENT)
            return
        if len(committed.results) != len(section.writes):
            raise ProtocolError(f"{len(committed.results)} results for {len(section.writes)} writes")
        self._router.note_version(section.store, section.shard, committed.version)
        store = section.store
        acknowledged: list[tuple[bytes, int]] = []
        for write, result in zip(section.writes, committed.results, strict=True):
            write.handle_result(store, result)
            if not isinstance(result, Rejection):
                acknowledged.append((write.agent, result))
            elif result.code == RejectionCode.CONFLICT:
                # It names the versions at the time of the check: no wake may show older ones from now on.
                acknowledged.append((write.agent, committed.version))
        if committed.removed:
            for index, kinds in committed.removed.items():
                if index < len(section.writes):
                    section.writes[index].handle_removed(store, kinds)
        self._handle_acknowledged(store, acknowledged)

    def reject(self, section: _Section, reason: str, *, transient: bool) -> None:
        """Record that certainly nothing of a section was written: nothing now, and it was never sent before."""
        for write in section.writes:
            write.reject(section.store, reason, transient=transient)

    def offers_again(self, exchange: _CommitExchange) -> bool:
        """Offer an exchange that was not accepted again in a moment, if its callers wait for that."""
        if not self._patient or exchange not in self._waiting:
            return False
        self._loop.call_later(_AGAIN_S, self._offer_again, exchange)
        return True

    def _offer_again(self, exchange: _CommitExchange) -> None:
        if exchange in self._waiting:
            self._router.submit([exchange])

    def handle_answered(self, exchange: _CommitExchange) -> None:
        """Settle the writes of an exchange that has ended, answered or not."""
        if exchange not in self._waiting:
            return
        del self._waiting[exchange]
        self._settle(exchange)
        if self._timer is not None and self.is_over:
            self._timer.cancel()

    def _settle(self, exchange: _CommitExchange) -> None:
        for section in exchange.sections.values():
            self._order.leave(section.store, [write.agent for write in section.writes], exchange)
            for write in section.writes:
                open_parts = write.open_parts - 1
                write.open_parts = open_parts
                if not open_parts:
                    self._handle_settled(write)

    def _expire(self) -> None:
        self._router.receive()
        self.end("")

    def end(self, reason: str) -> None:
        """End it, for `reason` or because it is too late: reject unsent writes; sent ones stay unknown."""
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting = self._waiting, {}
        held, self._held = self._held, {}
        # Held writes first: no exchange that ends here may carry one of them.
        for part in held:
            part.waits = False
            part.write.reject(part.store, reason or _BEHIND_ANOTHER, transient=not reason)
        self._router.cancel(waiting)
        for part in held:
            part.write.open_parts -= 1
            if not part.write.open_parts:
                self._handle_settled(part.write)
        for exchange in waiting:
            if exchange.sendings == exchange.unserved:
                said = exchange.reason or self._unreached(exchange.node)
                for section in exchange.sections.values():
                    self.reject(section, reason or said, transient=not reason)
            self._settle(exchange)

    def _unreached(self, node: str) -> str:
        why = self._router.why_down(node)
        return f"node {node!r} could not be reached in time{why and f' ({why})'}; nothing was sent to it"

"""A client's saves without sockets, loop or disk: a router whose messages a test moves by hand, and shards in memory.

Messages are reordered more than anywhere else: of those that wait for a node any may be sent next.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, TypeVarTuple

from dawnchorus.fragment_stores.apply_write import apply_write
from dawnchorus.fragment_stores.engine import LogRow
from dawnchorus.fragment_stores.log_rows import indeterminate, log_row, misused_id
from dawnchorus.router.dispatch.exchange import Exchange
from dawnchorus.router.saves.agent_write import AgentWrite
from dawnchorus.router.saves.commit_operation import _CommitExchange  # pyright: ignore[reportPrivateUsage]  # what a message carries
from dawnchorus.router.saves.save_coalescer import Saver
from dawnchorus.wire.cluster.placement import Placement
from dawnchorus.wire.protocol.messages import (
    Commit,
    CommitReply,
    CommitReplySection,
    FaultCode,
    Rejection,
    SectionStatus,
    Write,
    decode_request,
)

Ts = TypeVarTuple("Ts")


class HandLoop(asyncio.BaseEventLoop):
    """The part of an event loop that saves need: a turn ends, and time passes, when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self._soon: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_made = 0
        self.close()  # it has no resources, and is never run

    def time(self) -> float:
        """Return the test's time."""
        return self.now

    def call_soon(self, callback: Callable[[*Ts], object], *args: *Ts, context: Any = None) -> asyncio.Handle:
        """Run it at the end of the turn."""
        handle = asyncio.Handle(callback, args, self, context)
        self._soon.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Any = None
    ) -> asyncio.TimerHandle:
        """Run it when that time has come."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Any = None
    ) -> asyncio.TimerHandle:
        """Run it so much later."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: a cancelled timer is skipped when its time comes."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Ignore errors that nobody retrieved: a test looks at those that it is about."""

    def end_turn(self) -> None:
        """Run the callbacks that are due at the end of the turn."""
        for _ in range(len(self._soon)):
            _run(self._soon.popleft())

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and run the callbacks that are due by then."""
        self.now += seconds
        while self._timers and self._timers[0][0] <= self.now:
            _run(heapq.heappop(self._timers)[2])
            self.end_turn()


def _run(handle: asyncio.Handle) -> None:
    if not handle.cancelled():
        handle._run()  # pyright: ignore[reportPrivateUsage]  # as a loop does


class Applied(NamedTuple):
    """One write that a shard applied, and its number among those of its client."""

    write: Write
    version: int
    origin: AgentWrite


class MemoryShard:
    """One store's shard, by the rules of `apply_write` and of the log; keeps the last `log_rows_max` rows."""

    def __init__(self, generation: int, log_rows_max: int) -> None:
        self.images: dict[bytes, bytes] = {}
        self.version = generation << 40
        self.log: dict[bytes, tuple[int, LogRow]] = {}
        self.trimmed = 0
        self.applied: list[Applied] = []
        self._log_rows_max = log_rows_max

    def commit(self, write: Write, origin: AgentWrite) -> tuple[int | Rejection, list[str] | None]:
        """Apply a write; return its result and the kinds that it removed."""
        known = self.log.get(write.write_id)
        if known is not None:
            version, row = known
            misused = misused_id(row, write)
            return (version, row.removed) if misused is None else (misused, None)
        if write.repeated and write.seen < self.trimmed:
            return indeterminate(self.trimmed), None
        before = self.images.get(write.agent)
        version = self.version + 1
        after = apply_write(before, write, version, 0)
        if isinstance(after, Rejection):
            return after, None
        if after is before:
            return 0, None
        self.version = version
        row = log_row(write, before, 0)
        if after is None:
            del self.images[write.agent]
        else:
            self.images[write.agent] = bytes(after)
        self.log[write.write_id] = version, row
        self.applied.append(Applied(write, version, origin))
        if len(self.log) > self._log_rows_max:
            oldest = next(iter(self.log))
            self.trimmed = self.log.pop(oldest)[0]
        return version, row.removed


class _Frame(NamedTuple):
    exchange: _CommitExchange
    number: int
    frame: bytes
    origins: list[list[AgentWrite]]


class HandRouter:
    """The messages of one client: those that wait, those at their node, and the answers on their way back."""

    def __init__(self, placement: Placement, loop: HandLoop, *, log_rows_max: int = 1_000) -> None:
        self.placement: Placement | None = placement
        self._loop = loop
        self.shards = {
            (store, shard): MemoryShard(1, log_rows_max)
            for store, owners in placement.shards.items()
            for shard in range(len(owners))
        }
        self.nodes = sorted({owner.node for owners in placement.shards.values() for owner in owners})
        self.waiting: dict[str, list[_CommitExchange]] = {node: [] for node in self.nodes}
        self.inbox: dict[str, deque[_Frame]] = {node: deque() for node in self.nodes}
        self.answers: dict[str, deque[tuple[_CommitExchange, int, CommitReply | None]]] = {
            node: deque() for node in self.nodes
        }
        self.open: set[str] = set()
        """Nodes that are marked down: what is offered to them is rejected."""
        self._versions: dict[tuple[str, int], int] = {}
        self._numbers = 0

    # --- the router's side: used by saves ---

    def submit(self, exchanges: Collection[Exchange]) -> None:
        """Let exchanges wait for their node."""
        for exchange in exchanges:
            assert isinstance(exchange, _CommitExchange)
            assert exchange.sections, "an empty message"
            if exchange.node in self.open:
                self._loop.call_soon(exchange.handle_failure, None, "the node is marked down")
            else:
                self.waiting[exchange.node].append(exchange)

    def cancel(self, exchanges: Iterable[Exchange]) -> None:
        """Forget exchanges; their answers are ignored."""
        for exchange in exchanges:
            exchange.number = 0
            self.waiting[exchange.node] = [one for one in self.waiting[exchange.node] if one is not exchange]

    def note_version(self, store: str, shard: int, version: int) -> None:
        """Take note of a version."""
        self._versions[store, shard] = max(version, self._versions.get((store, shard), 0))

    def version_seen(self, store: str, shard: int) -> int:
        """Return the newest version that it knows of."""
        return self._versions.get((store, shard), 0)

    def why_down(self, node: str) -> str:
        """Return "": every node answers, or a test holds it."""
        return ""

    def receive(self) -> None:
        """Do nothing: answers come in when a test says so."""

    # --- the test's side: moves messages ---

    def send(self, node: str, index: int) -> None:
        """Send one of the waiting exchanges to its node."""
        exchange = self.waiting[node].pop(index)
        if exchange.deadline <= self._loop.now:
            return  # its save is about to fail
        self._numbers += 1
        exchange.number = self._numbers
        exchange.sendings += 1
        frame = exchange.encode(1, 0)
        origins = [list(section.writes) for section in exchange.sections.values()]
        self.inbox[node].append(_Frame(exchange, exchange.number, frame, origins))

    def serve(self, node: str) -> None:
        """Let a node commit the message that came first."""
        exchange, number, frame, origins = self.inbox[node].popleft()
        commit = decode_request(frame)
        assert isinstance(commit, Commit)
        sections: list[CommitReplySection] = []
        for index, section in enumerate(commit.sections):
            shard = self.shards[section.store, section.shard]
            if exchange.deadline <= self._loop.now:
                sections.append(CommitReplySection(index, SectionStatus.TOO_LATE, shard.version, []))
                continue
            results = [shard.commit(*one) for one in zip(section.writes, origins[index], strict=True)]
            removed = {place: kinds for place, (_, kinds) in enumerate(results) if kinds is not None}
            outcomes = [result for result, _ in results]
            sections.append(CommitReplySection(index, SectionStatus.OK, shard.version, outcomes, "", removed or None))
        self.answers[node].append((exchange, number, CommitReply(number, sections)))

    def overload(self, node: str) -> None:
        """Let a node reject the message that came first as overloaded."""
        exchange, number, _, _ = self.inbox[node].popleft()
        self.answers[node].append((exchange, number, None))

    def answer(self, node: str, *, again: bool) -> None:
        """Deliver the first answer; a rejected exchange is sent `again`, or its save notified."""
        exchange, number, committed = self.answers[node].popleft()
        if exchange.number != number:
            return  # nobody waits for it any more
        if committed is not None:
            exchange.handle_reply(committed)
            return
        exchange.unserved += 1
        if again:
            self.waiting[node].append(exchange)
        else:
            exchange.handle_failure(FaultCode.OVERLOADED, "too much")

    def break_connection(self, node: str, repeats: Sequence[bool]) -> None:
        """Lose all messages to and from a node, as the connection that they belong to has broken."""
        lost = [frame.exchange for frame in self.inbox[node] if frame.exchange.number == frame.number]
        lost += [exchange for exchange, number, _ in self.answers[node] if exchange.number == number]
        self.inbox[node].clear()
        self.answers[node].clear()
        for exchange, is_repeated in zip(lost, repeats, strict=False):
            if is_repeated:
                self.waiting[node].insert(0, exchange)
            else:
                exchange.handle_failure(None, "the connection broke")


def hand_saver(router: HandRouter, kinds_of: Callable[[str], Sequence[str]], loop: HandLoop) -> Saver:
    """Return a saver whose router and time a test moves."""
    return Saver(router, kinds_of, _ignore, loop=loop, clock=loop.time)


def _ignore(_store: str, _acknowledged: list[tuple[bytes, int]]) -> None:
    """Notify no wake: there are none."""

"""Requests with one plain answer: the status of nodes, a copy of a shard, a page of its agents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from ...wire.errors import ClusterUnavailable, DawnchorusError, PeerFault, ProtocolError
from ...wire.protocol.messages import (
    Answer,
    Backup,
    BackupReply,
    FaultCode,
    Scan,
    ScanReply,
    SectionStatus,
    Status,
    StatusReply,
    encode,
)
from .exchange import Exchange
from .judgement import Judgement
from .router import Router
from .send_queue import Priority

__all__ = ["back_up_shard", "node_status", "scan_shard"]

R = TypeVar("R", ScanReply, StatusReply, BackupReply)


class _Call(Exchange, Generic[R]):
    """One request that is answered by one message of type R."""

    __slots__ = ("_answer", "_reply_type", "_request")

    def __init__(
        self,
        node: str,
        deadline: float,
        expected_bytes: int,
        reply_type: type[R],
        request: Callable[[int, int, int], Scan | Status | Backup],
        caller: object = None,
    ) -> None:
        super().__init__(node, deadline, expected_bytes, self if caller is None else caller, Priority.BACKGROUND)
        self._reply_type: type[R] = reply_type
        self._request = request
        self._answer: asyncio.Future[R] | None = None  # until it is asked

    def encode(self, budget_us: int, sent_us: int) -> bytes:
        return encode(self._request(self.number, budget_us, sent_us))

    def handle_reply(self, reply: Answer) -> bool:
        if not isinstance(reply, self._reply_type):
            raise ProtocolError(f"{type(reply).__name__} where {self._reply_type.__name__} was asked for")
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(reply)
        return True

    def handle_failure(self, code: FaultCode | None, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(PeerFault(code.name, reason) if code else ClusterUnavailable(reason))

    async def run(self, router: Router) -> R:
        """Ask, and return the answer.

        Raises:
            ClusterUnavailable: none came by the deadline. PeerFault: the node rejected it.
        """
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._answer = answer
        judged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        judgement = Judgement(self.deadline, lambda: judged.set_result(None), clock=router.clock)
        router.submit([self])
        try:
            ends: set[asyncio.Future[Any]] = {answer, judged}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                router.receive()  # a loop that stalled runs its timers before it reads its sockets
            if answer.done() and not answer.cancelled():
                return answer.result()
            why = router.why_down(self.node)
            how = f"is not connected: {why}" if why else "did not answer in time"
            raise ClusterUnavailable(f"node {self.node!r} {how}")
        finally:
            judgement.cancel()
            router.cancel([self])


class _StatusCall(_Call[StatusReply]):
    """A question about node health: asked once, and also of a node that is marked down; "overloaded" is an answer."""

    __slots__ = ()

    repeatable = False
    guarded = False


class _BackupCall(_Call[BackupReply]):
    """A copy of a shard: the node may still write, or have written, the file when the connection is there again."""

    __slots__ = ()

    repeatable = False
    cancellable = False
    waits_for_disk = True


async def node_status(
    router: Router, nodes: Sequence[str], deadline_s: float
) -> dict[str, StatusReply | DawnchorusError]:
    """Return each node's own status, or the error that it gave."""
    deadline = router.clock() + deadline_s

    def request(number: int, budget_us: int, sent_us: int) -> Status:
        return Status(number, budget_us, sent_us, None)

    async def ask(node: str) -> StatusReply | DawnchorusError:
        try:
            return await _StatusCall(node, deadline, 1 << 16, StatusReply, request).run(router)
        except DawnchorusError as error:
            return error

    return dict(zip(nodes, await asyncio.gather(*map(ask, nodes)), strict=True))


async def back_up_shard(
    router: Router, store: str, shard: int, path: str, rate_bytes_s: int, deadline_s: float
) -> BackupReply:
    """Let the owner of a shard write a copy of it to `path`, a new file on the node's host.

    Raises:
        ClusterUnavailable: the outcome is unknown; try again with another path. PeerFault: the node rejected it.
    """
    assert router.placement is not None
    owner = router.placement.shards[store][shard]

    def request(number: int, budget_us: int, sent_us: int) -> Backup:
        return Backup(number, budget_us, sent_us, None, store, shard, owner.serving_epoch, path, rate_bytes_s)

    return await _BackupCall(owner.node, router.clock() + deadline_s, 1 << 10, BackupReply, request).run(router)


async def scan_shard(
    router: Router, store: str, shard: int, after: bytes, agents_max: int, deadline_s: float, prefix: bytes = b""
) -> ScanReply:
    """Return the next ids of a shard behind `after`, in the order of their bytes, as far as they begin with `prefix`.

    Raises:
        ClusterUnavailable: they could not be read. PeerFault: the node rejected it.
    """
    assert router.placement is not None
    owner = router.placement.shards[store][shard]

    def request(number: int, budget_us: int, sent_us: int) -> Scan:
        return Scan(number, budget_us, sent_us, None, store, shard, owner.serving_epoch, after, agents_max, prefix)

    scanned = await _Call(owner.node, router.clock() + deadline_s, 1 << 16, ScanReply, request).run(router)
    reason = "" if scanned.status == SectionStatus.OK else _status_name(scanned.status)
    if scanned.agents and scanned.agents[0] <= after:
        reason = "it lists what it had listed before"
    if reason:
        raise ClusterUnavailable(f"shard {shard} of store {store!r} at node {owner.node!r} cannot be listed: {reason}")
    return scanned


def _status_name(status: int) -> str:
    """Return a section's status as a person reads it."""
    try:
        return SectionStatus(status).name
    except ValueError:
        return f"status {status}"

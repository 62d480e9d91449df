"""A client's internals: the one place where tests look behind the public interface."""

# pyright: reportPrivateUsage=false

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from dawnchorus import Cluster, SyncCluster
from dawnchorus.router.client.loop_thread import LoopThread
from dawnchorus.router.client.sync_host import HostedCluster
from dawnchorus.router.dispatch.circuit_breaker import BreakerState
from dawnchorus.router.dispatch.dispatcher import Dispatcher
from dawnchorus.router.dispatch.exchange import Exchange
from dawnchorus.router.dispatch.router import Router
from dawnchorus.router.dispatch.send_queue import Priority
from dawnchorus.router.dispatch.unary_call import _BackupCall, _Call, _StatusCall
from dawnchorus.router.wakes.fetch_operation import FetchOperation
from dawnchorus.wire.protocol.messages import Answer, BackupReply, Scan, ScanReply, Status, StatusReply
from dawnchorus.wire.transport.connection import Link
from tests.support.memory_network import Network
from tests.support.virtual_time import VirtualLoop

__all__ = [
    "ReplyDropper",
    "break_next_fetch",
    "call_exchange",
    "drop_replies",
    "exchange",
    "failure_of",
    "is_marked_down",
    "is_up",
    "kept_choices",
    "kept_exchanges",
    "leftovers",
    "open_breaker",
    "open_routers_by",
    "open_routers_on",
    "receive_together",
    "rejections",
    "reply_of",
    "sendings",
    "stray_replies",
    "thread_of",
]


def leftovers(cluster: Cluster) -> dict[str, int]:
    """Return what a client still holds of requests, by table; empty once no call waits."""
    router, wakes = cluster._session.router, cluster._session.wakes.coalescer
    tables = {
        **kept_exchanges(router.dispatcher),
        "replies": len(router._replies),
        "pending": len(wakes._pending),
        "under way": sum(len(of_choice.batches) for of_choice in wakes._under_way.values()),
        "choices": len(wakes._under_way),
        "acknowledged": len(cluster._session.wakes.fetcher.acknowledged),
        "fetches": cluster._session.wakes.fetcher.acknowledged._fetches,
        "streams": len(cluster._session.wakes._streams),
        "saves": len(cluster._session.saver),
    }
    return {name: count for name, count in tables.items() if count}


def open_routers_on(cluster: Cluster, network: Network) -> None:
    """Let a client that is not open yet connect in memory, by the time of the network's loop."""
    open_routers_by(cluster, lambda: Router(network.loop.time, network, random.Random(1).random))


def open_routers_by(cluster: Cluster, open_router: Callable[[], Router]) -> None:
    """Give a client that is not open yet the router that this function makes."""
    cluster._open_router = open_router


def thread_of(cluster: SyncCluster) -> LoopThread[HostedCluster]:
    """Return the thread of an open SyncCluster."""
    thread = cluster._host._thread
    assert thread is not None
    return thread


def kept_choices(cluster: Cluster) -> int:
    """Return how many choices of kinds a client keeps something of."""
    wakes, kinds = cluster._session.wakes, cluster._session.kinds
    return len(wakes._choices) + len(wakes._specs) + len(wakes.coalescer._under_way) + len(kinds._layouts)


def break_next_fetch(cluster: Cluster) -> None:
    """Let the next fetch of a client end in an unexpected exception, before it is sent."""
    fetcher = cluster._session.wakes.fetcher
    fetch = fetcher.fetch

    def break_once(*_: object) -> FetchOperation:
        fetcher.fetch = fetch  # type: ignore[method-assign]
        raise ZeroDivisionError("as the test wants it")

    fetcher.fetch = break_once  # type: ignore[assignment, method-assign]


def is_up(cluster: Cluster, node: str) -> bool:
    """Return whether the client is connected to a node."""
    return cluster._session.router.is_up(node)


def rejections(cluster: Cluster) -> dict[str, str]:
    """Return why nodes and this client do not belong together, by node."""
    return cluster._session.router.members._rejections


def is_marked_down(cluster: Cluster, node: str) -> bool:
    """Return whether the client's breaker of a node is open."""
    return cluster._session.router.dispatcher.flows[node].breaker.state is BreakerState.OPEN


def stray_replies(cluster: Cluster) -> int:
    """Return how many stray or malformed replies came."""
    return cluster._session.router.dispatcher.stray_replies


class Sendings(NamedTuple):
    """Requests that a client sent: all of them, and those that had to be sent once anyway."""

    all: int
    needed: int


def sendings(cluster: Cluster) -> Sendings:
    """Return what a client has sent so far."""
    dispatcher = cluster._session.router.dispatcher
    return Sendings(dispatcher.requests_sent, dispatcher.requests_sent - dispatcher.retries.retries)


def receive_together(cluster: Cluster, replies: Sequence[tuple[str, bytes]]) -> None:
    """Deliver replies of several nodes to a client in one turn, as if they had just arrived."""
    router = cluster._session.router
    router._replies.extend([(node, memoryview(frame)) for node, frame in replies])
    router._turn()


class ReplyDropper:
    """A filter that drops, and counts, a share of the replies to one client, as if they had never come."""

    def __init__(self, router: Router, chance: random.Random, share: float) -> None:
        self.dropped = 0
        self._router = router
        self._chance = chance
        self.share = share
        self.handle_up = router.members.handle_up
        self.handle_down = router.members.handle_down
        self.handle_silent = router.members.handle_silent
        self.handle_heard = router.members.handle_heard
        self.handle_rejected = router.members.handle_rejected

    def handle_frames(self, link: Link, frames: list[memoryview]) -> None:
        """Pass on the frames that are not dropped."""
        kept = [frame for frame in frames if self._chance.random() >= self.share]
        self.dropped += len(frames) - len(kept)
        self._router.members.handle_frames(link, kept)


def drop_replies(cluster: Cluster, chance: random.Random, *, share: float) -> ReplyDropper:
    """Let a client lose a share of the replies to it from now on; its greetings come through."""
    router = cluster._session.router
    dropper = ReplyDropper(router, chance, share)
    for link in router.members.links.values():
        link._owner = dropper
    return dropper


def exchange(
    expected_bytes: int = 1_000,
    *,
    repeatable: bool = True,
    guarded: bool = True,
    deadline: float = 1e6,
    caller: object = "the caller of most",
) -> Exchange:
    """Return an exchange for flow control: one that nobody awaits. (Compiled classes have no doubles.)"""
    made: Exchange
    if not guarded:
        made = _StatusCall("node", deadline, expected_bytes, StatusReply, _never_sent, caller)
    elif repeatable:
        made = _Call("node", deadline, expected_bytes, ScanReply, _never_sent, caller)
    else:
        made = _BackupCall("node", deadline, expected_bytes, BackupReply, _never_sent, caller)
    made.priority = Priority.URGENT
    return made


_loop_of_answers = VirtualLoop()
_loop_of_answers.close()  # it never runs


def call_exchange(node: str, deadline: float, *, durable: bool = False, status: bool = False) -> Exchange:
    """Return an exchange that a dispatcher can be given, and that keeps what it is notified of.

    A listing; `durable`: a backup, which is not repeated; `status`: a question for a node's status.
    """
    made: _Call[Any]
    if status:
        made = _StatusCall(node, deadline, 1_000, StatusReply, _never_sent)
    elif durable:
        made = _BackupCall(node, deadline, 1_000, BackupReply, _never_sent)
    else:
        made = _Call(node, deadline, 1_000, ScanReply, _never_sent)
    made._answer = asyncio.Future(loop=_loop_of_answers)
    return made


def reply_of(exchange: Exchange) -> Answer | None:
    """Return the reply that an exchange of `call_exchange` got, None if none."""
    answer = _answer_of(exchange)
    return answer.result() if answer.done() and answer.exception() is None else None


def failure_of(exchange: Exchange) -> str:
    """Return why an exchange of `call_exchange` failed, "" if it did not."""
    answer = _answer_of(exchange)
    return str(answer.exception() or "") if answer.done() else ""


def _answer_of(exchange: Exchange) -> "asyncio.Future[Any]":
    answer = cast("_Call[Any]", exchange)._answer
    assert answer is not None
    return answer


def kept_exchanges(dispatcher: Dispatcher) -> dict[str, int]:
    """Return what a dispatcher still holds of exchanges, by table; empty once none is under way."""
    flows = dispatcher.flows.values()
    tables = {
        "exchanges": sum(map(len, flows)),
        "delayed": len(dispatcher._delayed),
        "in flight": sum(flow.window.in_flight for flow in flows),
        "expected bytes": sum(flow.window.expected_bytes for flow in flows),
    }
    return {name: count for name, count in tables.items() if count}


def open_breaker(dispatcher: Dispatcher, node: str, now: float) -> None:
    """Let a node be marked down."""
    dispatcher.flows[node].breaker._open(now, silent=True)


def _never_sent(*_: int) -> Scan | Status:
    raise AssertionError("flow control encodes nothing")

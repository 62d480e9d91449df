"""The dispatcher, which decides what is sent to which node and when, and whose answer a frame is. Pure.

The path of a request: an exchange (a fetch, commit, scan or status for one node) is given to `submit`; its node's
`NodeFlow` says whether and when it may be sent; `poll_send` returns it, numbered, when its turn has come; its replies
come back by that number to `handle_frame` until one is the last. The exchange's owner keeps its deadline, and calls
`cancel`. An exchange that was sent and got no answer because the connection broke, or because the node was overloaded,
is sent again, within its deadline and one budget for all of the router's retries.

Events go in with `now`, in seconds of the monotonic clock; exchanges are notified of replies and failures at once (they
may submit and cancel others meanwhile). Everything else is returned: by `poll_send` the exchanges to send, by
`poll_timeout` the time at which `handle_timeout` has work, and by each method what else it asks for. The loop, the
links and the clock are in the shell beside it, `router`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from itertools import chain
from typing import Final, NamedTuple

from ...wire.cluster.topology import RetrySpec, Topology
from ...wire.errors import ProtocolError
from ...wire.protocol.limits import CANCEL_NUMBERS_MAX
from ...wire.protocol.messages import Cancel, Fault, FaultCode, Pong, Reply, Welcome, decode_reply, encode
from ...wire.protocol.status_codes import fault_code
from .exchange import Exchange
from .load_shedding import REJECTIONS, is_shed_whole
from .node_flow import NodeFlow, Offer
from .retry_budget import RetryBudget
from .timetable import Timetable

__all__ = ["Dispatcher", "Stray"]

_CANCEL_WORTH_S: Final = 0.005
"""Nodes drop late requests by themselves: a cancel is worth sending for those that have longer to go."""

_GREETINGS: Final = (Welcome, Pong)
"""Replies to no request; one tuple, as a union would be made again for each frame."""


class Stray(NamedTuple):
    """A frame that answers no request, and why."""

    reason: str
    is_forgotten: bool = False
    """Whether its node has forgotten this router: the link is to be reopened."""


class Dispatcher:
    """Exchanges with the nodes of one cluster."""

    def __init__(self, chance: Callable[[], float]) -> None:
        """`chance` draws from 0 to 1, for jitter: not all routers are to come at the same moment."""
        self._chance = chance
        self._topology: Topology | None = None
        self.flows: dict[str, NodeFlow] = {}
        """Flow control by node."""
        self.retries = RetryBudget(RetrySpec(), chance)
        self._outgoing: deque[Exchange] = deque()  # numbered, to be sent before anything else
        self._ready: dict[str, None] = {}  # nodes whose flow may have something to send
        self._delayed: Timetable[Exchange] = Timetable()  # to be sent again when their nodes asked them to
        self._resumptions: Timetable[str] = Timetable()  # nodes to be looked at though nothing happens
        self.is_receiving = False
        """Set while frames that came together are received: waiting exchanges are not sent before the last of them."""
        self.requests_sent = 0
        """Requests sent to nodes, repeated ones included."""
        self.stray_replies = 0
        """Replies to requests that have ended, and frames that are no reply."""

    # --- the cluster ---

    def handle_topology(self, topology: Topology) -> None:
        """Accept the cluster's settings, the first ones or extended ones."""
        self._topology = topology
        self.retries = RetryBudget(topology.retries, self._chance)
        for node in topology.nodes:
            self._flow(node)

    def is_up(self, node: str) -> bool:
        """Return whether a node is connected, and not silent."""
        flow = self.flows.get(node)
        return flow is not None and flow.up

    def handle_up(self, node: str, now: float) -> None:
        """Resume sending to a node that welcomed this router."""
        flow = self.flows[node]
        self._resumptions.cancel(node)
        # All routers of a node that comes back are there at the same moment: one with something to send waits a little.
        flow.handle_up(now + (self.retries.jitter_s() if len(flow) else 0.0))
        self._ready[node] = None

    def handle_down(self, node: str, now: float) -> None:
        """Handle a broken connection: repeatable exchanges wait for the next one, as far as the budget goes."""
        flow = self.flows.get(node)
        if flow is not None:
            for exchange in flow.handle_down(now, lambda: self.retries.withdraw(now)):
                exchange.handle_failure(None, f"the connection to node {node!r} broke")
            self._release(node, flow)

    def handle_silent(self, node: str) -> None:
        """Send nothing new to a silent node; exchanges on their way stay there."""
        self.flows[node].handle_silent()

    def handle_heard(self, node: str, now: float) -> None:
        """Resume sending to a node that was silent and has said something."""
        flow = self.flows[node]
        flow.handle_up(max(now, flow.paused_until))
        self._ready[node] = None

    def close(self, reason: str) -> None:
        """Fail all exchanges."""
        self._outgoing.clear()
        self._ready.clear()
        self._resumptions.drain()
        for exchange in [*self._delayed.drain(), *chain.from_iterable([flow.drain() for flow in self.flows.values()])]:
            exchange.handle_failure(None, reason)

    def _flow(self, node: str) -> NodeFlow:
        flow = self.flows.get(node)
        if flow is None:
            # The placement names this node, and the present topology does not: a later one may.
            assert self._topology is not None, "nothing is submitted before the cluster is known"
            flow = self.flows[node] = NodeFlow(self._topology.breaker, self._topology.admission)
        return flow

    # --- requests ---

    def submit(self, exchanges: Collection[Exchange], now: float) -> list[tuple[Exchange, Offer]]:
        """Accept exchanges of one caller, in an order that goes round the nodes; return those rejected, and why.

        Those are to be notified (`load_shedding.reject`) once their caller is prepared for it.
        """
        flows = [self._flow(exchange.node) for exchange in exchanges]
        if any([flow.is_crowded for flow in flows]) and is_shed_whole(exchanges, flows, now):
            return [(exchange, Offer.FULL) for exchange in exchanges]
        rejected: list[tuple[Exchange, Offer]] = []
        for exchange, flow in zip(exchanges, flows, strict=True):
            offer = flow.offer(exchange, now)
            if offer is Offer.GO:
                self._outgoing.append(exchange)
            elif offer is not Offer.WAITS:
                rejected.append((exchange, offer))
            elif exchange.patient:
                self._resumptions.schedule(exchange.node, flow.polls_at(now))
        return rejected

    def cancel(self, exchanges: Iterable[Exchange], now: float) -> list[tuple[str, bytes]]:
        """Forget exchanges that nobody waits for any more; their replies are ignored.

        Returns frames that notify nodes, if that may still spare them work.
        """
        numbers: dict[str, list[int]] = {}
        for exchange in exchanges:
            spared = numbers.setdefault(exchange.node, [])
            self._delayed.cancel(exchange)
            on_its_way = self.flows[exchange.node].cancel(exchange, now)
            if on_its_way and exchange.cancellable and exchange.deadline - now > _CANCEL_WORTH_S:
                spared.append(exchange.number)
        cancels: list[tuple[str, bytes]] = []
        for node, spared in numbers.items():
            starts = range(0, len(spared), CANCEL_NUMBERS_MAX)
            cancels += [(node, encode(Cancel(spared[start : start + CANCEL_NUMBERS_MAX]))) for start in starts]
            self._release(node, self.flows[node])
        return cancels

    def poll_send(self, now: float) -> Exchange | None:
        """Return the next exchange to send now, numbered; None if there is none.

        One for which the connection has no room comes back by `handle_unsent`.
        """
        while True:
            if self._outgoing:
                exchange = self._outgoing.popleft()
                flow = self.flows[exchange.node]
            elif self._ready and not self.is_receiving:
                node = next(iter(self._ready))
                flow = self.flows[node]
                polled = flow.poll_send(now)
                if polled is None:
                    del self._ready[node]
                    self._resumptions.schedule(node, flow.polls_at(now))
                    continue
                exchange = polled
            else:
                return None
            if exchange.deadline - now < 1e-6:
                flow.drop(exchange)  # its owner's timer is about to end it
                continue
            self.requests_sent += 1
            if exchange.sendings == 1:
                self.retries.handle_request(now)
            return exchange

    def handle_unsent(self, exchange: Exchange, now: float) -> None:
        """Let an exchange for which the connection had no room wait, before all others, for a sign of its node."""
        node = exchange.node
        behind = [other for other in self._outgoing if other.node == node]
        if behind:
            self._outgoing = deque([other for other in self._outgoing if other.node != node])
        self.requests_sent -= 1
        if exchange.sendings == 1:
            self.retries.handle_unsent()
        for unsent in [*reversed(behind), exchange]:
            self.flows[node].handle_unsent(unsent, now)
        self._ready.pop(node, None)

    # --- time ---

    def poll_timeout(self) -> float:
        """Return when `handle_timeout` may have something to do; infinite if nothing waits for its time."""
        delayed, resumed = self._delayed.earliest, self._resumptions.earliest
        return delayed if delayed < resumed else resumed

    def handle_timeout(self, now: float) -> None:
        """Do what is due, perhaps at the time of `poll_timeout`."""
        for exchange in self._delayed.pop_due(now):
            self.flows[exchange.node].send_again(exchange, now)
            self._ready[exchange.node] = None
        for node in self._resumptions.pop_due(now):
            self._ready[node] = None

    # --- replies ---

    def handle_frame(self, node: str, frame: memoryview, now: float) -> Stray | None:
        """Receive a frame from a node; return what is wrong with it, if anything is."""
        try:
            reply: Reply = decode_reply(frame)
        except ProtocolError as error:
            self.stray_replies += 1
            return Stray(str(error))
        if isinstance(reply, _GREETINGS):
            return None
        flow = self.flows[node]
        exchange = flow.find(reply.request)
        if isinstance(reply, Fault):
            if reply.code == FaultCode.NO_HELLO:
                return Stray(reply.detail, is_forgotten=True)  # connect again, and repeat what may be repeated
            if exchange is not None:
                self._handle_fault(node, flow, exchange, reply, now)
            return None
        if exchange is None:
            self.stray_replies += 1  # late: its deadline has passed
            flow.handle_stray(now)
            if flow.is_awaited:
                self._ready[node] = None
            return None
        try:
            last = exchange.handle_reply(reply)
        except ProtocolError as error:
            self.stray_replies += 1
            flow.handle_failed(exchange, now)
            exchange.handle_failure(None, f"node {node!r} answered something else: {error}")
            self._release(node, flow)
            return Stray(str(error))
        if last:
            flow.handle_answered(exchange, now)
            if flow.is_awaited:
                self._ready[node] = None
        return None

    def _handle_fault(self, node: str, flow: NodeFlow, exchange: Exchange, fault: Fault, now: float) -> None:
        if fault.code == FaultCode.OVERLOADED:
            if self._handle_overloaded(flow, exchange, fault, now):
                return
        elif fault.code == FaultCode.INTERNAL:
            flow.handle_failed(exchange, now)
        else:
            flow.handle_answered(exchange, now)
        exchange.handle_failure(fault_code(fault.code), fault.detail)
        self._release(node, flow)

    def _handle_overloaded(self, flow: NodeFlow, exchange: Exchange, fault: Fault, now: float) -> bool:
        """Leave the node alone for as long as it asks; return whether the exchange is sent again then."""
        pause_s = fault.retry_after_us / 1e6 + self.retries.jitter_s()
        flow.handle_overloaded(exchange, now, pause_s)
        if not exchange.repeatable or exchange.deadline <= now + pause_s or not self.retries.withdraw(now):
            return False
        if exchange.waits_for_disk:
            self._delayed.schedule(exchange, now + pause_s)
        else:
            flow.send_again(exchange, now)
            self._ready[exchange.node] = None
        return True

    def _release(self, node: str, flow: NodeFlow) -> None:
        """Let a node's next exchange be sent after one has ended; reject those that wait if it was just marked down."""
        for exchange in flow.rejected_by_breaker():
            exchange.handle_failure(None, REJECTIONS[Offer.OPEN][1])
        self._ready[node] = None

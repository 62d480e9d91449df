"""The router: links to all nodes, flow control towards each, and the exchanges on their way.

How a request passes through: an exchange (a fetch, commit, scan or status for one node) is handed to `submit`; its
node's `NodeFlow` says whether and when it may go; it is encoded with what is left of its deadline and sent on the
node's `Link`; its replies come back by number until one is the last. Whoever made the exchange keeps its deadline, and
calls `cancel`. What was sent and got no answer because the connection broke, or because the node had too much to do,
is sent again, within its deadline and one budget for all of the router's retries.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from itertools import chain
from typing import Final

from ...wire.cluster.placement import Placement
from ...wire.cluster.topology import RetrySpec, Topology
from ...wire.errors import ProtocolError
from ...wire.protocol.limits import CANCEL_NUMBERS_MAX
from ...wire.protocol.messages import Cancel, Fault, FaultCode, Pong, Reply, Welcome, decode_reply, encode
from ...wire.protocol.status_codes import fault_code
from ...wire.repeated_lines import limited_logger
from .exchange import Exchange
from .load_shedding import REFUSALS, is_shed_whole, refuse
from .membership import Membership
from .node_flow import NodeFlow, Offer
from .resumptions import Resumptions
from .retry_budget import RetryBudget

__all__ = ["Router"]

_TURN_FRAMES_MAX: Final = 8
"""Replies taken in before timers and tasks get their turn: 8 MiB, about 4 ms."""

_CANCEL_WORTH_S: Final = 0.005
"""A node drops by itself what is late: telling it that nobody waits pays for what has longer to go."""

_GREETINGS: Final = (Welcome, Pong)
"""Replies to no request; as one tuple, since a union would be made anew for each frame."""

_log = limited_logger(__name__)


class Router:
    """A router to one cluster, in the thread of one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.members = Membership(self)
        self._flows: dict[str, NodeFlow] = {}
        self._resumptions = Resumptions(self._pump)
        self._delayed: set[Exchange] = set()
        self._replies: deque[tuple[str, memoryview]] = deque()
        self._turn_scheduled = False
        self._taking_in = False
        self._pump_later: dict[str, None] = {}
        self.retries = RetryBudget(RetrySpec())
        self.handle_grown: Callable[[Topology], None] | None = None
        """Whom to tell of a topology that has got more than the one before: `connect` returns the first."""
        self.closed = False
        self.requests_sent = 0
        """Requests that went to nodes, those sent again among them."""
        self.stray_replies = 0
        """Replies to requests that nobody waits for any more, and frames that are no reply."""

    # --- the cluster ---

    @property
    def placement(self) -> Placement | None:
        """The newest placement that a Welcome brought, None before the first."""
        return self.members.placement

    def note_version(self, store: str, shard: int, version: int) -> None:
        """Take note of a version that a shard has reached."""
        self.members.note_version(store, shard, version)

    def version_seen(self, store: str, shard: int) -> int:
        """Return the newest version of a shard that this router was told of, 0 for none."""
        return self.members.version_seen(store, shard)

    async def connect(self, source: Topology | str, deadline_s: float) -> tuple[Topology, Placement]:
        """Connect to the nodes of a topology, or to those that the node at an endpoint names (`Membership.connect`)."""
        return await self.members.connect(source, deadline_s)

    def handle_topology(self, topology: Topology) -> None:
        """The cluster's settings are known."""
        self.retries = RetryBudget(topology.retries)
        for node in topology.nodes:
            self._flows.setdefault(node, NodeFlow(topology.breaker, topology.admission))
        if self.handle_grown is not None:
            self.handle_grown(topology)

    def handle_node_up(self, node: str) -> None:
        """A node welcomed this router."""
        flow, now = self._flows[node], time.monotonic()
        # All routers of a node that comes back are there at the same moment: who has something to send waits a little.
        self._resumptions.cancel(node)
        jitter_s = self.retries.jitter_s() if len(flow) else 0.0
        flow.handle_up(now + jitter_s)
        self._pump(node)

    def handle_node_down(self, node: str) -> None:
        """The connection to a node broke: what may be repeated waits for the next one, as far as the budget goes."""
        flow = self._flows.get(node)
        if flow is not None:
            # Replies of the broken connection that were not taken in yet are asked for again with the rest.
            # In place: this may be in the middle of a turn over them.
            others = [reply for reply in self._replies if reply[0] != node]
            self._replies.clear()
            self._replies.extend(others)
            now = time.monotonic()
            for exchange in flow.handle_down(now, lambda: self.retries.withdraw(now)):
                exchange.handle_failure(None, f"the connection to node {node!r} broke")
            self._give_up_waiting(node)

    def handle_node_silent(self, node: str) -> None:
        """A node has said nothing for a while: nothing new is sent to it, what is on its way stays on its way."""
        self._flows[node].handle_silent()

    def handle_node_heard(self, node: str) -> None:
        """A node that was silent has said something: all goes on."""
        flow = self._flows[node]
        flow.handle_up(max(time.monotonic(), flow.paused_until))
        self._pump(node)

    def is_up(self, node: str) -> bool:
        """Return whether a node is connected."""
        flow = self._flows.get(node)
        return flow is not None and flow.up

    def why_down(self, node: str) -> str:
        """Return why a node is not connected, "" if it is."""
        return "" if self.is_up(node) else self.members.why_down(node)

    def close(self) -> None:
        """Close every connection; what is on its way fails."""
        if self.closed:
            return
        self.closed = True
        # Exchanges first: whoever waits is told before the links say that they are down.
        delayed, self._delayed = self._delayed, set()
        for exchange in [*delayed, *chain.from_iterable([flow.drain() for flow in self._flows.values()])]:
            exchange.handle_failure(None, "the cluster was closed")
        self._resumptions.close()
        self._replies.clear()
        self.members.close()

    # --- requests ---

    def submit(self, exchanges: Collection[Exchange]) -> None:
        """Send exchanges, each when its node has room for it; those refused are told so in the next turn of the loop.

        They are one caller's, in an order that goes round the nodes.
        """
        now = time.monotonic()
        refused: list[tuple[Exchange, Offer]] = []
        flows = [self._flow(exchange.node) for exchange in exchanges]
        if any([flow.is_crowded for flow in flows]) and is_shed_whole(exchanges, flows, now):
            self._loop.call_soon(refuse, [(exchange, Offer.FULL) for exchange in exchanges])
            return
        for exchange, flow in zip(exchanges, flows, strict=True):
            offer = flow.offer(exchange, now)
            if offer is Offer.GO:
                self._send(flow, exchange, now)
            elif offer is not Offer.WAITS:
                refused.append((exchange, offer))
            elif exchange.patient:
                self._resumptions.schedule(exchange.node, flow.polls_at(now))
        if refused:
            self._loop.call_soon(refuse, refused)

    def _flow(self, node: str) -> NodeFlow:
        flow = self._flows.get(node)
        if flow is None:
            # A node that the placement names and the topology at hand does not: it may yet be learned of.
            topology = self.members.topology
            assert topology is not None, "nothing is submitted before the cluster is known"
            flow = self._flows[node] = NodeFlow(topology.breaker, topology.admission)
        return flow

    def cancel(self, exchanges: Iterable[Exchange]) -> None:
        """Forget exchanges that nobody waits for any more; their replies are ignored.

        Where a node may still be spared work it is told.
        """
        now = time.monotonic()
        numbers: dict[str, list[int]] = {}
        for exchange in exchanges:
            spared = numbers.setdefault(exchange.node, [])
            self._delayed.discard(exchange)
            on_its_way = self._flows[exchange.node].cancel(exchange, now)
            if on_its_way and exchange.cancellable and exchange.deadline - now > _CANCEL_WORTH_S:
                spared.append(exchange.number)
        for node, spared in numbers.items():
            for start in range(0, len(spared), CANCEL_NUMBERS_MAX):
                self.members.links[node].send(encode(Cancel(spared[start : start + CANCEL_NUMBERS_MAX])))
            self._give_up_waiting(node)
            self._pump(node)

    def _give_up_waiting(self, node: str) -> None:
        """Tell what waits for a node that has just been taken for dead."""
        for exchange in self._flows[node].refused_by_breaker():
            exchange.handle_failure(None, REFUSALS[Offer.OPEN][1])

    def _pump(self, node: str) -> None:
        """Send what may go to a node now; where it is to be left alone for a while, come back then."""
        if self._taking_in:
            self._pump_later[node] = None
            return
        flow = self._flows[node]
        now = time.monotonic()
        while (exchange := flow.poll_send(now)) is not None:
            if not self._send(flow, exchange, now):
                return
        self._resumptions.schedule(node, flow.polls_at(now))

    def _send(self, flow: NodeFlow, exchange: Exchange, now: float) -> bool:
        budget_us = int((exchange.deadline - now) * 1e6)
        if budget_us <= 0:
            flow.drop(exchange)  # its owner's timer is about to say so
            return True
        if not self.members.links[exchange.node].send(exchange.encode(budget_us, int(now * 1e6))):
            flow.handle_unsent(exchange, now)
            return False
        self.requests_sent += 1
        if exchange.sendings == 1:
            self.retries.handle_request(now)
        return True

    # --- replies ---

    def handle_node_frames(self, node: str, frames: list[memoryview]) -> None:
        """Replies came in from a node."""
        self._replies.extend([(node, frame) for frame in frames])
        if not self._turn_scheduled and not self._taking_in:
            self._turn()

    def take_in(self) -> None:
        """Take in what has come already, before a deadline is judged: a loop that stalled runs its timers first.

        All of it, however much came together in the stall: each node's window bounds it, as what waits is not sent
        before all is taken in.
        """
        if self._taking_in:
            return
        self._taking_in = True
        try:
            self._drain()
        finally:
            self._taking_in = False
            later, self._pump_later = self._pump_later, {}
            for node in later:
                self._pump(node)

    def _drain(self) -> None:
        replies = self._replies
        while True:
            self.members.poll()
            if not replies:
                return
            while replies:
                self._handle_frame(*replies.popleft())

    def _turn(self) -> None:
        self._turn_scheduled = False
        replies = self._replies
        try:
            for _ in range(_TURN_FRAMES_MAX):
                if not replies:
                    return
                self._handle_frame(*replies.popleft())
        finally:
            # Also where one of them went wrong: the others must not wait for the next that comes.
            if replies and not self._turn_scheduled:
                self._turn_scheduled = True
                self._loop.call_soon(self._turn)

    def _handle_frame(self, node: str, frame: memoryview) -> None:
        try:
            reply: Reply = decode_reply(frame)
        except ProtocolError as error:
            self._stray(node, str(error))
            return
        if isinstance(reply, _GREETINGS):
            return
        flow = self._flows[node]
        exchange = flow.find(reply.request)
        if isinstance(reply, Fault):
            self._handle_fault(node, flow, exchange, reply)
            return
        if exchange is None:
            self.stray_replies += 1  # late: its deadline has passed
            flow.handle_stray(time.monotonic())
            if flow.is_awaited:
                self._pump(node)
            return
        try:
            last = exchange.handle_reply(reply)
        except ProtocolError as error:
            self._stray(node, str(error))
            flow.handle_failed(exchange, time.monotonic())
            exchange.handle_failure(None, f"node {node!r} answered something else: {error}")
            self._give_up_waiting(node)
            self._pump(node)
            return
        if last:
            flow.handle_answered(exchange, time.monotonic())
            if flow.is_awaited:
                self._pump(node)

    def _handle_fault(self, node: str, flow: NodeFlow, exchange: Exchange | None, fault: Fault) -> None:
        if fault.code == FaultCode.NO_HELLO:
            self.members.links[node].reopen()  # the node has forgotten this router: begin again, and repeat what may be
        elif exchange is not None:
            now = time.monotonic()
            if fault.code == FaultCode.OVERLOADED:
                if self._handle_overloaded(flow, exchange, fault, now):
                    return
            elif fault.code == FaultCode.INTERNAL:
                flow.handle_failed(exchange, now)
            else:
                flow.handle_answered(exchange, now)
            exchange.handle_failure(fault_code(fault.code), fault.detail)
            self._give_up_waiting(node)
            self._pump(node)

    def _handle_overloaded(self, flow: NodeFlow, exchange: Exchange, fault: Fault, now: float) -> bool:
        """Leave the node alone for as long as it asks; return whether the exchange is sent again then."""
        pause_s = fault.retry_after_us / 1e6 + self.retries.jitter_s()
        flow.handle_overloaded(exchange, now, pause_s)
        if not exchange.repeatable or exchange.deadline <= now + pause_s or not self.retries.withdraw(now):
            return False
        if exchange.waits_for_disk:
            self._delayed.add(exchange)
            self._loop.call_later(pause_s, self._send_delayed, flow, exchange)
        else:
            flow.send_again(exchange, now)
            self._pump(exchange.node)
        return True

    def _send_delayed(self, flow: NodeFlow, exchange: Exchange) -> None:
        if exchange in self._delayed:
            self._delayed.discard(exchange)
            flow.send_again(exchange, time.monotonic())
            self._pump(exchange.node)

    def _stray(self, node: str, reason: str) -> None:
        self.stray_replies += 1
        _log.warning("reply is ignored", extra={"node": node, "detail": reason})

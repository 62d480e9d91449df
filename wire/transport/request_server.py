"""A request server: welcomes peers on a ROUTER socket and serves a table of handlers, fairly and within deadlines.

It knows no agents, shards or stores. Its owner (a node) gives it a greeter, which answers Hello, and for each type of
request a handler. The path of a request:

    socket -> channel: drained and stamped with the time, before any is served
           -> RequestQueue: one queue for each welcomed peer, served in turn; what is cancelled, or would come too
              late, is dropped
           -> the handler of its type
           -> Peers: the answer is sent, or waits for a peer that does not read

A handler gets the call and the decoded request, and returns

- a reply: it is sent, and the request is done;
- None: the request is the handler's alone from now on. It answers by `reply` when it can, in the loop; it must bound by
  itself what it holds. (A node's writes: they are committed whether or not a client waits.)
- Frames: the answer is made a frame at a time. `next_frame` is called at once, and after each frame that was not the
  last the call is put back, behind all other peers that have something waiting, before what else this peer asked for.

**A parked call.** `next_frame` that returns None parks its call: it waits for something that is not of this loop's
making (a thread that reads cold pages, another network). It is resumed by `resume(call)`: in the loop's thread, in a
later callback, once (`wire.transport.loop_calls` brings a thread's news there). Then it is the first of its peer's
queue again, and `next_frame` is called in the peer's next turn; it may return None, and so park, again.

- It holds its frame, its Frames and its place: what a peer may have waiting (`fair_queue`) counts parked calls too, by
  number and by the bytes of their frames. Other requests of the peer are served meanwhile. Other content of
  Frames (an answer that is there before its peer reads) they have to bound for each peer by themselves; and between two
  calls of `next_frame` they must hold nothing that has to be closed: they are not notified when they are dropped.
- If its peer goes, it is abandoned: `call.abandoned` is set, it is counted with the peer's `dropped_replies`, and to
  resume it does nothing.
- If it is cancelled, it is abandoned and counted (`cancelled`), and keeps its place until it is resumed, because
  the work for it still runs; then it is dropped.
- If its deadline passes, nothing happens until it is resumed and its turn comes: then it is dropped and counted
  (`late`). The work for it may look at `call.deadline` and `call.abandoned` from any thread before it begins, and
  has to resume it nevertheless.
- `close` abandons all that are parked; to resume one later does nothing.

Everything runs in the event loop's thread. Nothing that a peer sends ends the server: malformed frames are counted, and
answered if their request number can be read. An exception in a handler is logged and answered with INTERNAL, an
InvalidRequestError with BAD_REQUEST.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from ..errors import InvalidRequestError, ProtocolError
from ..protocol.frame_peek import peek_request
from ..protocol.messages import (
    PING,
    PONG,
    Cancel,
    Fault,
    FaultCode,
    Hello,
    Ping,
    Reply,
    RequestHeader,
    decode_request,
    encode,
    read_request_number,
)
from .acceptance import Acceptance, Doors
from .channel import RoutedChannel, Sent
from .counters import ServerCounters
from .handlers import Greeter, Handlers
from .liveness import LIVENESS_TICK_S
from .reply_queues import PEERS_MAX, Peers
from .request_queue import Call, Frames, RequestQueue, Shed
from .scheduler import Scheduler, Timer

__all__ = ["RequestServer"]

_TURN_SECONDS: Final = 0.002
"""The time for which requests are served before the socket and the timers are looked at again."""

_RETRY_SECONDS: Final = 0.001
"""Pause before a blocked peer is tried again: ROUTER does not report when one peer's queue has room. At 1 GB/s a reader
takes one frame in it."""

_SEARCH_SECONDS: Final = 0.1
"""Pause between the end of a connection and the search for its peer: one search for all that end together."""

_TURNED_AWAY_S: Final = 2.0
"""The time for which a router that finds no room here is asked to stay away."""

_FAULT_READ_BYTES_MAX: Final = 1 << 16
"""A rejected frame's request number is looked for up to this size only: saying no must stay cheap."""

_log = logging.getLogger(__name__)


class RequestServer:
    """One server, from `start` to `close`. Made and used in the thread of one event loop."""

    def __init__(
        self,
        loop: Scheduler,
        handlers: Handlers,
        greeter: Greeter,
        acceptance: Acceptance,
        counters: ServerCounters,
        *,
        peers_max: int = PEERS_MAX,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve these handlers, by type of request. `monotonic` gives seconds."""
        self._loop = loop
        self._handlers = dict(handlers)
        self._greeter = greeter
        self._acceptance = acceptance
        self._counters = counters
        self._peers_max = peers_max
        self._monotonic = monotonic
        cancellable = [int(str(kind.__struct_config__.tag)) for kind, each in handlers.items() if not each.always]
        self._queue = RequestQueue(counters, frozenset(cancellable))
        self._turn_scheduled = False
        self._closed = False
        self._retry: Timer | None = None
        self._search: Timer | None = None

    def start(
        self, open_channel: Callable[[Callable[[list[list[bytes]]], None], Callable[[], None]], RoutedChannel]
    ) -> None:
        """Serve the requests on the channel that `open_channel` makes.

        It gets two functions: one that takes messages, and one to be called when connections, whosesoever, have ended.
        """
        self._channel = open_channel(self._handle_messages, self._handle_ended)
        self._peers = Peers(self._channel, self._counters, peers_max=self._peers_max)
        self._ticking = self._loop.call_later(LIVENESS_TICK_S, self._tick)

    @property
    def peers(self) -> Peers:
        """The peers that are welcome."""
        return self._peers

    def close_intake(self) -> None:
        """Take no more requests; those that wait are served on, and answers are sent, until `close`."""
        self._channel.close()

    async def drain(self, timeout_s: float) -> None:
        """Wait until every answer is sent, but no longer than `timeout_s`."""
        end = self._monotonic() + timeout_s
        while self._monotonic() < end:
            if not self._peers.blocked:
                return
            await asyncio.sleep(_RETRY_SECONDS)

    def close(self) -> None:
        """Serve nothing more: queued and parked requests are not answered. The socket is its owner's to close."""
        self._closed = True
        self._channel.close()
        self._ticking.cancel()
        for timer in (self._retry, self._search):
            if timer is not None:
                timer.cancel()
        self._queue.abandon_parked()

    # --- from the socket into the queue ---

    def _handle_messages(self, messages: list[list[bytes]]) -> None:
        now = self._monotonic()
        queue, heard, fresh = self._queue, self._peers.heard, self._queue.fresh
        for message in messages:
            if len(message) != 2:
                self._counters.malformed_frames += 1
                continue
            peer, frame = message
            heard.add(peer)
            if peer not in queue:
                self._greet(peer, frame)
            elif frame == PING:
                self._answer_ping(peer)
            else:
                if peer in fresh:
                    self._leave_earlier(peer)
                if (shed := queue.put(peer, frame, now)) is not None:
                    self._shed(peer, frame, shed)
        queue.handle_drained()
        if not self._turn_scheduled:
            self._turn()

    def _answer_ping(self, peer: bytes) -> None:
        if peer not in self._peers.blocked:  # else there is enough on its way that says the same
            self._send(peer, PONG)

    def _tick(self) -> None:
        """Look which peers are alive; set again before anything else, so that there is another whatever goes wrong."""
        self._ticking = self._loop.call_later(LIVENESS_TICK_S, self._tick)
        self._channel.poll()  # what came while this loop was busy
        for peer in self._peers.handle_tick():
            self._forget(peer)
        self._acceptance.handle_tick(len(self._peers))
        self._schedule_retry()  # under way already, as the next, unless something went wrong in its midst
        if not self._turn_scheduled:
            self._turn()

    def _handle_ended(self) -> None:
        if self._search is None and not self._closed:
            self._search = self._loop.call_later(_SEARCH_SECONDS, self._forget_gone)

    def _forget_gone(self) -> None:
        self._search = None
        for peer in self._peers.handle_ended():
            self._forget(peer)

    def _shed(self, peer: bytes, frame: bytes, shed: Shed) -> None:
        self._counters.shed += 1
        seen = peek_request(frame)  # of any size: a peer that is answered at once does not wait, nor ask again
        if seen is not None:
            self._fault(peer, seen[1], FaultCode.OVERLOADED, shed.detail, shed.retry_after_s)

    def _greet(self, peer: bytes, frame: bytes) -> None:
        try:
            hello = decode_request(frame)
        except ProtocolError:
            self._counters.malformed_frames += 1
            self._reject(peer, frame, FaultCode.NO_HELLO, "a connection begins with Hello")
            return
        if isinstance(hello, Hello):
            self._welcome(peer, hello)
        elif not isinstance(hello, Cancel):
            request = 0 if isinstance(hello, Ping) else hello.request
            self._fault(peer, request, FaultCode.NO_HELLO, "a connection begins with Hello")

    def _welcome(self, peer: bytes, hello: Hello) -> None:
        self._counters.hellos += 1
        if (rejection := self._greeter.rejection(hello)) is not None:
            self.reply(peer, rejection)
            return
        if peer not in self._peers and not self._has_room():
            self._counters.turned_away += 1
            why = self._acceptance.why() if self._acceptance.doors is not Doors.OPEN else self._peers.why_full()
            self._fault(peer, 0, FaultCode.OVERLOADED, why, _TURNED_AWAY_S)
            return
        self._peers.add(peer)
        self._queue.add_peer(peer, hello.client)
        self.reply(peer, self._greeter.welcome(ipc=self._acceptance.offers_ipc()))

    def _leave_earlier(self, peer: bytes) -> None:
        """Abandon the requests on a client's earlier connection: none of them is done after one on the new."""
        if (earlier := self._queue.handle_first_request(peer)) is not None:
            self._peers.remove(earlier)
            self._forget(earlier)

    def _has_room(self) -> bool:
        if not self._acceptance.admits(len(self._peers)):
            return False
        if (silent := self._peers.make_room()) is not None:
            self._forget(silent)
        return not self._peers.is_full

    # --- from the queue to the answer ---

    def _turn(self) -> None:
        self._turn_scheduled = False
        now = self._monotonic()
        end = now + _TURN_SECONDS
        while (call := self._queue.take(now)) is not None:
            try:
                self._serve(call)
            except InvalidRequestError as error:
                self._fault(call.peer, call.number, FaultCode.BAD_REQUEST, str(error))
            except Exception:
                self._counters.internal_errors += 1
                _log.exception("request fails")
                self._fault(call.peer, call.number, FaultCode.INTERNAL, "see the node's log")
            now = self._monotonic()
            if now >= end:
                self._schedule_turn()
                return

    def _schedule_turn(self) -> None:
        self._turn_scheduled = True
        self._loop.call_soon(self._turn)

    def _serve(self, call: Call) -> None:
        frames = call.frames
        if frames is None:
            frames = self._begin(call)
            if frames is None:
                return
            call.frames = frames
        elif self._monotonic() > call.deadline:
            self._counters.late += 1
            return
        made = frames.next_frame(call)
        if made is None:
            self._queue.park(call)
            return
        frame, last = made
        if not last:
            self._queue.put_back(call)
        self._send(call.peer, frame)

    def _begin(self, call: Call) -> Frames | None:
        """Give a request to its handler; return the source of its frames, None if there are none to be made."""
        try:
            request = decode_request(call.frame)
        except ProtocolError as error:
            self._counters.malformed_frames += 1
            self._reject(call.peer, call.frame, FaultCode.BAD_REQUEST, str(error))
            return None
        if not isinstance(request, RequestHeader):
            if isinstance(request, Hello):
                self._welcome(call.peer, request)
            return None  # a Cancel or Ping though its first bytes are not: nothing is lost if it has no effect
        call.number = request.request
        handler = self._handlers.get(type(request))
        if handler is None:
            raise InvalidRequestError(f"{type(request).__name__} is not served here")
        call.deadline = self._queue.deadline(call, request.budget_us, request.sent_us)
        if not handler.always and self._monotonic() > call.deadline:
            self._counters.late += 1
            return None
        answer = handler.handle(call, request)
        if isinstance(answer, msgspec.Struct):
            self.reply(call.peer, answer)
            return None
        return answer

    def resume(self, call: Call) -> None:
        """Continue a parked call in its peer's next turn; in the loop, and in a later callback than it was parked."""
        if not self._closed and self._queue.resume(call) and not self._turn_scheduled:
            self._schedule_turn()

    # --- replies ---

    def reply(self, peer: bytes, reply: Reply) -> None:
        """Send a reply, or let it wait for its peer."""
        if isinstance(reply, Fault):
            self._counters.faults += 1
        self._send(peer, encode(reply))

    def _send(self, peer: bytes, frame: bytes) -> None:
        sent = self._peers.reply(peer, frame)
        if sent is Sent.GONE:
            self._forget(peer)
        elif sent is Sent.FULL:
            self._queue.block(peer)
            self._schedule_retry()

    def _forget(self, peer: bytes) -> None:
        self._counters.dropped_replies += self._queue.remove_peer(peer)

    def _schedule_retry(self) -> None:
        if self._retry is None and self._peers.blocked:
            self._retry = self._loop.call_later(_RETRY_SECONDS, self._retry_blocked)

    def _retry_blocked(self) -> None:
        self._retry = None
        freed, gone = self._peers.retry()
        for peer in gone:
            self._forget(peer)
        for peer in freed:
            self._queue.unblock(peer)
        self._schedule_retry()
        if freed and not self._turn_scheduled:
            self._turn()

    def _fault(self, peer: bytes, request: int, code: FaultCode, detail: str, retry_after_s: float = 0.0) -> None:
        self.reply(peer, Fault(request, code, detail, int(retry_after_s * 1e6)))

    def _reject(self, peer: bytes, frame: bytes, code: FaultCode, detail: str) -> None:
        """Answer a frame that is not served with a Fault, if its request number can be read."""
        number = read_request_number(frame) if len(frame) <= _FAULT_READ_BYTES_MAX else None
        if number is not None:
            self._fault(peer, number, code, detail)

"""A TCP proxy on loopback between a client and one node, that delays what passes through, or closes.

Each connection to the proxy is one to the node. Bytes wait in order until their time has come and are then written; at
most PENDING_BYTES_MAX wait for one side, more is not read. A closed proxy rejects connections as a dead host's kernel
does, and resets those that it had; its port stays its own meanwhile.

It runs on the event loop of the harness, 30 us a chunk: cheap beside the wakes that it delays, and no other process
to look after.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final, cast

__all__ = ["PENDING_BYTES_MAX", "TcpProxy", "delayed", "flapping", "tcp_proxy"]

PENDING_BYTES_MAX: Final = 16 << 20
"""Bytes delayed in one direction of one connection: 200 ms of 80 MB/s."""

_HOST: Final = "127.0.0.1"

_BACKLOG: Final = 64


class TcpProxy:
    """A proxy to one port of loopback; `open` and `close` may follow each other as often as one likes."""

    def __init__(self, upstream_port: int) -> None:
        """Take a port; nothing listens on it before `open`."""
        self.upstream_port = upstream_port
        self.request_delay_s = 0.0
        self.reply_delay_s = 0.0
        """How long bytes that come from now on are held back, towards the node and towards the client."""
        self.passed_bytes = 0
        self._server: asyncio.Server | None = None
        self._sides: set[_Side] = set()
        # Bound and never listening: keeps the port for this proxy, while connecting to it is rejected.
        self._holder = _bound_socket(0)
        self.port: int = self._holder.getsockname()[1]

    @property
    def endpoint(self) -> str:
        """Its endpoint, as a topology names it."""
        return f"tcp://{_HOST}:{self.port}"

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait to be written."""
        return sum(side.pending_bytes for side in self._sides)

    async def open(self) -> None:
        """Take connections."""
        if self._server is None:
            listening = _bound_socket(self.port)
            try:
                loop = asyncio.get_running_loop()
                self._server = await loop.create_server(lambda: _Side(self, None), sock=listening, backlog=_BACKLOG)
            except BaseException:
                listening.close()
                raise

    def close(self) -> None:
        """Reject connections, and break those that there are; what was delayed in them is lost."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for side in list(self._sides):
            side.abort()

    def release(self) -> None:
        """Close, and give the port back."""
        self.close()
        self._holder.close()

    def enter(self, side: _Side) -> None:
        """Take note of a new connection."""
        self._sides.add(side)

    def leave(self, side: _Side) -> None:
        """Take note that a connection has ended."""
        self._sides.discard(side)


class _Side(asyncio.Protocol):
    """One of the two connections of a pair: reads from its own peer, and writes what the other one read."""

    def __init__(self, proxy: TcpProxy, other: _Side | None) -> None:
        """`other` is None for the client's, which is made first."""
        self._proxy = proxy
        self._other = other
        self._is_client = other is None
        self._transport: asyncio.Transport | None = None
        self._pending: deque[tuple[float, bytes]] = deque()
        self.pending_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._gone = False
        self._ending = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._proxy.enter(self)
        if self._other is None:
            self._other = _Side(self._proxy, self)
            self._connecting = asyncio.get_running_loop().create_task(self._connect(self._other))
        elif self._other._gone:
            self.abort()
        else:
            self._write_due()

    async def _connect(self, upstream: _Side) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: upstream, _HOST, self._proxy.upstream_port)
        except OSError:
            self.abort()  # the node is not there: nor is whoever stands before it

    def data_received(self, data: bytes) -> None:
        other = self._other
        if other is None:
            return
        self._proxy.passed_bytes += len(data)
        delay_s = self._proxy.request_delay_s if self._is_client else self._proxy.reply_delay_s
        other.write_later(data, delay_s)

    def write_later(self, data: bytes, delay_s: float) -> None:
        """Write these bytes once they have waited, behind those that wait already, and once there is a connection."""
        if self._gone:
            return
        if self._transport is not None and not delay_s and not self._pending:
            self._transport.write(data)
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + delay_s
        if self._pending:
            due = max(due, self._pending[-1][0])
        self._pending.append((due, data))
        self.pending_bytes += len(data)
        if self.pending_bytes > PENDING_BYTES_MAX:
            self._let_read(False)
        if self._timer is None and self._transport is not None:
            self._timer = loop.call_at(due, self._write_due)

    def _write_due(self) -> None:
        self._timer = None
        transport = self._transport
        if self._gone or transport is None:
            return
        loop = asyncio.get_running_loop()
        # A timer may fire a millisecond early: then a little is left for another one.
        while self._pending and self._pending[0][0] <= loop.time():
            _, data = self._pending.popleft()
            self.pending_bytes -= len(data)
            transport.write(data)
        if self._pending:
            self._timer = loop.call_at(self._pending[0][0], self._write_due)
        elif self._ending:
            transport.close()
        if self.pending_bytes <= PENDING_BYTES_MAX:
            self._let_read(True)

    def pause_writing(self) -> None:
        self._let_read(False)

    def resume_writing(self) -> None:
        self._let_read(True)

    def _let_read(self, read: bool) -> None:
        """Let the other side take more from its peer, or not: what it reads is this side's to write."""
        source = self._other._transport if self._other is not None else None
        if source is not None and not source.is_closing():
            if read:
                source.resume_reading()
            else:
                source.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._forget()
        if self._other is not None:
            self._other.end()

    def end(self) -> None:
        """Close the connection once everything that waits is written: an end takes as long as what came before it."""
        self._ending = True
        if not self._pending and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Break the connection at once."""
        self._gone = True
        if self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._forget()

    def _forget(self) -> None:
        self._proxy.leave(self)
        self._pending.clear()
        self.pending_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _bound_socket(port: int) -> socket.socket:
    bound = socket.socket()
    try:
        # SO_REUSEPORT: the holder and the listener share the port, of the same user; nobody else can have it.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((_HOST, port))
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


@contextlib.asynccontextmanager
async def tcp_proxy(upstream_port: int) -> AsyncGenerator[TcpProxy]:
    """Run an open proxy while the block runs."""
    proxy = TcpProxy(upstream_port)
    try:
        await proxy.open()
        yield proxy
    finally:
        proxy.release()


@contextlib.asynccontextmanager
async def delayed(proxy: TcpProxy, reply_s: float) -> AsyncGenerator[None]:
    """Hold replies back while the block runs."""
    proxy.reply_delay_s = reply_s
    try:
        yield
    finally:
        proxy.reply_delay_s = 0.0


@contextlib.asynccontextmanager
async def flapping(proxy: TcpProxy, every_s: float) -> AsyncGenerator[list[int]]:
    """Close and reopen the proxy in turns of `every_s` while the block runs; yields a list that counts its closings."""
    closings = [0]

    async def flap() -> None:
        while True:
            proxy.close()
            closings[0] += 1
            await asyncio.sleep(every_s)
            await proxy.open()
            await asyncio.sleep(every_s)

    task = asyncio.create_task(flap())
    try:
        yield closings
    finally:
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        await proxy.open()
    if isinstance(result, Exception):
        raise result

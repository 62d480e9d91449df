"""The proxy between a client and a node: real connections on loopback, delayed, rejected and broken."""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from dawnchorus.perf.faults.proxy import TcpProxy, delayed, flapping, tcp_proxy
from tests.support.clusters import eventually

PATIENCE_S = 20.0
"""How long anything may take before a test gives up; nothing is measured with it."""


@asynccontextmanager
async def echo() -> AsyncGenerator[int]:
    """Run a server that sends back what it gets; yield its port."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
            serving.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


class Client:
    """A connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def of(cls, proxy: TcpProxy) -> "Client":
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    async def echoed(self, data: bytes) -> float:
        """Send bytes and wait until they are back; how long that took."""
        began = time.monotonic()
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            assert await self.reader.readexactly(len(data)) == data
        return time.monotonic() - began

    async def rest(self) -> bytes:
        """Return all that comes until the connection ends or is broken."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


@asynccontextmanager
async def through_proxy() -> AsyncGenerator[tuple[TcpProxy, Client]]:
    """Run an echo server, a proxy to it, and a client of that."""
    async with echo() as port, tcp_proxy(port) as proxy:
        client = await Client.of(proxy)
        try:
            yield proxy, client
        finally:
            client.writer.close()


async def test_bytes_pass_unchanged_both_ways() -> None:
    async with through_proxy() as (proxy, client):
        await client.echoed(b"first, before the node is connected")
        data = bytes(range(256)) * 4_096
        await client.echoed(data)
        assert proxy.passed_bytes == 2 * (len(data) + 35)
        assert not proxy.pending_bytes


async def test_replies_are_really_delayed_and_then_no_more() -> None:
    async with through_proxy() as (proxy, client):
        async with delayed(proxy, 0.2):
            assert await client.echoed(b"late") >= 0.199
        # Not that it is fast, but that nothing holds it back: no timer is left to wait for.
        await client.echoed(b"in time")
        assert proxy.reply_delay_s == 0.0
        proxy.request_delay_s = 0.1
        assert await client.echoed(b"late again") >= 0.099


async def test_bytes_stay_in_order_when_the_delay_ends() -> None:
    async with through_proxy() as (proxy, client):
        await client.echoed(b"connected")
        async with delayed(proxy, 1.0):
            client.writer.write(b"early ")
            await eventually(lambda: proxy.pending_bytes > 0)
        client.writer.write(b"and later")
        async with asyncio.timeout(PATIENCE_S):
            assert await client.reader.readexactly(15) == b"early and later"


async def test_no_more_is_read_than_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1 << 16
    monkeypatch.setattr("dawnchorus.perf.faults.proxy.PENDING_BYTES_MAX", limit)
    async with through_proxy() as (proxy, client):
        await client.echoed(b"connected")
        most = 0
        async with delayed(proxy, 0.05):
            data = b"x" * (2 << 20)
            sending = asyncio.ensure_future(client.echoed(data))
            while not sending.done():
                most = max(most, proxy.pending_bytes)
                await asyncio.sleep(0.001)
            await sending
        # One read more than the limit: uvloop takes 256 KiB at once.
        assert 0 < most <= limit + (1 << 18)


async def test_end_of_stream_is_delayed_like_data() -> None:
    async def say_goodbye(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"goodbye")
        writer.close()

    server = await asyncio.start_server(say_goodbye, "127.0.0.1", 0)
    async with server, tcp_proxy(server.sockets[0].getsockname()[1]) as proxy, delayed(proxy, 0.1):
        client = await Client.of(proxy)
        assert await client.rest() == b"goodbye"
        client.writer.close()


async def test_closed_proxy_rejects_and_keeps_its_port() -> None:
    async with through_proxy() as (proxy, client):
        await client.echoed(b"hello")
        for _ in range(3):
            proxy.close()
            assert await client.rest() == b""
            client.writer.close()
            with pytest.raises(ConnectionRefusedError):
                await Client.of(proxy)
            with socket.socket() as thief, pytest.raises(OSError, match="in use"):
                thief.bind(("127.0.0.1", proxy.port))
            await proxy.open()
            await proxy.open()  # open already: nothing happens
            client = await Client.of(proxy)
            await client.echoed(b"hello again")
        client.writer.close()


async def test_missing_node_breaks_the_connection() -> None:
    async with echo() as port:
        pass
    async with tcp_proxy(port) as proxy:
        client = await Client.of(proxy)
        assert await client.rest() == b""
        client.writer.close()


async def test_flapping_breaks_again_and_again_and_ends_open() -> None:
    async with through_proxy() as (proxy, client):
        await client.echoed(b"hello")
        async with flapping(proxy, 0.02) as closings:
            assert await client.rest() == b""
            await eventually(lambda: closings[0] >= 3)
        again = await Client.of(proxy)
        await again.echoed(b"hello again")
        again.writer.close()


async def test_a_released_proxy_gives_its_port_back() -> None:
    async with tcp_proxy(1) as proxy:
        port = proxy.port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))

"""The channel: nothing drained is lost or out of order, timers run between turns, and a bad handler stops nothing."""

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dawnchorus.wire.transport.channel import DRAIN_BYTES_MAX, Channel, Sent, receive_frame, receive_parts
from dawnchorus.wire.transport.sockets import NODE_SEND_FRAMES_MAX, SocketOwner, bind

PATIENCE_MS = 30_000
"""The longest wait for an event that has to come; nothing is measured with it."""

Messages = list[list[bytes]]


class Ends:
    """A node's and a router's socket, each with a channel that collects the messages that it delivers."""

    def __init__(self, owner: SocketOwner, endpoint: str) -> None:
        self.owner = owner
        self.replies = owner.router()
        bind(self.replies, endpoint)
        self.requests = owner.dealer(endpoint)
        self.at_node: list[Messages] = []
        self.at_router: list[Messages] = []
        loop = asyncio.get_running_loop()
        self.node: Channel[list[bytes]] = Channel(loop, self.replies, receive_parts, self.at_node.append)
        self.router: Channel[list[bytes]] = Channel(loop, self.requests, receive_parts, self.at_router.append)

    async def identity(self) -> bytes:
        """Introduce the router to the node; return its identity there."""
        self.router.send(b"hello")
        await until(lambda: self.at_node)
        identity = self.at_node[0][0][0]
        self.at_node.clear()
        return identity


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_MS / 1_000):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)


@asynccontextmanager
async def connected(directory: Path) -> AsyncGenerator[Ends]:
    with SocketOwner() as owner:
        ends = Ends(owner, f"ipc://{directory}/x")
        try:
            yield ends
        finally:
            ends.node.close()
            ends.router.close()


@pytest.fixture
async def ends(short_directory: Path) -> AsyncGenerator[Ends]:
    async with connected(short_directory) as made:
        yield made


def count(delivered: list[Messages]) -> int:
    return sum(len(messages) for messages in delivered)


async def test_many_frames_arrive_in_order_in_bounded_turns(ends: Ends) -> None:
    sent = 0
    while sent < 10_000:
        if ends.router.send(b"%d" % sent) is Sent.OK:
            sent += 1
        else:
            await asyncio.sleep(0)
    await until(lambda: count(ends.at_node) == 10_000)
    frames = [message[1] for messages in ends.at_node for message in messages]
    assert frames == [b"%d" % number for number in range(10_000)]
    assert max(map(len, ends.at_node)) <= 256
    assert len(ends.at_node) < 5_000, "gathered frames are delivered together"
    assert len({message[0] for messages in ends.at_node for message in messages}) == 1


async def test_large_frames_are_delivered_before_many_gather(ends: Ends) -> None:
    sent = 0
    while sent < 40:
        if ends.router.send(b"x" * (1 << 20)) is Sent.OK:
            sent += 1
        else:
            await asyncio.sleep(0)
    await until(lambda: count(ends.at_node) == 40)
    assert max(map(len, ends.at_node)) <= (DRAIN_BYTES_MAX >> 20) + 1


async def test_timers_run_between_the_turns_of_a_drain(short_directory: Path) -> None:
    # The handler keeps the socket full for ever, as a storm does.
    with SocketOwner() as owner:
        replies = owner.router()
        bind(replies, f"ipc://{short_directory}/x")
        requests = owner.dealer(f"ipc://{short_directory}/x")
        loop = asyncio.get_running_loop()
        delivered = 0

        def refill(messages: Messages) -> None:
            nonlocal delivered
            delivered += len(messages)
            for _ in messages:
                router.send(b"again")

        router = Channel(loop, requests, receive_parts, lambda _: None)
        node = Channel(loop, replies, receive_parts, refill)
        for _ in range(200):
            router.send(b"first")
        await until(lambda: delivered > 2_000)
        node.close()
        router.close()


async def test_nothing_waits_for_an_edge_lost_to_send(ends: Ends) -> None:
    # Both sides answer from inside their handlers, where every send and receive may take the edge.
    identity = await ends.identity()
    left = 2_000
    done = asyncio.Event()

    def at_router(messages: Messages) -> None:
        nonlocal left
        left -= len(messages)
        for _ in messages:
            ends.router.send(b"ping")
        if left <= 0:
            done.set()

    def at_node(messages: Messages) -> None:
        for peer, frame in messages:
            ends.node.send_to(peer, frame)

    ends.router.close()
    ends.node.close()
    loop = asyncio.get_running_loop()
    ends.router = Channel(loop, ends.requests, receive_parts, at_router)
    ends.node = Channel(loop, ends.replies, receive_parts, at_node)
    for _ in range(3):
        ends.router.send(b"ping")
    async with asyncio.timeout(PATIENCE_MS / 1_000):
        await done.wait()
    assert identity


async def test_frames_before_the_channel_was_made_are_delivered(short_directory: Path) -> None:
    with SocketOwner() as owner:
        replies = owner.router()
        bind(replies, f"ipc://{short_directory}/x")
        requests = owner.dealer(f"ipc://{short_directory}/x")
        requests.send(b"early")
        assert replies.poll(PATIENCE_MS)
        delivered: list[Messages] = []
        channel = Channel(asyncio.get_running_loop(), replies, receive_parts, delivered.append)
        await until(lambda: delivered)
        channel.close()
    assert delivered[0][0][1] == b"early"


async def test_large_frames_arrive_complete_after_sender_releases_them(ends: Ends) -> None:
    identity = await ends.identity()
    sizes = [0, 1, (1 << 16) - 1, 1 << 16, 3 << 20]
    for number, size in enumerate(sizes):
        assert ends.router.send(bytes([number]) * size) is Sent.OK
        assert ends.node.send_to(identity, bytes([number]) * size) is Sent.OK
    gc.collect()
    await until(lambda: count(ends.at_node) == count(ends.at_router) == len(sizes))
    for delivered in (ends.at_node, ends.at_router):
        frames = [message[-1] for messages in delivered for message in messages]
        assert frames == [bytes([number]) * size for number, size in enumerate(sizes)]


async def test_full_peer_gets_everything_once_it_reads(short_directory: Path) -> None:
    with SocketOwner() as owner:
        replies = owner.router()
        bind(replies, f"ipc://{short_directory}/x")
        requests = owner.dealer(f"ipc://{short_directory}/x")
        delivered: list[Messages] = []
        node = Channel(asyncio.get_running_loop(), replies, receive_parts, delivered.append)
        requests.send(b"hello")
        await until(lambda: delivered)
        identity = delivered[0][0][0]
        # The kernel's buffers, the peer's queue and this one's take some; then it is full.
        frame = b"x" * (1 << 20)
        taken = 0
        while node.send_to(identity, frame + b"%d" % taken) is Sent.OK:
            taken += 1
            assert taken < 10_000
        assert taken >= NODE_SEND_FRAMES_MAX
        received: list[bytes] = []

        def collect(messages: Messages) -> None:
            received.extend(message[0] for message in messages)

        router = Channel(asyncio.get_running_loop(), requests, receive_parts, collect)
        await until(lambda: node.send_to(identity, b"last") is Sent.OK)
        await until(lambda: received and received[-1] == b"last")
        assert [message[1 << 20 :] for message in received[:-1]] == [b"%d" % number for number in range(taken)]
        node.close()
        router.close()


async def test_absent_peer_is_gone(ends: Ends) -> None:
    assert ends.node.send_to(b"\x00nobody", b"frame") is Sent.GONE


async def test_departed_peer_is_gone(ends: Ends) -> None:
    identity = await ends.identity()
    ends.router.close()
    ends.owner.close_socket(ends.requests)
    await until(lambda: ends.node.send_to(identity, b"frame") is Sent.GONE)


async def test_closed_channel_delivers_nothing(ends: Ends) -> None:
    identity = await ends.identity()
    ends.router.send(b"before")
    assert ends.replies.poll(PATIENCE_MS)
    ends.node.close()
    ends.node.close()
    ends.router.send(b"after")
    await asyncio.sleep(0.05)
    assert ends.at_node == []
    # The socket is still its owner's.
    assert [ends.replies.recv_multipart() for _ in range(2)] == [[identity, b"before"], [identity, b"after"]]


async def test_channel_closed_by_its_handler_is_left_alone(short_directory: Path) -> None:
    with SocketOwner() as owner:
        replies = owner.router()
        bind(replies, f"ipc://{short_directory}/x")
        requests = owner.dealer(f"ipc://{short_directory}/x")
        delivered: list[Messages] = []

        def close(messages: Messages) -> None:
            delivered.append(messages)
            channel.close()
            owner.close_socket(replies)

        channel = Channel(asyncio.get_running_loop(), replies, receive_parts, close)
        requests.send(b"end")
        await until(lambda: delivered)
        await asyncio.sleep(0.01)
        assert len(delivered) == 1


async def test_rest_of_socket_is_delivered_after_handler_fails(short_directory: Path) -> None:
    with SocketOwner() as owner:
        replies = owner.router()
        bind(replies, f"ipc://{short_directory}/x")
        requests = owner.dealer(f"ipc://{short_directory}/x")
        for number in range(600):
            requests.send(b"%d" % number)
        delivered = 0

        def fail(messages: Messages) -> None:
            nonlocal delivered
            delivered += len(messages)
            raise RuntimeError("a bug")

        failures: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failures.append(context))
        channel = Channel(loop, replies, receive_parts, fail)
        await until(lambda: delivered == 600)
        channel.close()
        loop.set_exception_handler(None)
    assert failures
    assert all(isinstance(context["exception"], RuntimeError) for context in failures)


async def test_uncopied_frame_stays_intact_when_others_follow(short_directory: Path) -> None:
    with SocketOwner() as owner:
        replies = owner.router()
        bind(replies, f"ipc://{short_directory}/x")
        requests = owner.dealer(f"ipc://{short_directory}/x")
        delivered: list[Messages] = []
        views: list[memoryview] = []
        loop = asyncio.get_running_loop()
        node = Channel(loop, replies, receive_parts, delivered.append)
        router = Channel(loop, requests, receive_frame, views.extend)
        requests.send(b"hello")
        await until(lambda: delivered)
        identity = delivered[0][0][0]
        for number in range(10):
            assert node.send_to(identity, bytes([number]) * 100_000) is Sent.OK
        await until(lambda: len(views) == 10)
        node.close()
        router.close()
    # The views keep their frames alive, also after the socket is closed.
    gc.collect()
    assert [bytes(view) for view in views] == [bytes([number]) * 100_000 for number in range(10)]

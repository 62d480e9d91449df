"""More clients than a node has descriptors for: it rejects the excess, serves on, and accepts more after some leave."""

import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import zmq

from dawnchorus.wire.cluster.topology_file import load_topology
from dawnchorus.wire.protocol.messages import (
    PONG,
    PROTOCOL,
    Fault,
    FaultCode,
    Hello,
    Reply,
    Status,
    StatusReply,
    Welcome,
    decode_reply,
    encode,
)
from tests.support.clusters import write_topology
from tests.support.raw_nodes import ALL_STORES, BUDGET_US, NODE, SHARDS, NodeProcess, until

HELLO = encode(Hello(PROTOCOL, "", b"test", ""))
LIMIT = 192
"""The node's hard limit of descriptors. It has some thirty of its own, and keeps an eighth."""

_LIMITED = (
    "import os, resource, sys;"
    f"resource.setrlimit(resource.RLIMIT_NOFILE, (100, {LIMIT}));"  # the soft one is below: it has to be raised
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


class Crowd:
    """Clients of one node, each with a connection of its own, in one context."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4_000)
        self.welcomed: list[zmq.Socket[bytes]] = []

    def dealer(self) -> zmq.Socket[bytes]:
        made = self._context.socket(zmq.DEALER)
        made.setsockopt(zmq.LINGER, 0)
        made.connect(self.endpoint)
        made.send(HELLO)
        return made

    def come(self, count: int) -> list[Fault]:
        """Connect so many at once; those that are rejected leave. Return their faults."""
        poller = zmq.Poller()
        for _ in range(count):
            poller.register(self.dealer(), zmq.POLLIN)
        faults: list[Fault] = []
        # A client that the kernel does not accept hears nothing, and leaves too.
        while poller.sockets and (heard := poller.poll(2_000)):
            for one, _ in heard:
                poller.unregister(one)
                reply = decode_reply(one.recv())
                if isinstance(reply, Welcome):
                    self.welcomed.append(one)
                else:
                    assert isinstance(reply, Fault)
                    faults.append(reply)
                    one.close()
        for one, _ in poller.sockets:
            one.close()
        return faults

    def go(self) -> None:
        """Disconnect all of them."""
        while self.welcomed:
            self.welcomed.pop().close()

    def ask(self, number: int) -> StatusReply:
        """Ask for the node's status, as one of the accepted clients."""
        asking = self.welcomed[number]
        asking.send(encode(Status(1, BUDGET_US, 0, None)))
        while True:
            assert asking.poll(30_000), "the node does not answer"
            frame = asking.recv()
            reply: Reply = decode_reply(frame)
            if frame != PONG:
                assert isinstance(reply, StatusReply)
                return reply

    def close(self) -> None:
        self.go()
        self._context.term()


@pytest.fixture
def limited(tmp_path: Path) -> Generator[tuple[NodeProcess, Crowd]]:
    path = write_topology(tmp_path, shards=SHARDS, nodes=ALL_STORES)
    with NodeProcess(path, under=[sys.executable, "-c", _LIMITED]) as process:
        process.serving()
        crowd = Crowd(load_topology(path).nodes[NODE].endpoint)
        try:
            yield process, crowd
        finally:
            crowd.close()
        assert process.end() == 0, process.log


async def test_node_rejects_excess_clients_until_others_leave(
    limited: tuple[NodeProcess, Crowd],
) -> None:
    process, crowd = limited
    for _ in range(2):
        # One at a time at first, then many at once: more than there are descriptors.
        for _ in range(20):
            assert not crowd.come(1)
        faults = crowd.come(LIMIT)
        assert faults
        assert all(fault.code == FaultCode.OVERLOADED for fault in faults)
        assert f"of its {LIMIT} descriptors are in use" in faults[0].detail
        assert len(crowd.welcomed) > LIMIT // 2, "the soft limit was raised to the hard one"
        statuses = [crowd.ask(number) for number in range(len(crowd.welcomed))]
        assert {status.pid for status in statuses} == {process.pid}
        assert statuses[-1].descriptors_max == LIMIT
        assert statuses[-1].descriptors <= LIMIT - LIMIT // 8, "what is held back is there"
        crowd.go()

        def all_gone() -> bool:
            if crowd.come(1) or not crowd.welcomed:
                return False
            status = crowd.ask(0)
            crowd.go()
            return status.takes_clients and status.clients < 20 and status.descriptors < 60

        await until(all_gone)

    def said(word: str) -> int:
        return [line["event"] for line in process.log].count(word)

    # The warning comes once a minute, and with the second one the count of those that were suppressed.
    await until(lambda: said("takes clients again") == 2)
    assert said("takes no more clients") >= 1

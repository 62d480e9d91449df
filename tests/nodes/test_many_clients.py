"""More clients than a node has descriptors for: it says so, serves on, and takes more when some have gone."""

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
        """Let so many come at once; those who are not taken go. Return what these were told."""
        poller = zmq.Poller()
        for _ in range(count):
            poller.register(self.dealer(), zmq.POLLIN)
        told: list[Fault] = []
        # Whom the kernel does not let in hears nothing, and goes too.
        while poller.sockets and (heard := poller.poll(2_000)):
            for one, _ in heard:
                poller.unregister(one)
                reply = decode_reply(one.recv())
                if isinstance(reply, Welcome):
                    self.welcomed.append(one)
                else:
                    assert isinstance(reply, Fault)
                    told.append(reply)
                    one.close()
        for one, _ in poller.sockets:
            one.close()
        return told

    def go(self) -> None:
        """Let all of them go."""
        while self.welcomed:
            self.welcomed.pop().close()

    def ask(self, number: int) -> StatusReply:
        """Ask the node how it is, as one of those that were taken."""
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


async def test_a_node_with_too_many_clients_says_so_serves_on_and_takes_more_when_some_have_gone(
    limited: tuple[NodeProcess, Crowd],
) -> None:
    process, crowd = limited
    for _ in range(2):
        # One at a time at first, then many at once: more than there are descriptors.
        for _ in range(20):
            assert not crowd.come(1)
        told = crowd.come(LIMIT)
        assert told
        assert all(fault.code == FaultCode.OVERLOADED for fault in told)
        assert f"of its {LIMIT} descriptors are in use" in told[0].detail
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

    # The warning comes once a minute, and with the second one the count of those that were held back.
    await until(lambda: said("takes clients again") == 2)
    assert said("takes no more clients") >= 1

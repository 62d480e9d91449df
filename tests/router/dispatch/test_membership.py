"""A router's connections: which nodes it connects to, rejections on either side, and recovery from breaks."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

import msgspec
import pytest

from dawnchorus import (
    ClusterUnavailable,
    Outcome,
    PlacementError,
    UnknownKindError,
)
from dawnchorus.perf.harness.topologies import free_ports
from dawnchorus.wire.cluster.topology import KindSpec, StoreSpec, Topology
from dawnchorus.wire.protocol.messages import (
    Fault,
    FaultCode,
    Fetch,
    Hello,
    Request,
    Welcome,
    decode_reply,
    encode,
)
from tests.support.clusters import eventually
from tests.support.fake_nodes import (
    FakeNode,
    connect,
    fake_client,
    fake_cluster,
    fake_topology,
    placement_of,
    wake_lacking,
)
from tests.support.internals import is_up, receive_together, stray_replies

LONG_S = 20.0
SHORT_S = 0.3


# --- connecting ---


async def test_a_topology_connects_to_all_its_nodes() -> None:
    async with fake_client() as (cluster, nodes):
        assert all(is_up(cluster, node.name) for node in nodes.values())
        (hello,) = nodes["id"].asked(Hello)
        assert hello.cluster == "fake"
        assert hello.topology_digest == cluster.topology.digest


async def test_the_endpoint_of_one_node_leads_to_all() -> None:
    topology = fake_topology()
    async with fake_cluster(topology) as nodes:
        nodes.put("a", profile=1, session=2, history=3)
        async with connect(topology.nodes["live-1"].endpoint) as cluster:
            assert cluster.topology == topology
            assert all(is_up(cluster, node) for node in topology.nodes)
            state = await cluster.wake("a", deadline_s=LONG_S)
            assert (state["profile"], state["session"], state["history"]) == (1, 2, 3)


async def test_nothing_that_listens_is_said_with_the_endpoints() -> None:
    topology = fake_topology()
    for source in (topology, topology.nodes["id-1"].endpoint):
        with pytest.raises(ClusterUnavailable) as raised:
            async with connect(source, connect_deadline_s=SHORT_S):
                pass
        assert "no node answered within 0.3 s" in str(raised.value)
        assert topology.nodes["id-1"].endpoint in str(raised.value)
        assert "dawnchorus up" in str(raised.value)
        assert isinstance(raised.value, ConnectionError)


@pytest.mark.parametrize("endpoint", ["tcp://", "tcp://nonsense", "tcp://127.0.0.1:0x", "smoke://signals", "://"])
async def test_an_endpoint_that_is_none_is_named(endpoint: str) -> None:
    with pytest.raises(ClusterUnavailable) as raised:
        async with connect(endpoint, connect_deadline_s=SHORT_S):
            pass
    assert endpoint in str(raised.value)


@pytest.mark.real
async def test_peer_without_zeromq_counts_as_no_answer() -> None:
    (port,) = free_ports(1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        with pytest.raises(ClusterUnavailable, match=r"no node answered|greeting cannot be read"):
            async with connect(f"tcp://127.0.0.1:{port}", connect_deadline_s=SHORT_S):
                pass


@pytest.mark.parametrize("code", [FaultCode.WRONG_CLUSTER, FaultCode.UNSUPPORTED])
async def test_rejection_is_raised_at_once_with_nodes_reason(code: FaultCode) -> None:
    topology = fake_topology()
    async with fake_cluster(topology) as nodes:
        for node in nodes.values():
            node.answer = lambda _request: [encode(Fault(0, code, f"this is {code.name}, as the node says it"))]
        for source in (topology, topology.nodes["id-1"].endpoint):
            with pytest.raises(ClusterUnavailable, match=f"this is {code.name}, as the node says it"):
                async with connect(source, connect_deadline_s=LONG_S):
                    pass


async def test_client_connects_though_some_nodes_do_not_answer() -> None:
    topology = fake_topology()
    async with fake_cluster(topology) as nodes:
        nodes.put("a", profile=1, session=2)
        nodes["old"].stop()
        async with connect(topology, connect_deadline_s=0.8) as cluster:
            state = await wake_lacking(cluster, "a", "history")
            assert state.outcome("history") is Outcome.UNAVAILABLE
            nodes["old"].start()
            nodes.put("a", history=3)
            await eventually(lambda: is_up(cluster, "old-1"))
            assert (await cluster.wake("a", deadline_s=LONG_S))["history"] == 3


async def test_another_clusters_node_is_unused_and_rarely_asked() -> None:
    topology = fake_topology()
    async with fake_cluster(topology) as nodes:
        nodes.put("a", profile=1, history="another cluster's")
        nodes["old"].placement = placement_of(topology, "f" * 32)
        async with connect(topology, connect_deadline_s=LONG_S) as cluster:
            await asyncio.sleep(SHORT_S)
            hellos = len(nodes["old"].asked(Hello))
            state = (await cluster.wake_many(["a"], deadline_s=0.6))[0]
            foreign, own = ("profile", "history") if state.outcome("history") is Outcome.OK else ("history", "profile")
            assert state.outcome(foreign) is Outcome.UNAVAILABLE, "whose Welcome came first decides which cluster it is"
            assert state.outcome(own) is Outcome.OK
            assert hellos <= 2


@pytest.mark.parametrize("field", ["placement", "topology"])
async def test_unreadable_welcome_is_a_rejection(field: str) -> None:
    topology = fake_topology()
    async with fake_cluster(topology) as nodes:
        for node in nodes.values():
            node.answer = with_corrupt_welcome(node, field)
        with pytest.raises(ClusterUnavailable, match=r"Welcome of node .* cannot be read"):
            async with connect(topology, connect_deadline_s=LONG_S):
                pass


def with_corrupt_welcome(node: FakeNode, field: str) -> Callable[[Request], list[bytes]]:
    """Answer Hello with a Welcome of which one field is no placement or topology."""

    def answer(request: Request) -> list[bytes]:
        frames = node.serve(request)
        welcome = decode_reply(frames[0])
        return (
            [encode(msgspec.structs.replace(welcome, **{field: b"\xff corrupt"}))]
            if isinstance(welcome, Welcome)
            else frames
        )

    return answer


async def test_greeting_of_random_bytes_is_a_rejection() -> None:
    topology = fake_topology()
    async with fake_cluster(topology) as nodes:
        for node in nodes.values():
            node.answer = lambda _request: [b"\xff\x00 nothing of ours"]
        with pytest.raises(ClusterUnavailable, match="greeting cannot be read"):
            async with connect(topology, connect_deadline_s=LONG_S):
                pass


async def test_nodes_that_changed_places_are_found_out() -> None:
    topology = fake_topology()
    swapped = dict(topology.nodes)
    first, second = swapped["id-1"], swapped["live-1"]
    swapped["id-1"] = msgspec.structs.replace(first, endpoint=second.endpoint)
    swapped["live-1"] = msgspec.structs.replace(second, endpoint=first.endpoint)
    wrong = msgspec.structs.replace(topology, nodes=swapped)
    async with fake_cluster(topology), connect(wrong, connect_deadline_s=LONG_S) as cluster:
        assert not is_up(cluster, "id-1")
        assert not is_up(cluster, "live-1")
        assert is_up(cluster, "old-1")


def moved(topology: Topology) -> Topology:
    """Return the topology with history in another store."""
    return msgspec.structs.replace(topology, kinds={**topology.kinds, "history": KindSpec("live")})


def with_new_kind(topology: Topology) -> Topology:
    """Return the topology with one kind more."""
    return msgspec.structs.replace(topology, kinds={**topology.kinds, "mood": KindSpec("live")})


def with_new_store(topology: Topology) -> Topology:
    """Return the topology with one kind more in a store of its own, on an existing node."""
    return msgspec.structs.replace(
        topology,
        stores={**topology.stores, "new": StoreSpec()},
        kinds={**topology.kinds, "mood": KindSpec("new")},
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [(moved, "kind 'history' is kept in store 'old'"), (with_new_kind, "'mood'"), (with_new_store, "'mood'")],
)
async def test_topology_that_contradicts_cluster_is_rejected(change: Callable[[Topology], Topology], why: str) -> None:
    topology = fake_topology()
    async with fake_cluster(topology):
        with pytest.raises(PlacementError, match=why):
            async with connect(change(topology), connect_deadline_s=LONG_S):
                pass


async def test_topology_with_fewer_kinds_learns_the_others() -> None:
    topology = fake_topology()
    async with fake_cluster(topology) as nodes:
        nodes.put("a", profile=1, session=2, history=3)
        fewer = {kind: spec for kind, spec in topology.kinds.items() if kind != "history"}
        async with connect(msgspec.structs.replace(topology, kinds=fewer)) as cluster:
            state = await cluster.wake("a", deadline_s=LONG_S)
            assert (state["session"], state["history"]) == (2, 3)
            assert cluster.topology.kinds == topology.kinds


async def test_type_of_unknown_kind_is_rejected() -> None:
    topology = fake_topology()
    async with fake_cluster(topology):
        with pytest.raises(UnknownKindError, match="nonsense"):
            async with connect(topology, types={"nonsense": int}):
                pass


# --- the connection's life ---


async def test_forgetful_node_is_greeted_and_asked_again() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=2, history=3)
        live = nodes["live"]

        def forget_once(request: Request) -> list[bytes]:
            assert isinstance(request, Fetch)
            live.answer = live.serve
            return [encode(Fault(request.request, FaultCode.NO_HELLO, "a connection begins with Hello"))]

        live.answer = forget_once
        assert (await cluster.wake("a", deadline_s=LONG_S)).complete
        assert len(live.asked(Hello)) == 2


async def test_replies_are_received_once_though_one_node_forgot() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1, session=2, history=3)
        for node in nodes.values():
            node.hold.add(Fetch)
        waking = cluster.wake("a", deadline_s=LONG_S)
        await eventually(lambda: all(node.held for node in nodes.values()))
        (fetch,) = nodes["old"].asked(Fetch)
        forgotten = encode(Fault(fetch.request, FaultCode.NO_HELLO))
        answers = [(node.name, frame) for node in (nodes["id"], nodes["live"]) for frame in node.held[0][1]]
        nodes["old"].hold.clear()
        receive_together(cluster, [("old-1", forgotten), *answers])
        assert (await waking).complete
        assert stray_replies(cluster) == 0


@pytest.mark.real
async def test_a_connection_moves_to_the_nodes_ipc_endpoint(tmp_path_factory: pytest.TempPathFactory) -> None:
    topology = fake_topology()
    async with fake_cluster(topology) as nodes:
        live = nodes["live"]
        live.stop()
        live.ipc = f"ipc://{tmp_path_factory.mktemp('ipc')}/n"
        live.start()
        nodes.put("a", profile=1, session=2)
        async with connect(topology) as cluster:
            assert (await cluster.wake("a", deadline_s=LONG_S))["session"] == 2
            assert len(live.asked(Hello)) == 2
            assert len(set(live.peers)) == 2
            live.stop()
            await eventually(lambda: not is_up(cluster, "live-1"))
            live.start()
            await eventually(lambda: is_up(cluster, "live-1"))
            assert (await cluster.wake("a", deadline_s=LONG_S))["session"] == 2


@pytest.mark.real
async def test_unserved_ipc_endpoint_leaves_tcp_in_use(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("ipc") / "dead"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # a socket file, as a killed node leaves one behind
    topology = fake_topology()
    async with fake_cluster(topology) as nodes:
        for node in nodes.values():
            node.ipc = ""
        live = nodes["live"]
        nodes.put("a", profile=1, session=2)

        def answer(request: Request) -> list[bytes]:
            frames = live.serve(request)
            welcome = decode_reply(frames[0])
            return (
                [encode(msgspec.structs.replace(welcome, ipc=f"ipc://{path}"))]
                if isinstance(welcome, Welcome)
                else frames
            )

        live.answer = answer
        async with connect(topology) as cluster:
            assert (await cluster.wake("a", deadline_s=LONG_S))["session"] == 2

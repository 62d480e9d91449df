"""A client's present connection: with its Hello the node forgets the earlier one, and what waits there."""

from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.nodes.connections import Connections
from dawnchorus.wire.messages import PROTOCOL, Fault, FaultCode, Hello, Status, StatusReply, Welcome
from tests.support.raw_nodes import BUDGET_US, RawClient, Served

CLIENT = b"12345678"


async def test_a_hello_of_the_same_client_ends_its_earlier_connection(serving: Served) -> None:
    endpoint = serving.endpoint
    async with RawClient(endpoint) as earlier, RawClient(endpoint) as other, RawClient(endpoint) as later:
        await earlier.ask(Hello(PROTOCOL, "", CLIENT, ""), Welcome)
        await other.ask(Hello(PROTOCOL, "", b"87654321", ""), Welcome)
        await later.ask(Hello(PROTOCOL, "", CLIENT, ""), Welcome)
        fault = await earlier.ask(Status(5, BUDGET_US), Fault)
        assert (fault.request, fault.code) == (5, FaultCode.NO_HELLO)
        for client in (later, other):
            await client.ask(Status(6, BUDGET_US), StatusReply)


@given(
    st.lists(
        st.tuples(st.sampled_from([b"client-1", b"client-2", b"x"]), st.sampled_from([b"p", b"q", b"r"]), st.booleans())
    )
)
def test_each_client_has_one_connection_and_each_connection_one_client(
    events: list[tuple[bytes, bytes, bool]],
) -> None:
    connections = Connections()
    model: dict[bytes, bytes] = {}
    for client, peer, is_hello in events:
        if not is_hello:
            connections.forget(peer)
            model = {name: there for name, there in model.items() if there != peer}
            continue
        before = connections.renew(client, peer)
        if len(client) < 8:
            assert before is None
            continue
        assert before == (model.get(client) if model.get(client) != peer else None)
        model = {name: there for name, there in model.items() if there != peer} | {client: peer}
        assert connections.renew(client, peer) is None
    assert len(connections) == len(model)

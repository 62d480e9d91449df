"""A client's present connection: its first request makes the node forget the earlier one and the work queued there."""

from hypothesis import example, given
from hypothesis import strategies as st

from dawnchorus.wire.transport.connections import Connections

EVENTS = st.tuples(
    st.sampled_from(["hello", "request", "forget"]),
    st.sampled_from([b"client-1", b"client-2", b"x"]),
    st.sampled_from([b"p", b"q", b"r", b"s"]),
)


@given(st.lists(EVENTS))
@example(
    [
        ("hello", b"client-1", b"p"),
        ("hello", b"client-1", b"q"),
        ("forget", b"client-1", b"p"),
        ("hello", b"client-1", b"q"),
        ("request", b"client-1", b"q"),
    ]
)
def test_request_leaves_one_connection_of_its_client(events: list[tuple[str, bytes, bytes]]) -> None:
    connections = Connections()
    names: dict[bytes, bytes] = {}
    used: dict[bytes, bytes] = {}
    for event, client, peer in events:
        if event == "forget" or (event == "hello" and len(client) == 8 and names.get(peer, client) != client):
            connections.forget(peer)
            names.pop(peer, None)
            used = {name: there for name, there in used.items() if there != peer}
        if event == "hello":
            connections.handle_hello(client, peer)
            if len(client) == 8:
                names[peer] = client
                used.setdefault(client, peer)
        elif event == "request" and peer in connections.fresh:
            before = used.get(names[peer])
            assert connections.handle_request(peer) == before != peer
            if before is not None:
                del names[before]
            used[names[peer]] = peer
        assert len(connections) == len(used)
        assert not connections.fresh & set(used.values()), "what is used is fresh no more"
        assert connections.fresh <= names.keys()

"""Peeks into waiting frames."""

from typing import get_args

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.wire.protocol.frame_peek import is_cancel, peek_request
from dawnchorus.wire.protocol.messages import (
    Backup,
    Cancel,
    Commit,
    Fetch,
    Hello,
    Ping,
    Request,
    RequestHeader,
    Scan,
    Status,
    encode,
    read_request_number,
)

HEADER = ("request", "budget_us", "sent_us", "trace")
numbers = st.integers(0, (1 << 64) - 1)


REQUESTS: list[RequestHeader] = [
    Fetch(0, 2, 3, None, []),
    Commit(0, 2, 3, b"trace", []),
    Scan(0, 2, 3, None, "s", 0, 1, b"", 5),
    Status(0, 2, 3, None),
    Backup(0, 2, 3, None, "s", 0, 1, "/p"),
]


def test_every_request_begins_with_the_declared_header() -> None:
    about_the_connection = {Hello, Cancel, Ping}
    kinds = set(get_args(Request)) - about_the_connection
    assert {type(request) for request in REQUESTS} == kinds
    for kind in kinds:
        assert issubclass(kind, RequestHeader)
        assert kind.__struct_fields__[:4] == RequestHeader.__struct_fields__ == HEADER
    for request in REQUESTS:
        tag, *fields = msgspec.msgpack.decode(encode(request))
        assert tag == request.__struct_config__.tag
        assert fields[:4] == [request.request, request.budget_us, request.sent_us, request.trace]
        assert read_request_number(encode(request)) == request.request


@given(numbers, numbers, st.sampled_from(REQUESTS))
def test_request_header_is_peeked_without_decoding(number: int, budget_us: int, request: RequestHeader) -> None:
    frame = encode(msgspec.structs.replace(request, request=number, budget_us=budget_us))
    assert peek_request(frame) == (request.__struct_config__.tag, number, budget_us)
    assert not is_cancel(frame)


@given(st.binary(max_size=20))
def test_any_bytes_can_be_peeked(frame: bytes) -> None:
    seen = peek_request(frame)
    assert seen is None or (0 <= seen[0] < 256 and min(seen[1:]) >= 0 and max(seen[1:]) < 1 << 64)
    assert is_cancel(frame) in (True, False)


def test_a_cancel_is_known_by_its_first_bytes() -> None:
    assert is_cancel(encode(Cancel([1, 2, 3])))
    assert is_cancel(encode(Cancel([])))
    assert not is_cancel(b"")

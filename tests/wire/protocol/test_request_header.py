"""Looking into frames that wait."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.wire.protocol.messages import Cancel, Commit, Fetch, Request, Scan, Status, encode
from dawnchorus.wire.protocol.request_header import is_cancel, peek_request

numbers = st.integers(0, (1 << 64) - 1)


REQUESTS: list[Request] = [Fetch(0, 2, []), Commit(0, 2, []), Status(0, 2), Scan(0, 2, "s", 0, 1, b"", 5)]


@given(numbers, numbers, st.sampled_from(REQUESTS))
def test_tag_number_and_budget_of_a_request_are_seen_without_decoding_it(
    number: int, budget_us: int, request: Request
) -> None:
    frame = encode(msgspec.structs.replace(request, request=number, budget_us=budget_us))
    assert peek_request(frame) == (request.__struct_config__.tag, number, budget_us)
    assert not is_cancel(frame)


@given(st.binary(max_size=20))
def test_any_bytes_can_be_looked_into(frame: bytes) -> None:
    seen = peek_request(frame)
    assert seen is None or (0 <= seen[0] < 256 and min(seen[1:]) >= 0 and max(seen[1:]) < 1 << 64)
    assert is_cancel(frame) in (True, False)


def test_a_cancel_is_known_by_its_first_bytes() -> None:
    assert is_cancel(encode(Cancel([1, 2, 3])))
    assert is_cancel(encode(Cancel([])))
    assert not is_cancel(b"")

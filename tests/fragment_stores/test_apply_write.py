"""The image after a write, by the rules that every engine shares."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.fragment_stores.apply_write import apply_write
from dawnchorus.wire.errors import ProtocolError
from dawnchorus.wire.protocol.image import Fragment, decode_image, encode_image, version_of
from dawnchorus.wire.protocol.limits import (
    AGENT_ID_BYTES_MAX,
    FRAGMENT_BYTES_MAX,
    IMAGE_BYTES_MAX,
    TTL_MS_MAX,
    WRITE_ID_BYTES_MAX,
    WRITE_OPERATIONS_MAX,
)
from dawnchorus.wire.protocol.messages import DeleteAgent, DeleteKind, Operation, Put, Rejection, RejectionCode, Write

BEFORE = encode_image(7, {"session": Fragment(6, 1, 0, 100, 0, b"s"), "context": Fragment(7, 0, 1, 200, 0, b"c")})


def write(*operations: Operation, agent: bytes = b"agent", write_id: bytes = b"w") -> Write:
    return Write(agent, write_id, 0, list(operations))


def put(kind: str, value: bytes = b"v") -> Put:
    return Put(kind, 0, 1, value)


def merged(image: bytes | None, *operations: Operation) -> dict[str, Fragment] | None:
    """Return the fragments after the write of version 9 at 900 ms; fail if it is rejected."""
    after = apply_write(image, write(*operations), 9, 900)
    assert not isinstance(after, Rejection), after
    return None if after is None else decode_image(after)


def rejection(image: bytes | None, rejected: Write) -> str:
    after = apply_write(image, rejected, 9, 900)
    assert isinstance(after, Rejection)
    return after.reason


def test_put_makes_image_of_writes_version_and_time() -> None:
    after = apply_write(None, write(Put("session", 3, 1, b"v")), 9, 900)
    assert after == encode_image(9, {"session": Fragment(9, 3, 1, 900, 0, b"v")})


def test_put_leaves_other_kinds_unchanged() -> None:
    assert merged(BEFORE, put("context", b"new")) == {
        "session": Fragment(6, 1, 0, 100, 0, b"s"),
        "context": Fragment(9, 0, 1, 900, 0, b"new"),
    }


def test_a_view_serves_as_the_image_before() -> None:
    assert apply_write(memoryview(BEFORE), write(put("new")), 9, 900) == apply_write(BEFORE, write(put("new")), 9, 900)


def test_image_takes_the_version_of_a_delete_too() -> None:
    after = apply_write(BEFORE, write(DeleteKind("session")), 9, 900)
    assert isinstance(after, bytes)
    assert version_of(after) == 9
    assert decode_image(after) == {"context": Fragment(7, 0, 1, 200, 0, b"c")}


def test_image_ends_with_its_last_fragment() -> None:
    assert merged(BEFORE, DeleteKind("session"), DeleteKind("context")) is None
    assert merged(BEFORE, DeleteAgent()) is None


def test_operations_are_applied_in_their_order() -> None:
    assert merged(BEFORE, DeleteAgent(), put("session")) == {"session": Fragment(9, 0, 1, 900, 0, b"v")}
    assert merged(BEFORE, put("session"), DeleteAgent()) is None
    assert merged(None, put("session", b"1"), put("session", b"2")) == {"session": Fragment(9, 0, 1, 900, 0, b"2")}
    assert merged(None, put("session"), DeleteKind("session")) is None


@pytest.mark.parametrize("operations", [(), (DeleteKind("other"),), (DeleteKind("other"), DeleteKind("another"))])
def test_write_without_effect_returns_the_same_image(operations: tuple[Operation, ...]) -> None:
    assert apply_write(BEFORE, write(*operations), 9, 900) is BEFORE


@pytest.mark.parametrize(
    "operations", [(), (DeleteKind("session"),), (DeleteAgent(),), (DeleteAgent(), DeleteKind("session"))]
)
def test_deleting_from_an_absent_agent_leaves_nothing(operations: tuple[Operation, ...]) -> None:
    assert apply_write(None, write(*operations), 9, 900) is None


@pytest.mark.parametrize("agent", [b"a", b"a" * AGENT_ID_BYTES_MAX, "ä/1".encode(), b"\x00"])
def test_agent_ids_within_the_limits_are_accepted(agent: bytes) -> None:
    assert isinstance(apply_write(None, write(put("session"), agent=agent), 9, 900), bytes)


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        (b"", "an agent id has 1 to 256 bytes, not 0"),
        (b"a" * 257, "an agent id has 1 to 256 bytes, not 257"),
        (b"a" * 600, "an agent id has 1 to 256 bytes, not 600"),
        (b"\xff\xfe", "an agent id is UTF-8"),
        (b"\xed\xa0\x80", "an agent id is UTF-8"),
    ],
)
def test_agent_ids_outside_the_limits_are_rejected(agent: bytes, reason: str) -> None:
    assert reason in rejection(None, write(put("session"), agent=agent))
    assert reason in rejection(BEFORE, write(DeleteAgent(), agent=agent))


def test_fragment_of_limit_is_accepted_and_larger_rejected() -> None:
    assert isinstance(apply_write(None, write(put("session", bytes(FRAGMENT_BYTES_MAX))), 9, 900), bytes)
    too_large = write(put("session", bytes(FRAGMENT_BYTES_MAX + 1)))
    assert rejection(None, too_large) == "fragment 'session' has 1,048,577 bytes; the limit is 1,048,576"


def test_image_of_limit_is_accepted_and_larger_rejected() -> None:
    first = put("session", bytes(FRAGMENT_BYTES_MAX))
    without = apply_write(None, write(first, put("context", bytes(1 << 20))), 9, 900)
    assert isinstance(without, Rejection), "two largest fragments are too much with their header"
    empty = apply_write(None, write(first, put("context", bytes(70_000))), 9, 900)
    assert isinstance(empty, bytes)
    room = 70_000 + IMAGE_BYTES_MAX - len(empty)
    largest = apply_write(None, write(first, put("context", bytes(room))), 9, 900)
    assert isinstance(largest, bytes)
    assert len(largest) == IMAGE_BYTES_MAX
    over = rejection(None, write(first, put("context", bytes(room + 1))))
    assert over == "the agent's image would have 2,097,153 bytes; the limit is 2,097,152 (2 MiB)"


def test_image_may_exceed_limit_between_operations_of_write() -> None:
    large = [put(kind, bytes(FRAGMENT_BYTES_MAX)) for kind in "abc"]
    assert merged(None, *large, DeleteKind("a"), DeleteKind("b")) == {
        "c": Fragment(9, 0, 1, 900, 0, bytes(FRAGMENT_BYTES_MAX))
    }


def test_write_ids_and_operations_are_bounded() -> None:
    longest = write(*[put("session")] * WRITE_OPERATIONS_MAX, write_id=b"w" * WRITE_ID_BYTES_MAX)
    assert isinstance(apply_write(None, longest, 9, 900), bytes)
    assert "at most 64 bytes" in rejection(None, write(put("session"), write_id=b"w" * (WRITE_ID_BYTES_MAX + 1)))
    assert "at most 256 operations" in rejection(None, write(*[put("session")] * (WRITE_OPERATIONS_MAX + 1)))


def conditional(*operations: Operation, **expect: int) -> Write:
    return Write(b"agent", b"w", 0, list(operations), expect)


EXPIRING = encode_image(7, {"session": Fragment(6, 1, 0, 100, 900, b"s"), "context": Fragment(7, 0, 1, 200, 901, b"c")})


def test_write_whose_expectation_holds_is_applied() -> None:
    for write_ in (
        conditional(put("session"), session=6),
        conditional(put("session"), session=6, context=7, other=0),
        conditional(put("session")),
        conditional(put("other"), other=0),
    ):
        assert isinstance(apply_write(BEFORE, write_, 9, 900), bytes)
    assert isinstance(apply_write(None, conditional(put("session"), session=0), 9, 900), bytes)


@pytest.mark.parametrize("expect", [{"session": 5}, {"session": 0}, {"session": 6, "context": 0}, {"other": 1}])
def test_failed_expectation_is_conflict_with_current_versions(expect: dict[str, int]) -> None:
    after = apply_write(BEFORE, conditional(put("session"), DeleteKind("context"), **expect), 9, 900)
    assert isinstance(after, Rejection)
    assert after.code == RejectionCode.CONFLICT
    there = {"session": 6, "context": 7, "other": 0}
    assert after.found == {kind: there[kind] for kind in expect}
    assert all(f"{kind} {there[kind]}" in after.reason for kind in expect if expect[kind] != there[kind])


def test_expired_fragment_counts_as_absent_from_its_millisecond() -> None:
    assert isinstance(apply_write(EXPIRING, conditional(put("session"), session=0, context=7), 9, 900), bytes)
    assert isinstance(apply_write(EXPIRING, conditional(put("session"), session=6, context=7), 9, 899), bytes)
    late = apply_write(EXPIRING, conditional(put("session"), session=6), 9, 900)
    assert isinstance(late, Rejection)
    assert late.found == {"session": 0}


def test_a_lifetime_counts_from_the_commit() -> None:
    after = merged(None, Put("session", 0, 0, b"v", 50), put("context"))
    assert after is not None
    assert (after["session"].expires_ms, after["context"].expires_ms) == (950, 0)
    again = merged(encode_image(9, after), put("session"))
    assert again is not None
    assert again["session"].expires_ms == 0, "the kind lives as the last write of it says"


def test_given_time_of_expiry_is_kept() -> None:
    after = merged(None, Put("session", 0, 0, b"v", 50, 901), Put("context", 0, 0, b"v", 50, 3))
    assert after is not None
    assert (after["session"].expires_ms, after["context"].expires_ms) == (901, 3), "whether it is over or not"
    assert isinstance(apply_write(None, write(Put("session", 0, 0, b"v", 0, 900 + TTL_MS_MAX)), 9, 900), bytes)
    assert "lives at most" in rejection(None, write(Put("session", 0, 0, b"v", 1, 901 + TTL_MS_MAX)))


def test_begun_and_ended_expiry_times_are_reported() -> None:
    both = write(Put("session", 0, 0, b"v", 50), Put("context", 0, 0, b"v", 50), put("history"))
    begun: set[int] = set()
    ended: set[int] = set()
    image = apply_write(None, both, 9, 900, begun, ended)
    assert isinstance(image, bytes)
    assert (begun, ended) == ({950}, set())
    begun.clear()
    half = apply_write(image, write(put("session")), 10, 901, begun, ended)
    assert isinstance(half, bytes)
    assert (begun, ended) == (set(), set()), "the other of that time is still there"
    apply_write(half, write(Put("context", 0, 0, b"v", 0, 960)), 11, 902, begun, ended)
    assert (begun, ended) == ({960}, {950})


def test_lifetimes_and_expectations_are_bounded() -> None:
    assert isinstance(apply_write(None, write(Put("session", 0, 0, b"v", TTL_MS_MAX)), 9, 900), bytes)
    assert "lives at most" in rejection(None, write(Put("session", 0, 0, b"v", TTL_MS_MAX + 1)))
    many = {f"k{number}": 0 for number in range(WRITE_OPERATIONS_MAX)}
    assert isinstance(apply_write(None, conditional(put("session"), **many), 9, 900), bytes)
    assert "expects at most" in rejection(None, conditional(put("session"), one_more=0, **many))


def test_corrupt_image_is_not_overwritten() -> None:
    with pytest.raises(ProtocolError):
        apply_write(BEFORE[:-1], write(put("session")), 9, 900)


kinds = st.sampled_from(["session", "context", "history"])
operations = st.lists(
    st.one_of(st.builds(put, kinds, st.binary(max_size=5)), st.builds(DeleteKind, kinds), st.builds(DeleteAgent)),
    max_size=5,
)


@given(st.lists(operations, max_size=6))
def test_any_sequence_of_writes_matches_a_mapping(rows: list[list[Operation]]) -> None:
    image: bytes | memoryview | None = None
    expected: dict[str, bytes] = {}
    for version, row in enumerate(rows, 1):
        before = dict(expected)
        for operation in row:
            if isinstance(operation, Put):
                expected[operation.kind] = operation.value
            elif isinstance(operation, DeleteKind):
                expected.pop(operation.kind, None)
            else:
                expected.clear()
        after = apply_write(image, write(*row), version, version)
        assert not isinstance(after, Rejection)
        assert (after is None) == (not expected)
        if not any(isinstance(operation, Put) for operation in row) and before == expected:
            assert after is image
        image = after
    if image is not None:
        assert {kind: fragment.value for kind, fragment in decode_image(image).items()} == expected

"""The token of a save: the client's own, with the versions that it had seen, or a key that the caller chose."""

from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus import InvalidRequestError
from dawnchorus.router.client.value_codec import ValueCodec
from dawnchorus.router.saves.write_token import WriteToken, key_digest, key_token, parse_token
from dawnchorus.wire.protocol.limits import WRITE_ID_BYTES_MAX, WRITE_KEY_BYTES_MAX
from dawnchorus.wire.protocol.messages import DeleteAgent, DeleteKind, Operation, Put
from dawnchorus.wire.protocol.write_digest import operations_digest

STORES = {"live", "id"}

stores = st.from_regex(r"\A[a-z][a-z0-9_-]{0,20}\Z")
tokens = st.builds(
    WriteToken,
    st.binary(min_size=1, max_size=WRITE_ID_BYTES_MAX),
    st.dictionaries(stores, st.integers(0, (1 << 64) - 1), min_size=1, max_size=5),
)
keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=WRITE_KEY_BYTES_MAX // 4)


@given(tokens)
def test_token_is_parsed_from_its_text(token: WriteToken) -> None:
    assert parse_token(str(token), token.seen) == token


@pytest.mark.parametrize(
    "text",
    [
        ".",
        "0102",
        "01.live",
        "01.live:",
        "01.live:x",
        "01.live:1:2",
        ".live:1",
        "zz.live:1",
        "01.live:-1",
        "01.live:10000000000000000",
        "00" * (WRITE_ID_BYTES_MAX + 1) + ".live:1",
        "01.live:1.",
        "2026.11:28",
        "order 17 \N{SNOWMAN}",
    ],
)
def test_other_text_is_parsed_as_key(text: str) -> None:
    assert parse_token(text, STORES) is None


@pytest.mark.parametrize("text", ["", "x" * (WRITE_KEY_BYTES_MAX + 1), "\N{SNOWMAN}" * 86, "\ud800"])
def test_text_outside_key_limits_is_rejected(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="write_id"):
        parse_token(text, STORES)


@given(keys, keys, st.binary(min_size=1, max_size=256), st.binary(min_size=1, max_size=256))
def test_key_names_one_save_of_its_agent(key: str, other: str, agent: bytes, neighbour: bytes) -> None:
    token = key_token(agent, key, {"live": 3})
    assert str(token) == key
    assert token.write_id == key_token(agent, key, {"live": 9}).write_id
    assert 16 < len(token.write_id) <= WRITE_ID_BYTES_MAX, "no client's own id has this length"
    assert (token.write_id == key_token(agent, other, {}).write_id) == (key == other)
    assert (token.write_id == key_token(neighbour, key, {}).write_id) == (agent == neighbour)


mappings = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=4),
    lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def backwards(value: object) -> object:
    """Return an equal mapping with its keys in reverse order."""
    if not isinstance(value, dict):
        return value
    made = cast("dict[str, object]", value)
    return {key: backwards(made[key]) for key in reversed(made)}


def encode_value(kind: str, value: object) -> Put:
    """Return the operation that saves a value."""
    return Put(kind, 0, *ValueCodec(kind).encode(value))


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), mappings, min_size=1))
def test_digest_ignores_mapping_order_and_detects_changed_values(made: dict[str, object]) -> None:
    first = [encode_value(kind, value) for kind, value in made.items()]
    again = [encode_value(kind, backwards(made[kind])) for kind in reversed(made)]
    assert key_digest(first) == key_digest(again)
    changed = [msgspec.structs.replace(first[0], value=first[0].value + b"\0"), *first[1:]]
    assert key_digest(changed) != key_digest(first)


def test_digest_distinguishes_kinds_values_encodings_and_operations() -> None:
    made: list[list[Operation]] = [
        [Put("a", 0, 0, b"v")],
        [Put("b", 0, 0, b"v")],
        [Put("a", 0, 1, b"v")],
        [Put("a", 0, 0, b"w")],
        [Put("a", 0, 0, b"v"), Put("b", 0, 0, b"v")],
        [DeleteKind("a")],
        [Put("a", 0, 0, b"v"), DeleteKind("b")],
        [DeleteAgent()],
        [],
    ]
    assert len({operations_digest(operations) for operations in made}) == len(made)
    assert 0 not in {operations_digest(operations) for operations in made}
    assert operations_digest([Put("a", 0, 0, b"v", 60_000)]) == operations_digest(made[0]), (
        "a lifetime is no part of it"
    )


def test_digest_matches_logs_on_disk() -> None:
    operations: list[Operation] = [Put("session", 0, 1, b"v"), DeleteKind("context"), DeleteAgent()]
    assert operations_digest(operations) == DIGEST


DIGEST = 8628243935014255825

"""The image: its bytes never change, and other bytes are rejected."""

import random
from collections.abc import Callable
from functools import partial

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.wire.errors import ProtocolError
from dawnchorus.wire.protocol import image as image_module
from dawnchorus.wire.protocol.image import (
    ENCODING_BYTES,
    ENCODING_MSGPACK,
    HEADER_BYTES,
    Fragment,
    decode_image,
    encode_image,
    select_kinds,
    version_of,
)

SESSION = Fragment(5, 0, ENCODING_MSGPACK, 1_700_000_000_000, 0, b"\x81\xa1a\x01")
CONTEXT = Fragment((1 << 40) + 6, 2, ENCODING_BYTES, 1_700_000_000_001, 1_800_000_000_000, b"\x00\xff")
GOLDEN = bytes.fromhex(
    "0000010000000006"
    "82"
    "a773657373696f6e 96 05 00 01 cf0000018bcfe56800 00 c40481a16101"
    "a7636f6e74657874 96 cf0000010000000006 02 00 cf0000018bcfe56801 cf000001a3185c5000 c40200ff"
)

versions = st.integers(0, (1 << 64) - 1)
fragments = st.builds(
    Fragment,
    versions,
    st.integers(0, 1 << 32),
    st.integers(0, 255),
    st.integers(0, 1 << 53),
    st.integers(0, 1 << 53),
    st.binary(max_size=300),
)
contents = st.dictionaries(st.text(max_size=20), fragments, max_size=6)


def test_the_bytes_of_an_image_never_change() -> None:
    kinds = {"session": SESSION, "context": CONTEXT}
    assert encode_image((1 << 40) + 6, kinds) == GOLDEN
    assert decode_image(GOLDEN) == kinds
    assert version_of(GOLDEN) == (1 << 40) + 6


def test_the_constants_of_the_format_never_change() -> None:
    assert (HEADER_BYTES, ENCODING_BYTES, ENCODING_MSGPACK) == (8, 0, 1)


@given(versions, contents)
def test_image_survives_encoding(version: int, kinds: dict[str, Fragment]) -> None:
    image = encode_image(version, kinds)
    assert version_of(image) == version_of(memoryview(image)) == version
    for given_image in (image, memoryview(image)):
        decoded = decode_image(given_image)
        assert decoded == kinds
        assert list(decoded) == list(kinds), "the order of kinds is kept"


@given(versions, versions)
def test_images_sort_by_their_versions(one: int, other: int) -> None:
    assert (encode_image(one, {}) < encode_image(other, {})) == (one < other)


@given(versions, contents, st.sets(st.text(max_size=20)), st.randoms(use_true_random=False))
def test_image_cut_to_kinds_keeps_version_and_bytes(
    version: int, kinds: dict[str, Fragment], others: set[str], source: random.Random
) -> None:
    chosen = {kind for kind in kinds if source.random() < 0.5} | others
    image = encode_image(version, kinds)
    left = {kind: fragment for kind, fragment in kinds.items() if kind in chosen}
    assert select_kinds(image, chosen) == encode_image(version, left)
    assert select_kinds(memoryview(image), frozenset(chosen)) == encode_image(version, left)


def test_image_cut_to_kinds_keeps_newer_writers_fields() -> None:
    newer = msgspec.msgpack.encode({"session": [5, 0, 1, 7, 0, b"v", "new"], "context": [6, 0, 1, 7, 0, b"w", "new"]})
    cut = select_kinds(b"\x00" * 8 + newer, {"context"})
    assert msgspec.msgpack.decode(cut[8:]) == {"context": [6, 0, 1, 7, 0, b"w", "new"]}
    assert decode_image(cut) == {"context": Fragment(6, 0, 1, 7, 0, b"w")}


def test_decoded_values_do_not_keep_their_image_alive() -> None:
    memory = bytearray(GOLDEN)
    decoded = decode_image(memoryview(memory))
    memory[:] = bytes(len(memory))
    assert decoded["session"] == SESSION
    memory.clear()  # BufferError if a view of it were left


@pytest.mark.parametrize("length", range(len(GOLDEN)))
def test_truncated_image_is_rejected(length: int) -> None:
    with pytest.raises(ProtocolError, match="not an image"):
        decode_image(GOLDEN[:length])
    with pytest.raises(ProtocolError, match="not an image"):
        select_kinds(GOLDEN[:length], {"session"})


@pytest.mark.parametrize(
    "body",
    [
        b"\x90",
        b"\x81\xa1a\x01",
        b"\x81\xa1\xff\x96\x00\x00\x00\x00\x00\xc4\x00",
        b"\x81\x01\x96\x00\x00\x00\x00\x00\xc4\x00",
        b"\x81\xa1a\x95\x00\x00\x00\x00\x00",
        b"\xdf\xff\xff\xff\xff",
        b"\x80\x80",
    ],
    ids=["an array", "no fragment", "not UTF-8", "a number for a kind", "a field short", "long map", "more behind it"],
)
def test_bytes_of_no_image_are_rejected(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not an image"):
        decode_image(b"\x00" * 8 + body)


def test_corrupt_images_raise_only_protocol_errors() -> None:
    seed = 1
    source = random.Random(seed)
    looks: list[Callable[[bytes], object]] = [decode_image, partial(select_kinds, kinds={"session"})]
    rejected = 0
    for number in range(20_000):
        image = bytearray(GOLDEN)
        for _ in range(source.randrange(1, 4)):
            image[source.randrange(len(image))] ^= 1 << source.randrange(8)
        for look in looks:
            try:
                look(bytes(image))
            except ProtocolError:
                rejected += 1
            except Exception as error:
                pytest.fail(f"seed {seed}, image {number}, {image.hex()}: {error!r}")
    assert rejected > 5_000


def test_the_fields_of_a_fragment_never_move() -> None:
    fields = ("version", "schema", "encoding", "updated_ms", "expires_ms", "value")
    assert image_module.Fragment.__struct_fields__ == fields

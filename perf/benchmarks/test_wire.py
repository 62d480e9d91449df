"""Encoding and decoding: the messages of a wake, and images."""

from collections.abc import Callable
from typing import Any

import pytest

from dawnchorus.fragment_stores.image_batch import ImageList, join_lists
from dawnchorus.wire.protocol.image import Fragment, decode_image, encode_image
from dawnchorus.wire.protocol.messages import (
    Fetch,
    FetchReply,
    FetchSection,
    ImageSection,
    decode_reply,
    decode_request,
    encode,
    encode_fetch_reply_head,
)

Timed = Callable[..., Any]
"""The `benchmark` fixture: calls a function many times and returns its result; its own class has no types."""

NOW_MS = 1_750_000_000_000


@pytest.fixture
def fetch(agents: list[bytes]) -> Fetch:
    """A request for one whole shard of a storm."""
    return Fetch(7, 1_000_000, 0, None, [FetchSection("state", 3, 1, agents[:640])])


@pytest.fixture
def bodies(all_images: list[bytes]) -> list[bytes | memoryview]:
    """About what a FetchReply frame of 1 MiB holds."""
    return [memoryview(image) for image in all_images[:384]]


@pytest.fixture
def section(bodies: list[bytes | memoryview]) -> ImageSection:
    """Sizes of the images, as the frame has them."""
    return ImageSection(0, 0, 0, 1 << 41, list(map(len, bodies)))


def test_encode_a_fetch_of_640_agents(benchmark: Timed, fetch: Fetch) -> None:
    frame: bytes = benchmark(encode, fetch)
    assert decode_request(frame) == fetch


def test_decode_a_fetch_of_640_agents(benchmark: Timed, fetch: Fetch) -> None:
    assert benchmark(decode_request, encode(fetch)) == fetch


def test_encode_a_fetch_of_one_agent(benchmark: Timed, agents: list[bytes]) -> None:
    frame: bytes = benchmark(encode, Fetch(7, 1_000_000, 0, None, [FetchSection("state", 3, 1, agents[:1])]))
    assert len(frame) < 100


def test_encode_images_of_a_frame(benchmark: Timed, section: ImageSection, bodies: list[bytes | memoryview]) -> None:
    batches = [ImageList(bodies, 1 << 41)]

    def frame_images() -> bytes:
        return join_lists(encode_fetch_reply_head(7, NOW_MS, [section], True, sum(section.sizes)), batches)

    assert benchmark(frame_images).endswith(b"".join(bodies))


def test_decode_images_of_a_frame(benchmark: Timed, section: ImageSection, bodies: list[bytes | memoryview]) -> None:
    frame = encode_fetch_reply_head(7, NOW_MS, [section], True, sum(section.sizes)) + b"".join(bodies)
    images: FetchReply = benchmark(decode_reply, frame)
    assert images.sections == [section] and bytes(images.body) == b"".join(bodies)


def test_encode_an_image(benchmark: Timed, fragments: dict[str, Fragment], all_images: list[bytes]) -> None:
    assert benchmark(encode_image, 1 << 41, fragments) == all_images[0]


def test_decode_an_image(benchmark: Timed, fragments: dict[str, Fragment], all_images: list[bytes]) -> None:
    assert benchmark(decode_image, all_images[0]) == fragments

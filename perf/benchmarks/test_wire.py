"""Encoding and decoding: the messages of a wake, and images."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from dawnchorus.wire.image import Fragment, decode_image, encode_image
from dawnchorus.wire.messages import Fetch, FetchSection, Images, ImageSection, decode_reply, decode_request, encode

SECTION_AGENTS = 384
"""About what an Images frame of 1 MiB holds."""


@pytest.fixture
def fetch(agents: list[bytes]) -> Fetch:
    """A request for one whole shard of a storm."""
    return Fetch(7, 1_000_000, [FetchSection("state", 3, 1, agents[:640])])


@pytest.fixture
def images(image: bytes) -> Images:
    """A reply of one frame."""
    return Images(7, 1_750_000_000_000, [ImageSection(0, 0, 0, 1 << 41, [image] * SECTION_AGENTS)])


def test_encode_a_fetch_of_640_agents(benchmark: BenchmarkFixture, fetch: Fetch) -> None:
    frame = benchmark(encode, fetch)
    assert decode_request(frame) == fetch


def test_decode_a_fetch_of_640_agents(benchmark: BenchmarkFixture, fetch: Fetch) -> None:
    assert benchmark(decode_request, encode(fetch)) == fetch


def test_encode_a_fetch_of_one_agent(benchmark: BenchmarkFixture, agents: list[bytes]) -> None:
    frame = benchmark(encode, Fetch(7, 1_000_000, [FetchSection("state", 3, 1, agents[:1])]))
    assert len(frame) < 100


def test_encode_images_of_a_frame(benchmark: BenchmarkFixture, images: Images) -> None:
    frame = benchmark(encode, images)
    assert len(frame) > 1_000_000


def test_decode_images_of_a_frame(benchmark: BenchmarkFixture, images: Images) -> None:
    decoded = benchmark(decode_reply, encode(images))
    assert decoded == images


def test_encode_an_image(benchmark: BenchmarkFixture, fragments: dict[str, Fragment], image: bytes) -> None:
    assert benchmark(encode_image, 1 << 41, fragments) == image


def test_decode_an_image(benchmark: BenchmarkFixture, fragments: dict[str, Fragment], image: bytes) -> None:
    assert benchmark(decode_image, image) == fragments

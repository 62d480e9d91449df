"""What the microbenchmarks share: ten thousand agents, and the image of one."""

import pytest

from dawnchorus.perf.workload import SyntheticAgents
from dawnchorus.wire.image import Fragment, encode_image

AGENTS = 10_000


@pytest.fixture(scope="session")
def workload() -> SyntheticAgents:
    """As a storm makes them: five fragments of 512 bytes each."""
    return SyntheticAgents(AGENTS, 512)


@pytest.fixture(scope="session")
def agents(workload: SyntheticAgents) -> list[bytes]:
    """Their ids as they stand on the wire."""
    return [agent_id.encode() for agent_id in workload.ids]


@pytest.fixture(scope="session")
def fragments(workload: SyntheticAgents) -> dict[str, Fragment]:
    """The fragments of the first one."""
    values = workload.encoded(0)
    return {kind: Fragment(1 << 41, 0, 0, 1_750_000_000_000, 0, value) for kind, value in values.items()}


@pytest.fixture(scope="session")
def image(fragments: dict[str, Fragment]) -> bytes:
    """Its image, as one store keeps it."""
    return encode_image(1 << 41, fragments)

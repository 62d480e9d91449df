"""Fixtures of the microbenchmarks: ten thousand agents and their images."""

import pytest

from dawnchorus.perf.harness.workload import SyntheticAgents
from dawnchorus.wire.protocol.image import Fragment, encode_image

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
    return fragments_of(workload, 0)


@pytest.fixture(scope="session")
def all_images(workload: SyntheticAgents) -> list[bytes]:
    """The images of all, as one store keeps them: 27 MB, more than a cache holds."""
    return [encode_image(1 << 41, fragments_of(workload, agent)) for agent in range(AGENTS)]


def fragments_of(workload: SyntheticAgents, agent: int) -> dict[str, Fragment]:
    """Return an agent's fragments as its node would have them."""
    values = workload.encoded(agent)
    return {kind: Fragment(1 << 41, 0, 0, 1_750_000_000_000, 0, value) for kind, value in values.items()}

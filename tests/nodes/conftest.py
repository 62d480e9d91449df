"""Fixtures of the node tests: one served node, and a client that it has welcomed."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.support.raw_nodes import RawClient, Served, make_topology, served


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncGenerator[Served]:
    """A node with three stores, in the loop of the test."""
    async with served(make_topology(tmp_path)) as made:
        yield made


@pytest.fixture
async def client(serving: Served) -> AsyncGenerator[RawClient]:
    """A client that has said Hello to it."""
    async with RawClient(serving.endpoint) as made:
        await made.hello()
        yield made

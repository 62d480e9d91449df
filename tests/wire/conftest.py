"""A fixture of the tests of sockets."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for an ipc endpoint's 107 bytes, as `tmp_path` may not."""
    with tempfile.TemporaryDirectory(prefix="dc-") as directory:
        yield Path(directory)

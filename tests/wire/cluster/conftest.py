"""A control store in a directory of its own, for the tests of control stores."""

from pathlib import Path

import pytest

from dawnchorus.wire.cluster.file_control_store import FileControlStore


@pytest.fixture
def control(tmp_path: Path) -> FileControlStore:
    return FileControlStore.in_directory(tmp_path / "var" / "dev")

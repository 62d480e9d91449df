"""A fixture of all tests of the harness: the children that were there before each."""

import pytest

from tests.support.children import note_children


@pytest.fixture(autouse=True)
def _others_children() -> None:  # pyright: ignore[reportUnusedFunction]
    note_children()

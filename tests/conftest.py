"""What every test shares: uvloop under async tests, and hypothesis without time limits."""

from typing import Any

import pytest
from hypothesis import settings

# A busy machine stalls now and then: examples are bounded by number, not by time. The blob repeats a failure anywhere.
settings.register_profile("dawnchorus", deadline=None, max_examples=100, print_blob=True)
settings.load_profile("dawnchorus")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Run async tests and async fixtures on uvloop, as nodes and hosts run."""
    return "asyncio", {"use_uvloop": True}

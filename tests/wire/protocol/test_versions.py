"""Versions: generation and sequence in one number that only grows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.wire.protocol.versions import GENERATION_MAX, SEQUENCE_BITS, first_version, generation_of, sequence_of


def test_the_layout_of_versions_never_changes() -> None:
    assert SEQUENCE_BITS == 40
    assert GENERATION_MAX == 2**24 - 1
    assert first_version(1) == 0x0000_0100_0000_0000
    assert first_version(0xABCDEF) + 5 == 0xABCD_EF00_0000_0005


@given(st.integers(1, GENERATION_MAX), st.integers(0, (1 << SEQUENCE_BITS) - 1))
def test_a_version_says_its_generation_and_sequence(generation: int, sequence: int) -> None:
    version = first_version(generation) + sequence
    assert generation_of(version) == generation
    assert sequence_of(version) == sequence
    assert version < 1 << 64


@given(st.integers(1, GENERATION_MAX - 1))
def test_new_generation_is_newer_than_earlier_versions(generation: int) -> None:
    newest = first_version(generation) + (1 << SEQUENCE_BITS) - 1
    assert first_version(generation + 1) > newest


@pytest.mark.parametrize("generation", [-1, 0, GENERATION_MAX + 1])
def test_generation_outside_24_bits_is_rejected(generation: int) -> None:
    with pytest.raises(ValueError, match=f"generation {generation} is outside 1 to 16777215"):
        first_version(generation)

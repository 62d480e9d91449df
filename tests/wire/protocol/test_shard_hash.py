"""The shard of an agent: it never changes, because data on disk was placed by it."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.wire.protocol.shard_hash import hash_agent, shard_of


@pytest.mark.parametrize(
    ("agent", "hashed"),
    [
        # The first is the XXH3 specification's own value for no bytes without a seed.
        (b"", 0x2D06800538D394C2),
        (b"agent-42", 0x49264A2DE0C87A46),
        (b"a", 0xE6C632B61E964E1F),
        ("Zoë/Ωμέγα".encode(), 0xCC97A6225358EE8E),
        (b"x" * 256, 0xD1D05738849BAEC9),
    ],
)
def test_the_hash_of_an_agent_never_changes(agent: bytes, hashed: int) -> None:
    assert hash_agent(agent) == hashed


@pytest.mark.parametrize(
    ("agent", "shards", "shard"),
    [(b"agent-42", 16, 6), (b"agent-42", 7, 6), (b"agent-43", 16, 10), ("Zoë/Ωμέγα".encode(), 1_024, 654)],
)
def test_the_shard_of_an_agent_never_changes(agent: bytes, shards: int, shard: int) -> None:
    assert shard_of(agent, shards) == shard


@given(st.binary(min_size=1, max_size=256), st.integers(1, 1_024))
def test_every_agent_has_a_shard(agent: bytes, shards: int) -> None:
    assert 0 <= shard_of(agent, shards) < shards
    assert shard_of(agent, 1) == 0


def test_agents_with_like_names_are_spread_evenly() -> None:
    found = Counter(shard_of(b"agent-%d" % number, 16) for number in range(16_000))
    assert set(found) == set(range(16))
    # A thousand each, with a standard deviation of 31.
    assert all(850 < agents < 1_150 for agents in found.values())

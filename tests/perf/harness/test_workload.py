"""The agents of a storm: each value its own, the same every time, and what peers get is what the cluster gets."""

import math

import msgspec
import pytest

from dawnchorus.perf.harness.workload import FIVE_KINDS, GivenAgents, SyntheticAgents, WorkloadError, image_bytes
from dawnchorus.wire.protocol.image import Fragment, encode_image


def test_synthetic_values_have_their_size_and_differ() -> None:
    agents = SyntheticAgents(2000, 100)
    values = [value for agent in range(2000) for value in agents.encoded(agent).values()]
    assert {len(value) for value in values} == {100}
    assert len(set(values)) == len(values) == 10_000
    assert len(set(agents.ids)) == 2000


def test_synthetic_values_depend_on_seed() -> None:
    first, again, other = SyntheticAgents(10, 64, 1), SyntheticAgents(10, 64, 1), SyntheticAgents(10, 64, 2)
    assert first.encoded(7) == again.encoded(7) == first.fragments(7)
    assert first.encoded(7) != other.encoded(7)


def test_the_stride_reaches_every_place_of_the_pool() -> None:
    # So many agents have an odd multiple of the stride's values, which would bring it back to the first place early.
    agents = SyntheticAgents(7919 * 221, 1)
    assert agents.places >= 7919 * 221 * 5
    assert math.gcd(agents.places, 7919) == 1


def test_copies_are_named_and_have_the_same_values() -> None:
    agents = GivenAgents([("a", {"profile": {"n": 1}, "session": b"\0\1"}), ("b/ü", {"profile": [2]})], copies=3)
    assert list(agents.ids) == ["a", "b/ü", "a~1", "b/ü~1", "a~2", "b/ü~2"]
    assert agents.fragments(4) == {"profile": {"n": 1}, "session": b"\0\1"}
    assert agents.encoded(4) == {"profile": msgspec.msgpack.encode({"n": 1}), "session": b"\0\1"}
    assert agents.kinds == ("profile", "session")
    assert agents.kinds_of_all == ("profile",)


def test_given_agents_that_cannot_be_woken_are_rejected() -> None:
    with pytest.raises(WorkloadError, match="no agents"):
        GivenAgents([])
    with pytest.raises(WorkloadError, match="twice"):
        GivenAgents([("a", {"profile": 1}), ("a", {"profile": 2})])
    with pytest.raises(WorkloadError, match="copies"):
        GivenAgents([("a", {"profile": 1})], copies=0)
    with pytest.raises(WorkloadError, match="at least one"):
        SyntheticAgents(0, 512)


def test_image_bytes_are_those_of_real_images() -> None:
    values = SyntheticAgents(1, 512).encoded(0)
    stores = dict.fromkeys(FIVE_KINDS, "state") | {"history": "archive"}
    version = 1 << 41
    real = 0
    for store in ("state", "archive"):
        fragments = {
            kind: Fragment(version, 0, 0, 1_750_000_000_000, 0, value)
            for kind, value in values.items()
            if stores[kind] == store
        }
        real += len(encode_image(version, fragments))
    assert image_bytes(values, stores) == real

"""Acknowledged versions against a model: a fetch is compared with all acknowledgements while it was under way."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dawnchorus.router.wakes.acknowledged_versions import AcknowledgedVersions

AGENTS = [b"a", b"b", b"c"]
STORES = ["live", "archive"]


def test_save_acknowledged_during_fetch_is_its_minimum_version() -> None:
    acknowledged = AcknowledgedVersions()
    acknowledged.begin_fetch(10.0)
    assert not acknowledged
    acknowledged.note("live", b"a", 7, 1.0)
    assert acknowledged
    assert acknowledged.of(b"a", ["live"]) == [7]
    assert acknowledged.of(b"a", ["archive"]) == [0]
    assert acknowledged.of(b"b", ["live"]) == [0]


def test_nothing_is_kept_without_a_fetch() -> None:
    acknowledged = AcknowledgedVersions()
    acknowledged.note("live", b"a", 7, 1.0)
    assert len(acknowledged) == 0
    acknowledged.begin_fetch(10.0)
    acknowledged.note("live", b"a", 8, 1.0)
    acknowledged.begin_fetch(10.0)
    acknowledged.end_fetch()
    assert acknowledged.of(b"a", ["live"]) == [8], "another fetch is still under way"
    acknowledged.end_fetch()
    assert len(acknowledged) == 0


def test_acknowledged_version_never_decreases() -> None:
    acknowledged = AcknowledgedVersions()
    acknowledged.begin_fetch(10.0)
    acknowledged.note("live", b"a", 9, 1.0)
    acknowledged.note("live", b"a", 3, 2.0)  # acknowledgements of two saves can come in either order
    assert acknowledged.of(b"a", ["live"]) == [9]


def test_notes_no_fetch_needs_are_dropped() -> None:
    acknowledged = AcknowledgedVersions()
    acknowledged.begin_fetch(10.0)
    acknowledged.note("live", b"a", 1, 1.0)
    acknowledged.begin_fetch(30.0)
    acknowledged.note("live", b"b", 2, 20.0)
    assert len(acknowledged) == 1
    assert acknowledged.of(b"b", ["live"]) == [2]


@dataclass
class Fetch:
    """A fetch under way, and the versions that it has to be compared with."""

    deadline: float
    acknowledged: dict[tuple[str, bytes], int] = field(default_factory=dict)


class AgainstModel(RuleBasedStateMachine):
    """Passing time, fetches that end by their deadlines, and acknowledged saves of growing versions."""

    def __init__(self) -> None:
        super().__init__()
        self.acknowledged = AcknowledgedVersions()
        self.now = 0.0
        self.version = 0
        self.fetches: list[Fetch] = []
        self.newest: dict[tuple[str, bytes], int] = {}

    @rule(budget=st.floats(0.0, 5.0))
    def begin(self, budget: float) -> None:
        self.fetches.append(Fetch(self.now + budget))
        self.acknowledged.begin_fetch(self.now + budget)

    @precondition(lambda self: self.fetches)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.fetches.pop(data.draw(st.integers(0, len(self.fetches) - 1)))
        self.acknowledged.end_fetch()

    @rule(store=st.sampled_from(STORES), agent=st.sampled_from(AGENTS), behind=st.integers(0, 2))
    def acknowledge(self, store: str, agent: bytes, behind: int) -> None:
        self.version += 1
        version = max(1, self.version - behind)
        self.acknowledged.note(store, agent, version, self.now)
        key = (store, agent)
        self.newest[key] = max(version, self.newest.get(key, 0))
        for fetch in self.fetches:
            fetch.acknowledged[key] = max(version, fetch.acknowledged.get(key, 0))

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for fetch in [fetch for fetch in self.fetches if fetch.deadline < self.now]:
            self.fetches.remove(fetch)
            self.acknowledged.end_fetch()

    @invariant()
    def no_fetch_is_held_against_too_little_or_too_much(self) -> None:
        for fetch in self.fetches:
            for (store, agent), version in fetch.acknowledged.items():
                assert self.acknowledged.of(agent, [store])[0] >= version
        for store in STORES:
            for agent in AGENTS:
                assert self.acknowledged.of(agent, [store])[0] <= self.newest.get((store, agent), 0)

    @invariant()
    def nothing_is_kept_for_nobody(self) -> None:
        assert len(self.acknowledged) <= len(AGENTS)
        assert set(self.acknowledged.agents) <= set(AGENTS)
        if not self.fetches:
            assert len(self.acknowledged) == 0
            assert not self.acknowledged


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=60, stateful_step_count=40)

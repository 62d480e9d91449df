"""Fills of a state after its wake, against a model: an agent in one store, saved, woken and filled."""

from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dawnchorus import AgentState, FragmentAbsent, FragmentUnavailable, Outcome
from dawnchorus.router.wakes.fills import Moment
from dawnchorus.router.wakes.outcomes import Item
from dawnchorus.router.wakes.wake_context import KindView, WakeContext
from dawnchorus.wire.protocol.image import ENCODING_MSGPACK, Fragment, encode_image
from tests.router.wakes.test_agent_state import never_again

KINDS = ("session", "context", "mood")
FALLBACK = ["nothing"]


class Snapshot(NamedTuple):
    """The agent's store at one moment: versions by kind, the image's (0 for none) and the shard's."""

    kinds: dict[str, int]
    image: int
    shard: int


class Fill(NamedTuple):
    """A fill under way: what it asks for, when it began, and what it read, once it has."""

    kinds: tuple[str, ...]
    began: int
    read: list[Snapshot]


def state_of(snapshot: Snapshot | Outcome, asked: tuple[str, ...]) -> AgentState:
    """Return the state that a wake of some kinds gives; each value is a list with its version in it."""
    views = {
        kind: KindView(
            0 if kind in asked else -1,
            msgspec.msgpack.Decoder(Any),
            FALLBACK if kind == "context" else msgspec.UNSET,
            "live",
        )
        for kind in KINDS
    }
    item: Item = None
    if isinstance(snapshot, Outcome):
        item, moments = snapshot, (0,)
    else:
        fragments = {
            kind: Fragment(version, 0, ENCODING_MSGPACK, 0, 0, msgspec.msgpack.encode([version]))
            for kind, version in snapshot.kinds.items()
            if kind in asked
        }
        if snapshot.image:
            item = encode_image(snapshot.image, fragments)
        moments = (snapshot.shard,)
    return AgentState("a", WakeContext(views, 1, never_again), _images=(item,), _moments=moments)


class FilledState(RuleBasedStateMachine):
    """One state, its owner, and saves of others."""

    history: list[Snapshot]

    @initialize(asked=st.sets(st.sampled_from(KINDS), min_size=1), fails=st.booleans())
    def wake(self, asked: set[str], fails: bool) -> None:
        self.history = [Snapshot({}, 0, 1), Snapshot({"session": 2, "context": 2}, 2, 2)]
        self.fills: list[Fill] = []
        self.shown: dict[str, Any] = {}
        """The object that the owner was shown last of each kind; None for absence."""
        self.fallbacks: set[str] = set()
        """Kinds of which the owner was shown a fallback, or nothing, and nothing since."""
        self.owed: dict[str, int] = {}
        """By kind the moment that it must not be older than."""
        self.state = state_of(Outcome.TIMEOUT if fails else self.history[-1], tuple(sorted(asked)))

    def is_there(self, kind: str) -> bool:
        try:
            return self.state.peek(kind) in (Outcome.OK, Outcome.ABSENT)
        except FragmentUnavailable:
            return False

    @rule(kinds=st.sets(st.sampled_from(KINDS), min_size=1), deleted=st.sets(st.sampled_from(KINDS)))
    def save(self, kinds: set[str], deleted: set[str]) -> None:
        version = len(self.history) + 1
        now = {**self.history[-1].kinds, **dict.fromkeys(kinds, version)}
        left = {kind: then for kind, then in now.items() if kind not in deleted}
        self.history.append(Snapshot(left, version if left else 0, version))

    @rule()
    def another_agent_is_saved(self) -> None:
        last = self.history[-1]
        self.history.append(last._replace(shard=len(self.history) + 1))

    @rule(wanted=st.sampled_from([("session",), ("context",), ("mood",), ()]))
    def ask(self, wanted: tuple[str, ...]) -> None:
        """Fetch a kind that is not there, or settle."""
        wanted = wanted or self.state.degraded
        if wanted and not any(self.is_there(kind) for kind in wanted):
            kinds = self.state.kinds_along(wanted)
            assert set(wanted) <= set(kinds)
            self.state.handle_asked(kinds)
            self.fills.append(Fill(kinds, len(self.history), []))

    @precondition(lambda self: any(not fill.read for fill in self.fills))
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([fill for fill in self.fills if not fill.read])).read.append(self.history[-1])

    @precondition(lambda self: self.fills)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.fills) - 1))
        fill = self.fills.pop(place)
        if not fill.read:
            fresh = data.draw(st.sampled_from([None, state_of(Outcome.SHED, fill.kinds)]))
            self.state.handle_answered(fill.kinds, fresh)
            return
        self.state.handle_answered(fill.kinds, state_of(fill.read[0], fill.kinds))
        for kind in fill.kinds:
            assert self.is_there(kind)
            if kind not in self.shown or kind in self.fallbacks:
                self.owed[kind] = max(self.owed.get(kind, 0), fill.began)

    @rule(kind=st.sampled_from(KINDS), how=st.sampled_from(["[]", "get", "outcome", "version"]))
    def look(self, kind: str, how: str) -> None:
        before = self.shown.get(kind)
        there = self.is_there(kind)
        value: Any = None
        absent = True
        try:
            if how == "[]":
                value = self.state[kind]
            elif how == "get":
                value = self.state.get(kind)
            elif how == "version":
                absent = self.state.version(kind) == 0
            else:
                absent = self.state.outcome(kind) is Outcome.ABSENT
        except FragmentAbsent:
            assert there
        except FragmentUnavailable:
            assert not there
            if how in ("[]", "get") and self.state.kinds_along((kind,)) and kind in self.state.degraded:
                self.fallbacks.add(kind)
                self.shown[kind] = None
            return
        if how in ("outcome", "version") and not (there and absent):
            return  # no value was shown
        if there:
            if kind in self.shown and kind not in self.fallbacks:
                assert value is before, "what was looked at stays, the same object"
            self.fallbacks.discard(kind)
        else:
            assert value == FALLBACK
            if kind in self.fallbacks:
                assert value is before
            self.fallbacks.add(kind)
        self.shown[kind] = value

    @invariant()
    def what_is_there_is_new_enough_and_of_one_moment(self) -> None:
        if not hasattr(self, "state"):
            return
        there = {kind: self.state.stored_version(kind) for kind in KINDS if self.is_there(kind)}
        for kind, since in self.owed.items():
            assert there[kind] in {snapshot.kinds.get(kind, 0) for snapshot in self.history[since - 1 :]}
        if not self.state.skewed:
            assert any(
                all(snapshot.kinds.get(kind, 0) == version for kind, version in there.items())
                for snapshot in self.history
            ), "never one half of a save beside the other half without saying so"
        assert self.state.complete == all(self.is_there(kind) for kind in self.state.degraded)

    @invariant()
    def a_version_vouches_for_what_was_shown(self) -> None:
        if not hasattr(self, "state"):
            return
        for kind in KINDS:
            try:
                version = self.state.vouched_version(kind)
            except FragmentUnavailable:
                assert kind in self.fallbacks or not self.is_there(kind)
            else:
                assert kind not in self.fallbacks
                if kind in self.shown:
                    assert version == (0 if self.shown[kind] is None else self.shown[kind][0])


TestFilledState = FilledState.TestCase
TestFilledState.settings = settings(max_examples=150, stateful_step_count=25)


@pytest.mark.parametrize(
    ("later", "earlier", "expected"),
    [
        (Moment(5, 9), Moment(4, 8), True),
        (Moment(5, 9), Moment(5, 6), False),
        (Moment(4, 9), Moment(5, 9), False),
        (Moment(0, 7), Moment(6, 6), True),
        (Moment(0, 5), Moment(6, 6), False),
        (Moment(6, 6), Moment(0, 5), True),
        (Moment(6, 6), Moment(0, 6), False),
        (Moment(0, 9), Moment(0, 1), False),
        (Moment(0, 0), Moment(3, 0), False),
        (Moment(3, 0), Moment(0, 0), True),
    ],
)
def test_which_of_two_answers_is_the_later_one(later: Moment, earlier: Moment, expected: bool) -> None:
    assert later.is_after(earlier) is expected

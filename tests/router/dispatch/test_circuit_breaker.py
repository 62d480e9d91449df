"""The circuit breaker on a hand-driven clock."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dawnchorus.router.dispatch.circuit_breaker import MOMENT_S, Breaker, BreakerState
from dawnchorus.wire.cluster.topology import BreakerSpec

SPEC = BreakerSpec(failure_share=0.25, requests_min=10, window_s=10.0, consecutive_timeouts=5, retry_after_s=5.0)


def state_of(breaker: Breaker) -> BreakerState:
    """Return its state, read anew: a type checker assumes that an attribute seen once does not change."""
    return breaker.state


def opened(now: float = 0.0) -> Breaker:
    """Return a breaker that is open from `now` on, after ten moments of failures."""
    breaker = Breaker(SPEC)
    for moment in range(10):
        assert state_of(breaker) is BreakerState.CLOSED
        breaker.handle_failure(now - 1.0 + moment / 9)
    assert state_of(breaker) is BreakerState.OPEN
    return breaker


def test_breaker_opens_at_failure_share_of_enough_requests() -> None:
    breaker = Breaker(SPEC)
    for tenth in range(30):
        breaker.handle_success(tenth / 10)
    for tenth in range(30, 39):
        breaker.handle_failure(tenth / 10)
        assert breaker.admit(tenth / 10)  # 9 of 39 are less than a quarter
    breaker.handle_failure(3.9)
    assert state_of(breaker) is BreakerState.OPEN
    assert not breaker.admit(4.0)
    assert breaker.opened == 1


def test_moment_counts_by_its_share_of_failures() -> None:
    breaker = Breaker(SPEC)
    for moment in range(400):  # a fifth of each moment's requests: a lot, and no quarter
        for request in range(50):
            (breaker.handle_failure if request % 5 == 4 else breaker.handle_success)(moment / 10)
    assert state_of(breaker) is BreakerState.CLOSED
    for moment in range(400, 500):
        for request in range(50):
            (breaker.handle_failure if request % 3 == 2 else breaker.handle_success)(moment / 10)
    assert state_of(breaker) is BreakerState.OPEN


@pytest.mark.parametrize("pause_s", [0.0, 0.1])
def test_one_pause_failing_many_requests_keeps_breaker_closed(pause_s: float) -> None:
    breaker = Breaker(SPEC)
    for _ in range(20):
        breaker.handle_success(0.0)
    for request in range(1_000):
        breaker.handle_timeout(1.0 + pause_s * request / 999, 0.5)
    assert breaker.admit(1.1) and state_of(breaker) is BreakerState.CLOSED
    breaker.handle_success(1.2)
    for request in range(1_000):
        breaker.handle_timeout(2.0 + pause_s * request / 999, 1.5)
    assert breaker.admit(2.1) and state_of(breaker) is BreakerState.CLOSED


def test_few_failed_requests_never_open_breaker() -> None:
    breaker = Breaker(SPEC)
    for second in range(9):
        breaker.handle_failure(float(second))
    assert state_of(breaker) is BreakerState.CLOSED


def test_short_window_is_judged_by_its_few_moments() -> None:
    breaker = Breaker(BreakerSpec(window_s=0.2))
    for _ in range(20):
        breaker.handle_failure(0.0)
    breaker.handle_failure(0.06)
    assert state_of(breaker) is BreakerState.OPEN


def test_failures_are_forgotten_when_they_leave_window() -> None:
    breaker = Breaker(SPEC)
    for tenth in range(9):
        breaker.handle_failure(tenth / 10)
    for tenth in range(9):
        breaker.handle_failure(11.5 + tenth / 10)
    assert state_of(breaker) is BreakerState.CLOSED
    breaker.handle_failure(12.5)
    assert state_of(breaker) is BreakerState.OPEN


def test_consecutive_timeouts_open_breaker() -> None:
    breaker = Breaker(SPEC)
    for _ in range(200):
        breaker.handle_success(0.0)
    for second in range(4):
        breaker.handle_timeout(float(second), second - 1.0)
    assert state_of(breaker) is BreakerState.CLOSED
    breaker.handle_timeout(4.0, 3.0)
    assert state_of(breaker) is BreakerState.OPEN


def test_timeouts_of_one_moment_count_once() -> None:
    breaker = Breaker(BreakerSpec(requests_min=10_000))
    for moment in (0.0, 0.06, 0.12, 0.18):
        for _ in range(100):
            breaker.handle_timeout(moment, moment - 1.0)
    assert state_of(breaker) is BreakerState.CLOSED
    breaker.handle_timeout(0.24, -0.76)
    assert state_of(breaker) is BreakerState.OPEN


def test_any_answer_even_late_resets_consecutive_timeouts() -> None:
    breaker = Breaker(BreakerSpec(requests_min=1_000))
    for second in range(20):
        breaker.handle_timeout(float(second), second - 1.0)
        if second % 4 == 3:
            breaker.handle_life(float(second))
        elif second % 4 == 1:
            breaker.handle_success(float(second))
    assert state_of(breaker) is BreakerState.CLOSED


def test_late_answer_removes_its_timeout_from_failure_share() -> None:
    breaker = Breaker(SPEC)
    for tenth in range(200):  # a node that answers 200 ms late, and wakes that have 100 ms
        breaker.handle_timeout(tenth / 10, tenth / 10 - 0.1)
        breaker.handle_life(tenth / 10 + 0.1)
    assert state_of(breaker) is BreakerState.CLOSED


def test_late_answer_lets_open_breaker_probe_at_once() -> None:
    breaker = opened()
    assert not breaker.admit(1.0)
    breaker.handle_life(1.0)
    assert breaker.admit(1.0)
    assert not breaker.admit(1.0)


def test_too_short_deadline_counts_nothing() -> None:
    breaker = Breaker(SPEC)
    for _ in range(100):
        breaker.handle_timeout(0.0, -0.001)
    assert state_of(breaker) is BreakerState.CLOSED


def test_half_open_breaker_admits_one_probe() -> None:
    breaker = opened()
    assert not breaker.admit(4.99)
    assert breaker.admit(5.0)
    assert state_of(breaker) is BreakerState.HALF_OPEN
    assert not breaker.admit(5.0)
    breaker.handle_success(5.1)
    assert state_of(breaker) is BreakerState.CLOSED
    assert breaker.admit(5.1)


def test_failed_probe_opens_breaker_for_another_pause() -> None:
    breaker = opened()
    assert breaker.admit(5.0)
    breaker.handle_timeout(6.0, 5.0)
    assert state_of(breaker) is BreakerState.OPEN
    assert not breaker.admit(10.9)
    assert breaker.admit(11.0)
    assert breaker.opened == 2


def test_abandoned_probe_lets_another_pass() -> None:
    breaker = opened()
    assert breaker.admit(5.0)
    breaker.handle_abandoned()
    assert state_of(breaker) is BreakerState.HALF_OPEN
    assert breaker.admit(5.1)


def test_new_welcome_closes_breaker() -> None:
    breaker = opened()
    breaker.handle_up(0.1)
    assert breaker.admit(0.1) and breaker.admit(0.1)
    assert state_of(breaker) is BreakerState.CLOSED


def test_reclosed_breaker_ignores_failures_before_it_opened() -> None:
    breaker = opened()
    assert breaker.admit(5.0)
    breaker.handle_success(5.0)
    for tenth in range(9):
        breaker.handle_failure(5.0 + tenth / 10)
    assert state_of(breaker) is BreakerState.CLOSED


def test_answered_probe_closes_breaker_despite_older_timeouts() -> None:
    breaker = opened()
    breaker.handle_success(1.0)  # of an earlier request: the breaker did not open for silence
    assert not breaker.admit(4.9)
    assert breaker.admit(5.0)
    for tenth in range(5):
        breaker.handle_timeout(5.0 + tenth / 10, -0.5)  # sent before it opened
    assert state_of(breaker) is BreakerState.HALF_OPEN and not breaker.admit(5.5)
    breaker.handle_success(5.6)
    assert state_of(breaker) is BreakerState.CLOSED
    for tenth in range(50):
        breaker.handle_timeout(5.7 + tenth / 10, -0.5)
    assert state_of(breaker) is BreakerState.CLOSED


def test_breaker_opened_by_silence_probes_after_any_answer() -> None:
    silent = Breaker(SPEC)
    for second in range(5):
        silent.handle_timeout(float(second), second - 1.0)
    assert silent.admits_at == 9.0 and not silent.admit(5.0)
    silent.handle_success(5.0)  # one that was on its way when it opened
    assert silent.admits_at == 5.0 and silent.admit(5.0)
    assert silent.admits_at == math.inf
    failing = opened()
    failing.handle_life(1.0)
    assert failing.admits_at == 1.0 and failing.admit(1.0)


class BreakerAgainstItsRule(RuleBasedStateMachine):
    """The promises of docs/resilience.md under any order of events; the model counts moments in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(SPEC)
        self.now = 100.0
        self.outcomes: list[tuple[float, bool]] = []  # since it closed last; True is a failure
        self.changed_at = -math.inf

    def moments(self) -> list[float]:
        """Return the share of failed requests of each moment that may still be in the window."""
        found: list[list[float]] = []
        end = -math.inf
        for at, failed in self.outcomes:
            if at >= end:
                found.append([])
                end = at + MOMENT_S
            found[-1].append(float(failed))
        return [sum(moment) / len(moment) for moment in found]

    def note(self, was: BreakerState, failed: bool) -> None:
        if was is BreakerState.CLOSED:
            self.outcomes.append((self.now, failed))
            if state_of(self.breaker) is BreakerState.OPEN:
                assert failed
                failing = [share for share in self.moments() if share > 0]
                assert len(failing) >= 3, "one moment opens nothing, nor do two"
        if state_of(self.breaker) is not was:
            self.outcomes.clear()
            self.changed_at = self.now

    @rule(passed=st.sampled_from([0.0, 0.001, 0.02, 0.06, 0.5, 3.0]))
    def wait(self, passed: float) -> None:
        self.now += passed

    @rule(times=st.integers(1, 40))
    def answer(self, times: int) -> None:
        for _ in range(times):
            was = self.breaker.state
            self.breaker.handle_success(self.now)
            assert (was, state_of(self.breaker)) != (BreakerState.HALF_OPEN, BreakerState.HALF_OPEN)
            assert was is not BreakerState.CLOSED or state_of(self.breaker) is was
            self.note(was, failed=False)

    @rule(times=st.integers(1, 40), waited_s=st.sampled_from([0.01, 0.1, 1.0, 60.0]))
    def let_expire(self, times: int, waited_s: float) -> None:
        for _ in range(times):
            was, sent_at = self.breaker.state, self.now - waited_s
            self.breaker.handle_timeout(self.now, sent_at)
            if sent_at < self.changed_at or waited_s < MOMENT_S:
                assert state_of(self.breaker) is was, "it proves nothing"
            else:
                self.note(was, failed=True)

    @rule(times=st.integers(1, 40))
    def fail(self, times: int) -> None:
        for _ in range(times):
            was = self.breaker.state
            self.breaker.handle_failure(self.now)
            self.note(was, failed=True)

    @rule()
    def admit(self) -> None:
        was, at = self.breaker.state, self.breaker.admits_at
        admitted = self.breaker.admit(self.now)
        assert admitted is (at <= self.now), "it says beforehand when"
        if was is BreakerState.OPEN:
            self.note(was, failed=False)
        if was is not BreakerState.CLOSED and admitted:
            assert state_of(self.breaker) is BreakerState.HALF_OPEN and not self.breaker.admit(self.now)

    @invariant()
    def it_is_open_no_longer_than_its_pause(self) -> None:
        assert self.breaker.admits_at == math.inf or self.breaker.admits_at <= self.changed_at + SPEC.retry_after_s


TestBreakerAgainstItsRule = BreakerAgainstItsRule.TestCase
TestBreakerAgainstItsRule.settings = settings(max_examples=60, stateful_step_count=40)


@given(st.lists(st.tuples(st.sampled_from("aftlu"), st.floats(0, 3)), max_size=120))
def test_breaker_admits_exactly_what_its_state_says(events: list[tuple[str, float]]) -> None:
    breaker, now, probing = Breaker(SPEC), 0.0, False
    for event, passed in events:
        now += passed
        before = breaker.state
        if event == "a":
            admitted = breaker.admit(now)
            if before is BreakerState.CLOSED:
                assert admitted
            if state_of(breaker) is BreakerState.OPEN:
                assert not admitted
            if state_of(breaker) is BreakerState.HALF_OPEN:
                assert admitted is not (probing and before is BreakerState.HALF_OPEN)
                probing = True
        elif event == "f":
            breaker.handle_failure(now)
        elif event == "t":
            breaker.handle_timeout(now, now - 1.0)
        elif event == "l":
            breaker.handle_success(now)
        else:
            breaker.handle_up(now)
            probing = False
        if breaker.state is not BreakerState.HALF_OPEN:
            probing = False

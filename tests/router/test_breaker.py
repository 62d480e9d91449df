"""The circuit breaker on a hand-driven clock."""

from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.router.breaker import Breaker, BreakerState
from dawnchorus.wire.topology import BreakerSpec

SPEC = BreakerSpec(failure_share=0.25, requests_min=10, window_s=10.0, time_outs_in_a_row=5, retry_after_s=5.0)


def state_of(breaker: Breaker) -> BreakerState:
    """Its state, looked at anew: a type checker takes an attribute that it saw once for settled."""
    return breaker.state


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(SPEC)
    for _ in range(10):
        breaker.handle_failure(now)
    assert state_of(breaker) is BreakerState.OPEN
    return breaker


def test_it_opens_at_a_share_of_failures_of_enough_requests() -> None:
    breaker = Breaker(SPEC)
    for _ in range(30):
        breaker.handle_success(1.0)
    for _ in range(9):
        breaker.handle_failure(1.0)
        assert breaker.admit(1.0)  # 9 of 39 are less than a quarter
    breaker.handle_failure(1.0)
    assert state_of(breaker) is BreakerState.OPEN
    assert not breaker.admit(1.0)
    assert breaker.opened == 1


def test_few_requests_do_not_open_it_however_many_fail() -> None:
    breaker = Breaker(SPEC)
    for _ in range(9):
        breaker.handle_failure(0.0)
    assert state_of(breaker) is BreakerState.CLOSED


def test_failures_are_forgotten_when_they_leave_the_window() -> None:
    breaker = Breaker(SPEC)
    for _ in range(9):
        breaker.handle_failure(0.0)
    for _ in range(9):
        breaker.handle_failure(11.5)
    assert state_of(breaker) is BreakerState.CLOSED
    breaker.handle_failure(12.0)
    assert state_of(breaker) is BreakerState.OPEN


def test_a_run_of_time_outs_opens_it() -> None:
    breaker = Breaker(SPEC)
    for _ in range(200):
        breaker.handle_success(0.0)
    for second in range(4):
        breaker.handle_time_out(float(second), 1.0)
    assert state_of(breaker) is BreakerState.CLOSED
    breaker.handle_time_out(4.0, 1.0)
    assert state_of(breaker) is BreakerState.OPEN


def test_many_time_outs_of_one_moment_are_one() -> None:
    breaker = Breaker(BreakerSpec(requests_min=10_000))
    for moment in (0.0, 0.06, 0.12, 0.18):
        for _ in range(100):
            breaker.handle_time_out(moment, 1.0)
    assert state_of(breaker) is BreakerState.CLOSED
    breaker.handle_time_out(0.24, 1.0)
    assert state_of(breaker) is BreakerState.OPEN


def test_any_answer_ends_a_run_of_time_outs_also_a_late_one() -> None:
    breaker = Breaker(BreakerSpec(requests_min=1_000))
    for second in range(20):
        breaker.handle_time_out(float(second), 1.0)
        if second % 4 == 3:
            breaker.handle_life(float(second))
        elif second % 4 == 1:
            breaker.handle_success(float(second))
    assert state_of(breaker) is BreakerState.CLOSED


def test_late_answers_take_their_time_outs_out_of_the_share() -> None:
    breaker = Breaker(SPEC)
    for tenth in range(200):  # a node that answers 200 ms late, and wakes that have 100 ms
        breaker.handle_time_out(tenth / 10, 0.1)
        breaker.handle_life(tenth / 10 + 0.1)
    assert state_of(breaker) is BreakerState.CLOSED


def test_a_late_answer_of_a_node_taken_for_dead_is_worth_a_probe() -> None:
    breaker = opened()
    assert not breaker.admit(1.0)
    breaker.handle_life(1.0)
    assert breaker.admit(1.0)
    assert not breaker.admit(1.0)


def test_a_deadline_too_short_for_any_node_counts_nothing() -> None:
    breaker = Breaker(SPEC)
    for _ in range(100):
        breaker.handle_time_out(0.0, 0.001)
    assert state_of(breaker) is BreakerState.CLOSED


def test_after_its_pause_one_probe_goes_at_a_time() -> None:
    breaker = opened()
    assert not breaker.admit(4.99)
    assert breaker.admit(5.0)
    assert state_of(breaker) is BreakerState.HALF_OPEN
    assert not breaker.admit(5.0)
    breaker.handle_success(5.1)
    assert state_of(breaker) is BreakerState.CLOSED
    assert breaker.admit(5.1)


def test_a_probe_that_fails_opens_it_for_another_pause() -> None:
    breaker = opened()
    assert breaker.admit(5.0)
    breaker.handle_time_out(6.0, 1.0)
    assert state_of(breaker) is BreakerState.OPEN
    assert not breaker.admit(10.9)
    assert breaker.admit(11.0)
    assert breaker.opened == 2


def test_a_probe_that_nobody_waits_for_any_more_lets_another_go() -> None:
    breaker = opened()
    assert breaker.admit(5.0)
    breaker.handle_abandoned()
    assert state_of(breaker) is BreakerState.HALF_OPEN
    assert breaker.admit(5.1)


def test_a_new_welcome_closes_it() -> None:
    breaker = opened()
    breaker.handle_up()
    assert breaker.admit(0.1) and breaker.admit(0.1)
    assert state_of(breaker) is BreakerState.CLOSED


def test_what_failed_before_it_opened_does_not_count_once_it_is_closed_again() -> None:
    breaker = opened()
    assert breaker.admit(5.0)
    breaker.handle_success(5.0)
    for _ in range(9):
        breaker.handle_failure(5.0)
    assert state_of(breaker) is BreakerState.CLOSED


@given(st.lists(st.tuples(st.sampled_from("aftlu"), st.floats(0, 3)), max_size=120))
def test_it_lets_through_exactly_what_its_state_says(events: list[tuple[str, float]]) -> None:
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
            breaker.handle_time_out(now, 1.0)
        elif event == "l":
            breaker.handle_success(now)
        else:
            breaker.handle_up()
            probing = False
        if breaker.state is not BreakerState.HALF_OPEN:
            probing = False

"""The budget of a router's retries, on a hand-driven clock."""

from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.router.dispatch.retry_budget import RetryBudget
from dawnchorus.wire.cluster.topology import RetrySpec


def granted(budget: RetryBudget, asked: int, now: float) -> int:
    return sum([budget.withdraw(now) for _ in range(asked)])


def test_retries_are_share_of_requests_plus_few() -> None:
    budget = RetryBudget(RetrySpec(share=0.2, per_s=3.0))
    for _ in range(1_000):
        budget.handle_request(0.0)
    assert granted(budget, 500, 0.0) == 200 + 30
    assert (budget.retries, budget.rejected) == (230, 270)


def test_a_router_that_sends_little_may_still_retry() -> None:
    assert granted(RetryBudget(RetrySpec(share=0.2, per_s=0.5)), 20, 0.0) == 5


def test_budget_of_zero_allows_no_retry() -> None:
    budget = RetryBudget(RetrySpec(share=0.0, per_s=0.0))
    budget.handle_request(0.0)
    assert not budget.withdraw(0.0)


def test_requests_count_for_ten_seconds() -> None:
    budget = RetryBudget(RetrySpec(share=0.1, per_s=0.0))
    for _ in range(100):
        budget.handle_request(0.5)
    assert granted(budget, 100, 9.9) == 10
    for _ in range(50):
        budget.handle_request(10.5)
    assert granted(budget, 100, 10.5) == 0  # the hundred are gone, the ten retries still count
    assert granted(budget, 100, 19.9) == 5


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 4)), max_size=300),
    st.floats(0, 1),
    st.floats(0, 5),
)
def test_budget_is_never_overdrawn_in_ten_seconds(events: list[tuple[bool, float]], share: float, per_s: float) -> None:
    budget, now = RetryBudget(RetrySpec(share=share, per_s=per_s)), 0.0
    requests: list[int] = []
    retries: list[int] = []
    for is_request, passed in events:
        now += passed
        if is_request:
            budget.handle_request(now)
            requests.append(int(now))
        elif budget.withdraw(now):
            retries.append(int(now))
            recent_requests = sum(second > int(now) - 10 for second in requests)
            recent_retries = sum(second > int(now) - 10 for second in retries)
            assert recent_retries <= share * recent_requests + per_s * 10

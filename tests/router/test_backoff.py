"""Pauses grow, are drawn by chance, and only a Welcome makes them short again."""

import random
import statistics

from dawnchorus.router.backoff import PAUSE_MAX_S, REFUSED_S, Backoff


def test_pauses_grow_to_the_longest_and_stay_there() -> None:
    backoff = Backoff(lambda: 1.0)
    pauses = [backoff.next_pause_s() for _ in range(1_000)]
    assert pauses[0] < 0.05
    assert pauses == sorted(pauses)
    assert set(pauses[4:]) == {PAUSE_MAX_S}


def test_only_a_welcome_makes_pauses_short_again() -> None:
    backoff = Backoff(lambda: 0.0)
    first = backoff.next_pause_s()
    assert [backoff.next_pause_s() for _ in range(9)][-1] == PAUSE_MAX_S / 2
    assert backoff.refused_pause_s() == REFUSED_S / 2
    assert backoff.next_pause_s() == PAUSE_MAX_S / 2
    backoff.handle_welcome()
    assert backoff.next_pause_s() == first


def test_a_thousand_hosts_that_lose_a_node_together_do_not_come_back_together() -> None:
    chance = random.Random(1)
    hosts = [Backoff(chance.random) for _ in range(1_000)]
    tried = [0.0] * len(hosts)
    for attempt in range(12):
        tried = [at + host.next_pause_s() for at, host in zip(tried, hosts, strict=True)]
        pause_s = min(0.02 * 2**attempt, PAUSE_MAX_S / 2)
        # They are spread over about a pause, from the first attempt on; in lock step this would be 0.
        assert statistics.pstdev(tried) > pause_s / 5

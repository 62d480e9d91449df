"""Pauses: they grow, are drawn at random, and only a Welcome makes them short again."""

import random
import statistics

from dawnchorus.wire.transport.backoff import PAUSE_MAX_S, REFUSED_S, Backoff


def test_pauses_grow_to_the_longest_and_stay_there() -> None:
    backoff = Backoff(lambda: 1.0)
    pauses = [backoff.next_pause_s() for _ in range(1_000)]
    assert pauses[0] < 0.05
    assert pauses == sorted(pauses)
    longest = pauses.index(PAUSE_MAX_S)
    assert sum(pauses[:longest]) < 3.0
    assert set(pauses[longest:]) == {PAUSE_MAX_S}


def test_returned_node_is_found_within_quarter_of_outage() -> None:
    chance = random.Random(1)
    for _ in range(1_000):
        backoff, away_s = Backoff(chance.random), 0.0
        while away_s < 4 * PAUSE_MAX_S:
            pause_s = backoff.next_pause_s()
            assert pause_s <= 0.03 + away_s / 4
            away_s += pause_s


def test_only_a_welcome_makes_pauses_short_again() -> None:
    backoff = Backoff(lambda: 0.0)
    first = backoff.next_pause_s()
    assert [backoff.next_pause_s() for _ in range(40)][-1] == PAUSE_MAX_S / 2
    assert backoff.refused_pause_s() == REFUSED_S / 2
    assert backoff.next_pause_s() == PAUSE_MAX_S / 2
    backoff.handle_welcome()
    assert backoff.next_pause_s() == first


def test_hosts_that_lose_a_node_return_spread_out() -> None:
    chance = random.Random(1)
    hosts = [Backoff(chance.random) for _ in range(1_000)]
    tried = [0.0] * len(hosts)
    shortest = Backoff(lambda: 0.0)
    for _ in range(40):
        tried = [at + host.next_pause_s() for at, host in zip(tried, hosts, strict=True)]
        # They are spread over about a pause, from the first attempt on; in lock step this would be 0.
        assert statistics.pstdev(tried) > shortest.next_pause_s() / 5

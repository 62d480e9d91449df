"""Simulated runs: correct, the same for the same seed, and able to find each planted fault."""

import logging
from collections.abc import Generator

import pytest

from tests.simulation.planted_faults import PLANTED
from tests.support.from_source import Change, from_source

SEEDS = range(8)
"""`python -m tests.simulation` runs as many more as one likes."""

FIND_SEEDS = range(20)
"""A fault that these do not find would not be found either if it came in by accident."""


@pytest.fixture(autouse=True)
def no_log() -> Generator[None]:
    """Nothing logged: nodes fail and fall silent on purpose."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def first_wrong(seeds: range, *changes: Change) -> tuple[int, list[str]] | None:
    """Return the first seed whose run is wrong, and its violations; None if all are right."""
    with from_source(*changes) as load:
        simulate = load("tests.simulation.simulation").simulate
        for seed in seeds:
            try:
                wrong: list[str] = simulate(seed).wrong
            except Exception as error:
                if not changes:
                    raise
                wrong = [repr(error)]
            if wrong:
                return seed, wrong
    return None


def test_runs_are_right_whatever_breaks() -> None:
    found = first_wrong(SEEDS)
    assert found is None, f"seed {found[0]}: {found[1][:10]}"


def test_same_seed_gives_same_run() -> None:
    with from_source() as load:
        simulate = load("tests.simulation.simulation").simulate
        first, again, other = simulate(1), simulate(1), simulate(2)
    assert len(first.trace) > 500
    assert first.trace == again.trace
    assert first.trace != other.trace


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_found(fault: str) -> None:
    assert first_wrong(FIND_SEEDS, PLANTED[fault]) is not None

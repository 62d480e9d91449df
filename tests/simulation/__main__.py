"""`python -m tests.simulation [FIRST [LAST]]`: run the simulation of many seeds, and of each fault that is planted."""

import logging
import sys

from tests.simulation.planted_faults import PLANTED
from tests.support.from_source import Change, from_source

FAULT_SEEDS = 20


def wrong_seeds(seeds: range, *changes: Change) -> dict[int, str]:
    """Return the seeds whose runs are wrong, each with its first violation."""
    found: dict[int, str] = {}
    with from_source(*changes) as load:
        simulate = load("tests.simulation.simulation").simulate
        for seed in seeds:
            try:
                wrong: list[str] = simulate(seed).wrong
            except Exception as error:
                wrong = [repr(error)]
            if wrong:
                found[seed] = wrong[0]
    return found


def main(first: int = 0, last: int = 99) -> int:
    """Print the results; return the exit code."""
    logging.disable(logging.CRITICAL)
    found = wrong_seeds(range(first, last + 1))
    for seed, wrong in found.items():
        print(f"seed {seed}: {wrong}")
    print(f"{len(found)} of {last + 1 - first} seeds are wrong")
    for fault, change in PLANTED.items():
        seeds = wrong_seeds(range(FAULT_SEEDS), change)
        print(f"found in {len(seeds)} of {FAULT_SEEDS} seeds, first in {min(seeds, default=None)}: {fault}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))

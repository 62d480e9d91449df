"""Overload: a cluster is offered three times what it can do, RATE_MAX at most.

Its nodes are throttled, so that one process on the same machine can offer that much. First the best goodput is found,
by a short ramp; then an ordinary rate shows what is normal; then comes the load, and the ordinary rate again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..faults.signals import throttled
from ..harness.progress import Progress
from .load import Load, Waker, last_incomplete_ms, own_memory
from .ramp import RATES_MAX, Ramp
from .report import Healing, MemoryUse, OverloadReport, PhaseReport

__all__ = ["VALUE_BYTES", "overload"]

VALUE_BYTES: Final = 4_096
"""Of each fragment, in this phase: an agent then costs a node ten times what it does with 512 bytes."""

SHARE: Final = 0.04
PERIOD_MS: Final = 20.0
"""Each node's share of a core, within periods short against the deadline. The best goodput is then 1,000 to 2,000/s,
three times which one process can offer beside the nodes on two cores; with 0.06 it was 6,600. With small values and a
smaller share a node that has run for a millisecond too long is held for a third of the deadline."""

TICK_MS: Final = 5.0
"""The load comes in bursts this far apart. A request costs a node as much as some thirty agents in it: with one request
a millisecond the nodes would be bound by requests, and more wakes in each would cost them next to nothing."""

TIMES: Final = 3
"""So many times the best goodput is offered."""

RATE_MAX: Final = 25_000.0
"""Wakes a second that one process can offer and take in beside the nodes on two cores: with 80,000 it was late by two
seconds. Where three times the best goodput would be more, less than that is offered, and said."""

FIRST_RATE: Final = 500.0

NORMAL_SHARE: Final = 0.1
"""The ordinary rate, of the best goodput: one that the nodes feel little of."""

RECOVERED_NS: Final = 2_000_000_000
"""So long after the load all must be as before it."""

_PAUSE_SECONDS: Final = 0.3
"""Between two loads: what one has left behind shall not be the next one's."""

_RATE_SECONDS: Final = 0.8
"""Of each rate of the ramp; a tenth of the phase if that is less."""

_BEST_TIMES: Final = 5
"""So many times as long as each rate of the ramp the best one is offered."""

_NORMAL_SECONDS: Final = 3.0
"""Of the ordinary rate, before and after."""


async def overload(
    load: Load, client: Waker, pids: Sequence[int], seconds: float, directory: Path, progress: Progress
) -> PhaseReport:
    """Find the best goodput of the throttled nodes, offer three times that, and see what becomes of it."""
    async with throttled(pids, SHARE, PERIOD_MS, directory):
        best_per_s = await _best_goodput(load, client, min(_RATE_SECONDS, seconds / 10), progress)
        normal_per_s = max(1.0, best_per_s * NORMAL_SHARE)
        normal = await load.run(client, normal_per_s, _NORMAL_SECONDS / 2, TICK_MS)
        normal_ms = normal.counts.counts().latency_ms
        del normal
        before = own_memory()
        rate = max(1.0, min(RATE_MAX, best_per_s * TIMES))
        run = await load.run(client, rate, seconds, TICK_MS, strict=True)
        after = await load.run(client, normal_per_s, _NORMAL_SECONDS, TICK_MS)
    wakes = run.counts.counts(run.unsent)
    goodput_per_s = wakes.complete / seconds
    # A share of nothing is nothing: where the cluster could do nothing at all there is no sense in dividing.
    share = goodput_per_s / best_per_s if best_per_s else 0.0
    times = rate / best_per_s if best_per_s else 0.0
    late = after.counts.counts(since_ns=run.end_ns + RECOVERED_NS)
    found = OverloadReport(
        share_of_core=SHARE,
        best_per_s=round(best_per_s, 1),
        times=round(times, 2),
        offered_per_s=round(wakes.offered / seconds, 1),
        goodput_per_s=round(goodput_per_s, 1),
        goodput_share=round(share, 3),
        normal_per_s=round(normal_per_s, 1),
        before_ms=normal_ms,
        after_ms=late.latency_ms,
        after_incomplete=late.degraded + late.failed,
    )
    healing = Healing("after the load", last_incomplete_ms(after, run.end_ns))
    peak = max(before, run.memory_peak)
    del run, after
    return PhaseReport(
        phase="overload",
        fault=f"every node had {SHARE:.0%} of a core; values had {VALUE_BYTES:,} bytes",
        seconds=seconds,
        rate=round(rate, 1),
        wakes=wakes,
        memory=MemoryUse(before, peak, own_memory()),
        healing=healing,
        overload=found,
    )


async def _best_goodput(load: Load, client: Waker, seconds: float, progress: Progress) -> float:
    ramp = Ramp(FIRST_RATE)
    tried = 0
    while (rate := ramp.poll_rate()) is not None:
        progress("overload: best goodput", tried, RATES_MAX)
        run = await load.run(client, rate, seconds, TICK_MS, strict=True)
        ramp.handle_goodput(run.counts.complete_per_s(seconds))
        tried += 1
        await asyncio.sleep(_PAUSE_SECONDS)
    # The best of a dozen short loads is a lucky one: what counts is what the rate brings for longer.
    run = await load.run(client, ramp.best_rate, _BEST_TIMES * seconds, TICK_MS, strict=True)
    await asyncio.sleep(_PAUSE_SECONDS)
    return run.counts.complete_per_s(_BEST_TIMES * seconds)

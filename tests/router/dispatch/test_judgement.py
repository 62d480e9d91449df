"""When a deadline is judged: in time at once, after a stall a moment later, and once."""

import asyncio
import time

from dawnchorus.router.dispatch.judgement import GRACE_S, STALL_S, Judgement
from tests.support.clusters import eventually


def stand_still() -> None:
    time.sleep(5 * STALL_S)


async def test_after_a_stall_the_loop_has_a_moment_before_a_deadline_is_judged() -> None:
    judged: list[float] = []
    due = time.monotonic() + 0.01
    Judgement(due, lambda: judged.append(time.monotonic()))
    stand_still()
    began = time.monotonic()
    await eventually(lambda: bool(judged))
    assert judged[0] >= began + GRACE_S - 0.002, "and uvloop's timers have the grain of a millisecond"
    await asyncio.sleep(2 * GRACE_S)
    assert len(judged) == 1


async def test_a_judgement_that_was_cancelled_is_not_made_also_in_that_moment() -> None:
    judged: list[float] = []
    early = Judgement(time.monotonic() + 0.01, lambda: judged.append(1))
    late = Judgement(time.monotonic() + 0.01, lambda: judged.append(2))
    early.cancel()
    stand_still()
    await asyncio.sleep(GRACE_S / 4)  # it has come, and is put off, unless this process stood still once more
    before = list(judged)
    late.cancel()
    await asyncio.sleep(2 * GRACE_S)
    assert judged == before and 1 not in judged

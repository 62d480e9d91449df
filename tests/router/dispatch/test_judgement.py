"""The judgement of a deadline: at once in time, a moment later after a stall, and only once."""

import asyncio

from dawnchorus.router.dispatch.judgement import GRACE_S, STALL_S, Judgement
from tests.support.clusters import eventually
from tests.support.timing import loop_time
from tests.support.virtual_time import VirtualLoop


def stand_still() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.pass_time(5 * STALL_S)


async def test_stalled_loop_gets_moment_before_deadline_is_judged() -> None:
    judged: list[float] = []
    Judgement(loop_time() + 0.01, lambda: judged.append(loop_time()), clock=loop_time)
    stand_still()
    began = loop_time()
    await eventually(lambda: bool(judged))
    assert judged[0] >= began + GRACE_S - 1e-6
    await asyncio.sleep(2 * GRACE_S)
    assert len(judged) == 1


async def test_cancelled_judgement_is_never_made() -> None:
    judged: list[float] = []
    early = Judgement(loop_time() + 0.01, lambda: judged.append(1), clock=loop_time)
    late = Judgement(loop_time() + 0.01, lambda: judged.append(2), clock=loop_time)
    early.cancel()
    stand_still()
    await asyncio.sleep(GRACE_S / 4)  # the deadline has come, and its judgement is put off
    late.cancel()
    await asyncio.sleep(2 * GRACE_S)
    assert not judged

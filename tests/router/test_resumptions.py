"""The timers of nodes that are sent something later, on uvloop."""

import asyncio
import math

import pytest

from dawnchorus.router.resumptions import Resumptions

pytestmark = pytest.mark.anyio


async def test_the_earliest_time_that_was_asked_for_counts():
    resumed: list[str] = []
    loop = asyncio.get_running_loop()
    resumptions = Resumptions(resumed.append)

    resumptions.schedule("never", math.inf)
    resumptions.schedule("earlier", loop.time() + 60)
    resumptions.schedule("earlier", loop.time() + 0.01)
    resumptions.schedule("earlier", loop.time() + 60)
    resumptions.schedule("cancelled", loop.time() + 0.01)
    resumptions.cancel("cancelled")
    resumptions.schedule("closed", loop.time() + 0.03)
    async with asyncio.timeout(10):
        while not resumed:
            await asyncio.sleep(0.005)
    resumptions.close()
    await asyncio.sleep(0.04)

    assert resumed == ["earlier"]


async def test_a_node_is_scheduled_again_while_its_due_timer_waits_for_the_loop():
    """uvloop's handle of a timer that is due already has no `when`; a node that stops and goes asks so twice in a turn."""
    resumed: list[str] = []
    loop = asyncio.get_running_loop()
    resumptions = Resumptions(resumed.append)

    resumptions.schedule("due", loop.time())
    resumptions.schedule("due", loop.time() + 1)
    resumptions.schedule("due", loop.time() - 1)
    async with asyncio.timeout(10):
        while not resumed:
            await asyncio.sleep(0)
    await asyncio.sleep(0.01)

    assert resumed == ["due"]

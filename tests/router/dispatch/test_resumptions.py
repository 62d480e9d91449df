"""The timers of nodes that are sent something later, on uvloop."""

import asyncio
import math

import pytest

from dawnchorus.router.dispatch.resumptions import Resumptions
from tests.support.clusters import eventually

pytestmark = pytest.mark.anyio


async def test_the_earliest_time_that_was_asked_for_counts() -> None:
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
    await eventually(lambda: bool(resumed))
    resumptions.close()
    await asyncio.sleep(0.04)

    assert resumed == ["earlier"]


async def test_a_node_is_scheduled_again_while_its_due_timer_waits_for_the_loop() -> None:
    """uvloop's handle of a timer that is due already has no `when`; one turn may ask several times."""
    resumed: list[str] = []
    loop = asyncio.get_running_loop()
    resumptions = Resumptions(resumed.append)

    resumptions.schedule("due", loop.time())
    resumptions.schedule("due", loop.time() + 1)
    resumptions.schedule("due", loop.time() - 1)
    await eventually(lambda: bool(resumed))
    await asyncio.sleep(0.01)

    assert resumed == ["due"]

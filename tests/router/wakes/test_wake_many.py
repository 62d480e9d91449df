"""One wake of many agents: it keeps nothing once its caller has released the states."""

import gc

from dawnchorus.router.wakes.wake_many import WakeMany
from tests.support.fake_nodes import fake_client


def kept() -> int:
    """Return how many wakes of many agents there are in this process."""
    return sum(isinstance(one, WakeMany) for one in gc.get_objects())


async def test_ended_wake_leaves_no_reference_cycle() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                states = await cluster.wake_many(["a", *[f"agent-{number}" for number in range(1_500)]])
                assert states[0]["profile"] == 1
            assert kept() == 0
        finally:
            gc.enable()

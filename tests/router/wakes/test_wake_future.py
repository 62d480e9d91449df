"""`create_task(cluster.wake(...))`, a common error: its message says what to do, and all other uses work."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.fake_nodes import fake_client

LOOPS = ["asyncio", "uvloop"]


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both event loops, as each makes tasks in its own way."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def in_group(future: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(future)


WAYS: dict[str, Callable[[Any], Any]] = {
    "asyncio.create_task": asyncio.create_task,
    "loop.create_task": lambda future: asyncio.get_running_loop().create_task(future),
    "TaskGroup.create_task": in_group,
}


@pytest.mark.parametrize("way", WAYS)
async def test_create_task_of_a_wake_says_ensure_future(way: str) -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        [state] = await cluster.wake_many(["a"])
        gives: list[Callable[[], Any]] = [lambda: cluster.wake("a"), state.settle]
        for give in gives:
            with pytest.raises((TypeError, ExceptionGroup)) as caught:
                result = WAYS[way](give())
                await result
            errors = caught.value.exceptions if isinstance(caught.value, ExceptionGroup) else [caught.value]
            assert "ensure_future" in str(errors[0])
            assert (await cluster.wake("a"))["profile"] == 1


async def test_everything_else_takes_it_as_it_is() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        future = asyncio.ensure_future(cluster.wake("a"))
        states = [await future, *await asyncio.gather(*[cluster.wake("a") for _ in range(3)])]
        states.append(await asyncio.wait_for(cluster.wake("a"), 20))
        states += [task.result() for task in (await asyncio.wait([cluster.wake("a")]))[0]]
        assert [state["profile"] for state in states] == [1] * 6
        assert "finished" in repr(future)

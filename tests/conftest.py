"""Fixtures and hooks of all tests: their event loop, hypothesis without time limits, one cluster of real nodes.

Unit tests run in virtual time, kept away from sockets, processes, threads and sleeping; real ones, which
`tests.support.real` lists, on uvloop, as nodes and hosts run.
"""

import functools
import gc
import inspect
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from dawnchorus import Cluster, connect
from dawnchorus.wire.transport import channel
from tests.support.clusters import RunningCluster, running, runtime_directory, write_topology
from tests.support.real import is_real, kept_away
from tests.support.virtual_time import run_virtual

TESTS = Path(__file__).parent

# A background run may have these ignored, which every process started here would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine stalls now and then: examples are bounded by number, not by time. The blob repeats a failure anywhere.
settings.register_profile(
    "dawnchorus",
    deadline=None,
    max_examples=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],  # how fast examples are made is the machine's matter
)
settings.register_profile("quick", settings.get_profile("dawnchorus"), max_examples=25)  # `make unit`
settings.load_profile("dawnchorus")


def pytest_report_header() -> str:
    """Say what is tested: the compiled modules, or all of it interpreted."""
    return f"dawnchorus: {'compiled' if channel.__file__.endswith('.so') else 'interpreted'}"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that are listed as real."""
    fixtures = item.fixturenames if isinstance(item, pytest.Function) else []
    if is_real(item.path.relative_to(TESTS).as_posix(), fixtures):
        item.add_marker(pytest.mark.real)


def _keep_to_itself(item: pytest.Item) -> Generator[None, None, None]:
    """Keep the real world away from a unit test, but not from teardowns: the last one ends the session's cluster."""
    if item.get_closest_marker("real") is not None:
        return (yield)
    with kept_away():
        return (yield)


pytest_runtest_setup = pytest.hookimpl(wrapper=True)(_keep_to_itself)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(_keep_to_itself)


async def _with_entered(test: Callable[..., Awaitable[None]], arguments: dict[str, Any]) -> None:
    """Run a test; a fixture that is an asynchronous context manager is entered for it, in the test's own loop."""
    async with AsyncExitStack() as stack:
        for name, value in arguments.items():
            if hasattr(value, "__aenter__"):
                arguments[name] = await stack.enter_async_context(value)
        await test(**arguments)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the coroutines of unit tests in virtual time; real ones are run by anyio."""
    test: Any = pyfuncitem.obj
    drawn = getattr(test, "hypothesis", None)  # hypothesis calls the coroutine for each of its examples
    inner = test if drawn is None else drawn.inner_test
    if pyfuncitem.get_closest_marker("real") is not None or not inspect.iscoroutinefunction(inner):
        return None
    taken = inspect.signature(test).parameters
    arguments = {name: value for name, value in pyfuncitem.funcargs.items() if name in taken}
    if drawn is None:
        run_virtual(functools.partial(_with_entered, test, arguments))
    else:

        def run(*args: Any, **kwargs: Any) -> None:
            run_virtual(functools.partial(inner, *args, **kwargs))

        drawn.inner_test = run
        try:
            test(**arguments)
        finally:
            drawn.inner_test = inner
    return True


def pytest_collection_finish() -> None:
    """Spare tests the collector's look at what pytest has collected: a stall of 65 ms in the middle of one of them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Run real async tests, and async fixtures, on uvloop."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session", autouse=True)
def ipc_directory() -> Generator[Path]:
    """A short directory in which every node started by a test keeps its ipc socket: killed ones leave theirs behind."""
    with runtime_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
async def running_cluster(
    ipc_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[RunningCluster]:
    """Three nodes as in the default topology, for all tests that leave them alone; each uses agents of its own."""
    async with running(write_topology(tmp_path_factory.mktemp("cluster"))) as cluster:
        yield cluster


@pytest.fixture
async def cluster(running_cluster: RunningCluster) -> AsyncGenerator[Cluster]:
    """A client of the running cluster."""
    async with connect(running_cluster.path) as cluster:
        yield cluster

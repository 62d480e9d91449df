"""What every test shares: uvloop under async tests, hypothesis without time limits, one cluster of real nodes."""

import gc
import signal
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from dawnchorus import Cluster, connect
from tests.support.clusters import RunningCluster, running, runtime_folder, write_topology

# Whoever runs the tests in the background may have these ignored, which every process started here would inherit.
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
settings.load_profile("dawnchorus")


def pytest_sessionstart() -> None:
    """Refuse to test what is no longer there: Python imports a compiled module before its source.

    Compiled modules also have the constants of others built in, so any change counts.
    """
    root = Path(__file__).parent.parent
    libraries = list(root.glob("src/dawnchorus/*.so"))
    if not libraries:
        return  # all is interpreted
    sources = [root / "setup.py"]
    for directory in ("fragment_stores", "nodes", "router", "wire"):
        libraries += (root / directory).rglob("*.so")
        sources += [path for path in (root / directory).rglob("*.*") if path.suffix in (".c", ".py")]
    oldest = min(library.stat().st_mtime for library in libraries)
    stale = sorted(str(source.relative_to(root)) for source in sources if source.stat().st_mtime > oldest)
    if stale:
        more = f" and {len(stale) - 5} more" if len(stale) > 5 else ""
        pytest.exit(f"changed since all was compiled: {', '.join(stale[:5])}{more}; `make setup` compiles it anew", 2)


def pytest_collection_finish() -> None:
    """Spare tests the collector's look at what pytest has collected: a stall of 65 ms in the middle of one of them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Run async tests and async fixtures on uvloop, as nodes and hosts run."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session", autouse=True)
def ipc_folder() -> Generator[Path]:
    """A short folder in which every node started by a test keeps its ipc socket: killed ones leave theirs behind."""
    with runtime_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
async def running_cluster(ipc_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RunningCluster]:
    """Three nodes as in the default topology, for all tests that leave them alone; each uses agents of its own."""
    async with running(write_topology(tmp_path_factory.mktemp("cluster"))) as cluster:
        yield cluster


@pytest.fixture
async def cluster(running_cluster: RunningCluster) -> AsyncGenerator[Cluster]:
    """A client of the running cluster."""
    async with connect(running_cluster.path) as cluster:
        yield cluster

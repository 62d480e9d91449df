"""A data directory of which no node runs: locked for as long as somebody works on it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ...nodes.shard_table import locked_directory
from ...wire.cluster.topology import Topology
from ...wire.errors import DataDirectoryError

__all__ = ["stopped_cluster"]


@contextmanager
def stopped_cluster(topology: Topology) -> Generator[Path]:
    """Hold the locks of the launcher and of every node while the block runs; gives the data directory.

    Raises:
        DataDirectoryError: a launcher or node runs on this data, or the directory cannot be written.
    """
    directory = Path(topology.data_dir)
    with ExitStack() as locks:
        try:
            locks.enter_context(locked_directory(directory))
            for node in topology.nodes:
                locks.enter_context(locked_directory(directory / node))
        except DataDirectoryError as error:
            raise DataDirectoryError(f"the cluster must be stopped for this: {error}") from error
        yield directory

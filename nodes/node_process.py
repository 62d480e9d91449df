"""One node as a process: from topology.toml to serving, and to a clean end.

The order matters: the directory's lock before anything is bound or opened (a second bind of an ipc path would steal it
silently), the placement before the shards, and the generation last, durably, once shards are open and sockets bound,
before the first request is read: a start that fails takes none.

Exit codes: 0 stopped as asked; 2 its start was rejected, the reason in the last line of its log; any other is a crash.
A line on standard output, `{"event": "serving", ...}`, tells the launcher that the node serves.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from pathlib import Path
from typing import Final

import orjson
import setproctitle
import uvloop

from ..fragment_stores.registry import file_engine
from ..wire.cluster.control_store import establish_placement, take_generation
from ..wire.cluster.data_directory import directory_name, socket_name
from ..wire.cluster.file_control_store import FileControlStore
from ..wire.cluster.placement import Placement
from ..wire.cluster.restore_marker import require_no_restore
from ..wire.cluster.topology import Topology, require_local_endpoints
from ..wire.cluster.topology_file import load_topology
from ..wire.descriptors import descriptors_max, raise_limit
from ..wire.errors import ConfigurationError, DawnchorusError
from ..wire.private_files import make_private
from ..wire.process_tuning import tune_process
from ..wire.transport.acceptance import IPC_DESCRIPTORS_MIN
from .bounded_output import BoundedOutput, write_all
from .crash_record import CrashRecord, find_corrupt
from .ends import EXIT_NOT_STARTED, handle_ends
from .json_log import log_repeated, log_to_stderr
from .neighbours import require_alone
from .node import FragmentNode
from .runtime_directory import ipc_endpoint
from .shard_table import (
    any_shard_on_disk,
    begin_generation,
    close_shards,
    locked_directory,
    open_shards,
    require_older,
    shard_directory,
)
from .start_order import NEW_CLUSTER, read_order
from .store_engines import require_engines

__all__ = ["EXIT_NOT_STARTED", "run_node"]

_STANDARD_OUTPUT: Final = 1

_SWITCH_INTERVAL_SECONDS: Final = 0.000_2
"""How long the writer thread may hold the interpreter while the loop waits: wake p99 beside a writer rose nine
times with the default of 5 ms, three to four times with this."""

_log = logging.getLogger(__name__)


def run_node(
    topology_path: str | os.PathLike[str], name: str, *, until_stdin_closes: bool = False, launched: bool = False
) -> int:
    """Run node `name` in this process until SIGINT or SIGTERM; return its exit code.

    `until_stdin_closes` is the launcher's lifeline: standard input is a pipe that the launcher holds, so that its end,
    however the launcher died, ends the node. `launched`: its first line is the start order (`nodes.start_order`), which
    holds even if the topology file has changed since.
    """
    log_to_stderr(name)
    try:
        order = read_order(sys.stdin.fileno()) if launched else None
        topology = load_topology(topology_path) if order is None else order.read_topology()
        if name not in topology.nodes:
            known = ", ".join(topology.nodes)
            raise ConfigurationError(f"{topology_path}: there is no node {name!r}; its nodes are {known}")
        require_local_endpoints(topology)
        require_engines(topology, topology.nodes[name].stores, topology_path)
        setproctitle.setproctitle(f"dawnchorus node {name} ({topology.name})")
        sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
        tune_process()
        raise_limit()
        if order is not None:
            order.require_place()
        require_no_restore(topology.data_dir)
        require_alone(topology, [name])
        folder = Path(topology.data_dir) / name
        with locked_directory(folder), CrashRecord(folder) as crashes:
            if changed := make_private(folder):
                _log.warning("others could read the data: it is its owner's alone again", extra={"changed": changed})
            cluster_uuid = "" if order is None else order.cluster_uuid
            uvloop.run(_serve(topology, name, cluster_uuid, crashes, until_stdin_closes=until_stdin_closes or launched))
    except DawnchorusError as error:
        _log.error("failed to start", extra={"detail": str(error)})
        return EXIT_NOT_STARTED
    except KeyboardInterrupt:
        return 0
    return 0


async def _serve(
    topology: Topology, name: str, cluster_uuid: str, crashes: CrashRecord, *, until_stdin_closes: bool
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    handle_ends(loop, stopping.set)
    if until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), stopping.set)
    control = FileControlStore.in_directory(topology.data_dir)
    is_new = await control.read() is None
    placement = await establish_placement(
        topology,
        control,
        lambda: any_shard_on_disk(topology),
        cluster_uuid=cluster_uuid,
        before_making=lambda: asyncio.to_thread(require_alone, topology, [name]),
    )
    if is_new:
        _log.warning(NEW_CLUSTER, extra={"cluster_uuid": placement.cluster_uuid, "detail": topology.data_dir})
    damaged: dict[Path, str] = {}
    if crashes.suspicious:
        _log.warning("a fault ended this node: its shards are verified before they are opened")
        for store in {store: None for store, _, _ in placement.shards_of(name)}:
            if (engine := file_engine(topology.stores[store].engine)) is not None:
                numbers = [shard for owned, shard, _ in placement.shards_of(name) if owned == store]
                damaged |= find_corrupt(engine, [shard_directory(topology, name, store, number) for number in numbers])
        crashes.damaged = bool(damaged)
    shards = open_shards(topology, placement, name, damaged)
    try:
        require_older(shards, placement)
        ipc = _ipc_endpoint(topology, placement, name) if topology.ipc else ""
        directory = directory_name(topology.data_dir, placement)
        node = FragmentNode(topology, placement, name, shards, ipc=ipc, directory=directory)
        node.bind()
        try:
            placement = await take_generation(control, name, placement.cluster_uuid)
            begin_generation(shards, placement.generation)
        except BaseException:
            node.unbind()
            raise
        node.start(placement)
        try:
            _announce(topology, placement, name, len(shards))
            gc.collect()
            gc.freeze()
            await stopping.wait()
        finally:
            await node.stop()
            log_repeated(at_end=True)
            _log.info("stopped", extra=node.counters.as_dict())
    finally:
        close_shards(shards)


def _announce(topology: Topology, placement: Placement, name: str, shards: int) -> None:
    facts = {
        "event": "serving",
        "node": name,
        "endpoint": topology.nodes[name].endpoint,
        "shards": shards,
        "generation": placement.generation,
        "cluster_uuid": placement.cluster_uuid,
    }
    # Not waited for, and needed by the launcher alone: standard output may be closed, full, or without a reader.
    said: BoundedOutput[bytes] = BoundedOutput(lambda line: write_all(_STANDARD_OUTPUT, line), lambda _dropped: b"")
    said.put(orjson.dumps(facts, option=orjson.OPT_APPEND_NEWLINE), 0)


def _ipc_endpoint(topology: Topology, placement: Placement, name: str) -> str:
    if (limit := descriptors_max()) < IPC_DESCRIPTORS_MIN:
        detail = f"this process may have {limit:,} descriptors (`ulimit -n`); it takes {IPC_DESCRIPTORS_MIN:,} for one"
        _log.warning("no unix socket: clients use TCP", extra={"detail": detail})
        return ""
    return ipc_endpoint(f"{socket_name(topology.data_dir, placement, name)}.ipc", topology.data_dir)

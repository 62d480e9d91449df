"""The control store, which keeps the placement: read, compare-and-swap, watch.

`ControlStore` is what nodes, launcher and clients ask of it; `file_control_store` is one for the nodes of one host.

`establish_placement` and `take_generation` are what every node does at its start, however many start at once. A
placement that is missing while shards on disk hold data is lost, not new: it is rejected, as a recomputed one could
give shards to the wrong nodes and repeat generations, and so versions.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

import msgspec

from ..errors import ConfigurationError, PlacementError
from .placement import Placement, initial_placement, reconcile, with_new_generation
from .topology import Topology

__all__ = [
    "LOST_REMEDY",
    "ControlStore",
    "establish_placement",
    "require_cluster",
    "take_generation",
]

SWAP_ATTEMPTS_MAX: Final = 10_000
"""Lost swaps before giving up. Each is another process's success, so that only a fault can use them up."""

LOST_REMEDY: Final = "restore placement.json from a backup; it is never computed again, and the shards were not touched"
"""The remedy for a placement that is not there, while shards on disk hold data."""

_ATTEMPTS_USED_UP: Final = (
    f"the placement could not be changed in {SWAP_ATTEMPTS_MAX} attempts: something changes it all the time"
)


class ControlStore(Protocol):
    """A place that keeps one cluster's placement. Its methods raise PlacementError for a corrupt one."""

    async def read(self) -> Placement | None:
        """Return the current placement, or None if there is none yet."""
        ...

    async def compare_and_swap(self, expected_revision: int, placement: Placement) -> bool:
        """Put `placement` in place of the one with `expected_revision` (0: of none), durably.

        It is kept with revision `expected_revision` + 1, whatever its own. Returns whether it was: if not, another
        process was first, and nothing was changed.
        """
        ...

    def watch(self) -> AsyncIterator[Placement]:
        """Yield the current placement (once there is one), then each change; of quick changes only the last."""
        ...


async def _nobody_objects() -> None:
    """Let a new cluster be made."""


async def establish_placement(
    topology: Topology,
    control: ControlStore,
    shards_on_disk: Callable[[], str | None],
    *,
    cluster_uuid: str = "",
    before_making: Callable[[], Awaitable[None]] = _nobody_objects,
) -> Placement:
    """Return the cluster's placement, brought up to date with the topology; made if the cluster is new.

    Any number of processes may do so at once; all get the same one. `shards_on_disk` returns the path of a shard in the
    data directory that was ever written, or None; it is asked only if there is no placement. With `cluster_uuid` it has
    to be that cluster's, which began before: none is made then. `before_making` may object to a new cluster, by an
    error of its own; of those that are made at once it is asked for each.

    Raises:
        PlacementError: the placement is lost or corrupt, or the topology contradicts it; what to do is in the message.
        ConfigurationError: the control store cannot be read or written.
    """
    for _attempt in range(SWAP_ATTEMPTS_MAX):
        current = await control.read()
        require_cluster(topology.data_dir, current, cluster_uuid)
        if current is None:
            shard = shards_on_disk()
            if shard is not None:
                # Another process may have made both since the read: the placement always comes first.
                if await control.read() is not None:
                    continue
                raise PlacementError(
                    f"{topology.data_dir}: there is no placement, but a shard has been written: {shard}; {LOST_REMEDY}"
                )
            try:
                await before_making()
            except ConfigurationError:
                if await control.read() is None:
                    raise
                continue  # who serves already has made it meanwhile
            expected, wanted = 0, initial_placement(topology, uuid.uuid4().hex)
        else:
            expected, wanted = current.revision, _reconcile(topology, current)
            if wanted is current:
                return current
        if await control.compare_and_swap(expected, wanted):
            return msgspec.structs.replace(wanted, revision=expected + 1)
    raise PlacementError(_ATTEMPTS_USED_UP)


def _reconcile(topology: Topology, placement: Placement) -> Placement:
    try:
        return reconcile(topology, placement)
    except PlacementError as error:
        raise PlacementError(f"data directory {topology.data_dir}: {error}") from error


def require_cluster(data_dir: str, placement: Placement | None, cluster_uuid: str) -> None:
    """Reject a data directory in which the caller's cluster is no longer there; "" began with none.

    Raises:
        PlacementError: there is no placement, or another cluster's.
    """
    if not cluster_uuid or (placement is not None and placement.cluster_uuid == cluster_uuid):
        return
    there = "is not there any more" if placement is None else f"holds cluster {placement.cluster_uuid} now"
    raise PlacementError(
        f"{data_dir}: the data of cluster {cluster_uuid}, with which this began, {there}: the directory was moved,"
        " unmounted or replaced; put it back; nothing is made anew"
    )


async def take_generation(control: ControlStore, node: str, cluster_uuid: str = "") -> Placement:
    """Return the placement with a generation that no other caller ever got; it is durable when this returns.

    `node` has opened its shards before, those of `cluster_uuid`; those that are new get their first epoch.

    Raises:
        PlacementError: there is no placement (see `establish_placement`), it is corrupt or another cluster's, or
            generations are used up.
        ConfigurationError: the control store cannot be read or written.
    """
    for _attempt in range(SWAP_ATTEMPTS_MAX):
        current = await control.read()
        if current is None:
            raise PlacementError(f"there is no placement to take a generation from; {LOST_REMEDY}")
        require_cluster("the data directory", current, cluster_uuid)
        wanted = with_new_generation(current, node)
        if await control.compare_and_swap(current.revision, wanted):
            return msgspec.structs.replace(wanted, revision=current.revision + 1)
    raise PlacementError(_ATTEMPTS_USED_UP)

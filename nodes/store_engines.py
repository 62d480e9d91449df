"""The engine of each store, as its topology says."""

from __future__ import annotations

from collections.abc import Iterable

from ..fragment_stores.engine import Engine
from ..fragment_stores.registry import DEFAULT_ENGINE, engine_factory
from ..wire.cluster.topology import Topology
from ..wire.errors import ConfigurationError, TopologyError

__all__ = ["all_engines", "require_engines", "store_engine"]


def store_engine(topology: Topology, store: str) -> Engine:
    """Return the engine of a store, made with its options.

    Raises:
        TopologyError: there is none of this name, or an option is wrong; the message names the key.
    """
    spec = topology.stores[store]
    try:
        factory = engine_factory(spec.engine)
    except ConfigurationError as error:
        raise TopologyError(f"stores.{store}.engine: {error}") from error
    try:
        return factory(spec.options)
    except ConfigurationError as error:
        raise TopologyError(f"stores.{store}.{spec.engine}.{error}") from error


def all_engines(topology: Topology) -> list[Engine]:
    """Return every engine that may have written into the data directory: those of the stores, and the default one."""
    stores = {(spec.engine, repr(spec.options)): store for store, spec in topology.stores.items()}
    engines = [store_engine(topology, store) for store in stores.values()]
    return engines if (DEFAULT_ENGINE, "{}") in stores else [engine_factory(DEFAULT_ENGINE)({}), *engines]


def require_engines(topology: Topology, stores: Iterable[str], file: object) -> None:
    """Reject a topology with a store whose engine is unavailable here.

    Raises:
        TopologyError: the message names the file, the key and the available engines.
    """
    for store in stores:
        try:
            store_engine(topology, store)
        except TopologyError as error:
            raise TopologyError(f"{file}: {error}") from error

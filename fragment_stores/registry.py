"""The registry of engines: from `engine = "..."` in a topology to the object that opens shards.

A name is one of three things:

    "lmdb"              the engine that comes with this package
    "redis"             an entry point of an installed package, in the group `dawnchorus.engines`
    "package.module:factory"    an object that can be imported

It names a factory: it is called with the options of a store (the table `[stores.NAME.ENGINE]`, empty if there is
none), returns an `Engine`, and raises ConfigurationError, naming the key, if they are wrong.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Final, TypeAlias, cast

from ..wire.errors import ConfigurationError
from .engine import Engine
from .lmdb.engine import LMDBEngine
from .shard_files import ShardFiles

__all__ = ["DEFAULT_ENGINE", "ENTRY_POINTS", "EngineFactory", "engine_factory", "file_engine", "known_engines"]

EngineFactory: TypeAlias = Callable[[Mapping[str, Any]], Engine]

ENTRY_POINTS: Final = "dawnchorus.engines"

DEFAULT_ENGINE: Final = "lmdb"

_BUILT_IN: Final[dict[str, EngineFactory]] = {DEFAULT_ENGINE: LMDBEngine}


def known_engines() -> list[str]:
    """Return the names of all engines that are installed."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def engine_factory(name: str) -> EngineFactory:
    """Return the factory of the engine of this name.

    Raises:
        ConfigurationError: there is none of this name, or it cannot be imported.
    """
    if (factory := _BUILT_IN.get(name)) is not None:
        return factory
    found: object = None
    try:
        if ":" in name:
            found = pkgutil.resolve_name(name)
        for point in entry_points(group=ENTRY_POINTS, name=name):
            found = point.load()
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{name!r} cannot be imported: {error}") from error
    if callable(found):
        return cast("EngineFactory", found)
    if found is not None:
        raise ConfigurationError(f"{name!r} is no factory of engines: {type(found).__name__} is not callable")
    permitted = ", ".join(f'"{known}"' for known in known_engines())
    raise ConfigurationError(f'unknown engine "{name}"; permitted: {permitted}, or "package.module:factory"')


def file_engine(name: str) -> ShardFiles | None:
    """Return the engine of this name if it keeps shards as files, else None; one that needs options does not.

    Raises:
        ConfigurationError: as `engine_factory`.
    """
    factory = engine_factory(name)
    try:
        engine = factory({})
    except ConfigurationError:
        return None
    return engine if isinstance(engine, ShardFiles) else None

"""Engines by their names: the one that comes with the package, those that are imported, and errors."""

import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from dawnchorus.fragment_stores import registry
from dawnchorus.fragment_stores.lmdb.engine import LMDBEngine
from dawnchorus.fragment_stores.registry import DEFAULT_ENGINE, ENTRY_POINTS, engine_factory, file_engine, known_engines
from dawnchorus.fragment_stores.shard_files import ShardFiles
from dawnchorus.nodes.store_engines import all_engines, require_engines, store_engine
from dawnchorus.wire.cluster.topology import StoreSpec, Topology
from dawnchorus.wire.errors import ConfigurationError, TopologyError

MODULE = """
from dawnchorus.wire.errors import ConfigurationError

class Engine:
    def __init__(self, options):
        self.options = dict(options)
        if "depth" not in options:
            raise ConfigurationError("depth: missing; permitted: an integer")

not_callable = 5
"""


@pytest.fixture(autouse=True)
def _an_engine_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep_engine.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "deep_engine", raising=False)
    points = [EntryPoint("deep", "deep_engine:Engine", ENTRY_POINTS)]

    def entry_points(group: str, name: str = "") -> list[EntryPoint]:
        assert group == "dawnchorus.engines"
        return [point for point in points if name in ("", point.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)


def topology(engine: str, options: Mapping[str, Any] = {}) -> Topology:
    return Topology("dev", stores={"live": StoreSpec(engine=engine, options=dict(options))})


def test_the_default_engine_keeps_shards_as_files() -> None:
    assert StoreSpec().engine == DEFAULT_ENGINE == "lmdb"
    assert isinstance(store_engine(topology("lmdb"), "live"), LMDBEngine)
    assert isinstance(file_engine("lmdb"), ShardFiles)


@pytest.mark.parametrize("name", ["deep", "deep_engine:Engine"])
def test_an_installed_engine_is_made_with_its_options(name: str) -> None:
    engine = store_engine(topology(name, {"depth": 3}), "live")
    assert engine.__class__.__module__ == "deep_engine"
    assert vars(engine) == {"options": {"depth": 3}}
    assert file_engine(name) is None


def test_known_engines_are_those_installed() -> None:
    assert known_engines() == ["deep", "lmdb"]


def test_engines_of_a_directory_include_the_default() -> None:
    found = all_engines(topology("deep", {"depth": 3}))
    assert [type(engine).__name__ for engine in found] == ["LMDBEngine", "Engine"]
    assert [type(engine).__name__ for engine in all_engines(topology("lmdb"))] == ["LMDBEngine"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("redis", {}, r'topology\.toml: stores\.live\.engine: unknown engine "redis"; permitted: "deep", "lmdb", or'),
        ("nowhere:Engine", {}, r"stores\.live\.engine: 'nowhere:Engine' cannot be imported: .*nowhere"),
        ("deep_engine:Other", {}, r"stores\.live\.engine: 'deep_engine:Other' cannot be imported: .*Other"),
        ("deep_engine:not_callable", {}, r"stores\.live\.engine: 'deep_engine:not_callable' is no factory"),
        ("deep", {}, r"topology\.toml: stores\.live\.deep\.depth: missing; permitted: an integer"),
        ("lmdb", {"depth": 3}, r"topology\.toml: stores\.live\.lmdb\.depth: unknown key; permitted: none"),
    ],
)
def test_unavailable_engine_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        require_engines(topology(name, options), ["live"], "topology.toml")
    if not options and name != "deep":
        with pytest.raises(ConfigurationError):
            engine_factory(name)

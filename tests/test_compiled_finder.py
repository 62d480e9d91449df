"""Imports of compiled modules in a checkout: from build/compiled, and never those compiled from other sources."""

import os
import runpy
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from typing import Protocol

import pytest

FINDER = Path(__file__).parent.parent / "src" / "dawnchorus_compiled.py"
COMPILED_AT_S = 1_000_000.0


class Finder(Protocol):
    """The finder as the import system sees it."""

    def find_spec(self, name: str, path: list[str]) -> ModuleSpec | None:
        """Return the place of a module."""
        ...


@pytest.fixture
def finder(monkeypatch: pytest.MonkeyPatch) -> Finder:
    monkeypatch.delenv("DAWNCHORUS_INTERPRETED", raising=False)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    found: Finder = runpy.run_path(str(FINDER))["CompiledFinder"]()
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one module that was compiled, one that was not, and one that is written in C."""
    files = {
        "setup.py": -1,
        "nodes/node.py": -1,
        "nodes/launcher.py": -1,
        "tools/main.py": +1,
        "fragment_stores/lmdb/_lookup.c": -1,
        f"build/compiled/dawnchorus/nodes/node{EXTENSION_SUFFIXES[0]}": 0,
        f"build/compiled/dawnchorus/fragment_stores/lmdb/_lookup{EXTENSION_SUFFIXES[0]}": 0,
        "build/compiled/.stamp": 0,
    }
    for name, later_s in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (COMPILED_AT_S, COMPILED_AT_S + later_s))
    return tmp_path


def find(finder: Finder, checkout: Path, module: str) -> str | None:
    """Return the file that a module of the package would be imported from, below build/compiled."""
    parent = module.rpartition("/")[0]
    spec = finder.find_spec(f"dawnchorus.{module.replace('/', '.')}", [f"{checkout}/src/dawnchorus/{parent}"])
    if spec is None:
        return None
    assert spec.origin is not None
    return str(Path(spec.origin).relative_to(checkout / "build" / "compiled"))


def test_compiled_module_is_found_in_build_directory(finder: Finder, checkout: Path) -> None:
    assert find(finder, checkout, "nodes/node") == f"dawnchorus/nodes/node{EXTENSION_SUFFIXES[0]}"


def test_module_not_compiled_is_left_to_others(finder: Finder, checkout: Path) -> None:
    assert find(finder, checkout, "nodes/launcher") is None
    assert finder.find_spec("json.decoder", [f"{checkout}/src/dawnchorus"]) is None


def test_installed_package_is_left_to_others(finder: Finder, checkout: Path) -> None:
    assert finder.find_spec("dawnchorus.nodes.node", [f"{checkout}/site-packages/dawnchorus/nodes"]) is None


@pytest.mark.parametrize("source", ["setup.py", "nodes/node.py", "nodes/launcher.py"])
def test_compiled_module_with_changed_source_is_rejected(finder: Finder, checkout: Path, source: str) -> None:
    os.utime(checkout / source, (COMPILED_AT_S, COMPILED_AT_S + 1))
    with pytest.raises(RuntimeError, match=rf"{source} changed since it was compiled: run `make setup`"):
        find(finder, checkout, "nodes/node")


def test_interpreted_switch_leaves_compiled_modules_out(
    finder: Finder, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(checkout / "nodes" / "node.py", (COMPILED_AT_S, COMPILED_AT_S + 1))
    monkeypatch.setenv("DAWNCHORUS_INTERPRETED", "1")
    assert find(finder, checkout, "nodes/node") is None
    assert find(finder, checkout, "fragment_stores/lmdb/_lookup")


def test_changed_c_source_is_rejected(finder: Finder, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(checkout / "nodes" / "node.py", (COMPILED_AT_S, COMPILED_AT_S + 1))
    assert find(finder, checkout, "fragment_stores/lmdb/_lookup"), "it is made of its own source alone"
    os.utime(checkout / "fragment_stores" / "lmdb" / "_lookup.c", (COMPILED_AT_S, COMPILED_AT_S + 1))
    with pytest.raises(RuntimeError, match=r"_lookup\.c changed since it was compiled"):
        find(finder, checkout, "fragment_stores/lmdb/_lookup")
    monkeypatch.setenv("DAWNCHORUS_INTERPRETED", "1")
    assert find(finder, checkout, "fragment_stores/lmdb/_lookup") is None, "all works without it"


def test_unfinished_build_is_rejected(finder: Finder, checkout: Path) -> None:
    (checkout / "build" / "compiled" / ".stamp").unlink()
    with pytest.raises(RuntimeError, match="make setup"):
        find(finder, checkout, "nodes/node")

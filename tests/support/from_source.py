"""The package imported again from changed sources, so that a test can plant a fault and see it found.

Compiled code cannot be replaced from outside; its sources can. A change is a piece of text and its replacement. The
text has to be there exactly once, so that an outdated change fails instead of testing nothing.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

__all__ = ["Change", "from_source"]

_ROOT: Final = Path(__file__).parent.parent.parent
_PACKAGE: Final = "dawnchorus"
_ANEW: Final = (_PACKAGE, "tests.simulation", "tests.support")
_KEPT: Final = ("tests.support.from_source", "tests.support.real")


class Change(NamedTuple):
    """A piece of a source file, and its replacement."""

    file: str
    before: str
    after: str

    def apply(self, source: str) -> str:
        """Return the changed source."""
        found = source.count(self.before)
        assert found == 1, f"{self.file} has {found} times what is to be changed once:\n{self.before}"
        return source.replace(self.before, self.after)


class _Loader(SourceLoader):
    """Loader of one source file, changed; nothing is cached."""

    def __init__(self, path: Path, changes: Sequence[Change]) -> None:
        self._path = path
        self._changes = changes

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_data(self, path: str | bytes) -> bytes:
        if str(path).endswith(".pyc"):
            raise OSError("nothing is cached")
        source = Path(str(path)).read_text(encoding="utf-8")
        for change in self._changes:
            source = change.apply(source)
        return source.encode()


class _Finder(MetaPathFinder):
    """Finder of the package's modules among its sources."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = list(changes)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".")[0] != _PACKAGE:
            return None
        within = fullname.split(".")[1:]
        base = _ROOT.joinpath(*within) if within else _ROOT / "src" / _PACKAGE
        file, package = base.with_suffix(".py"), base / "__init__.py"
        source = package if package.is_file() else file
        if not source.is_file():
            return None  # written in C
        name = source.relative_to(_ROOT).as_posix()
        changes = [change for change in self._changes if change.file == name]
        loader = _Loader(source, changes) if changes else SourceFileLoader(fullname, str(source))
        locations = [str(base)] if source is package else None
        return importlib.util.spec_from_file_location(
            fullname, source, loader=loader, submodule_search_locations=locations
        )


@contextmanager
def from_source(*changes: Change) -> Generator[Callable[[str], ModuleType]]:
    """Import again, from sources with these changes; yield a function that imports a module within the block.

    The package, the tests' support and the simulation are all anew, and gone afterwards.
    """
    for change in changes:
        change.apply((_ROOT / change.file).read_text(encoding="utf-8"))
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_anew(name)}
    finder = _Finder(changes)
    sys.meta_path.insert(0, finder)
    try:
        yield importlib.import_module
    finally:
        sys.meta_path.remove(finder)
        for name in list(sys.modules):
            if _is_anew(name):
                del sys.modules[name]
        sys.modules.update(before)


def _is_anew(name: str) -> bool:
    return name.startswith(_ANEW) and name not in _KEPT and not name.endswith("._lookup")  # that is C

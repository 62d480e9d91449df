"""Import of compiled modules from `build/compiled` instead of their sources, in a checkout only.

`make setup` compiles there, stamps it with the time when it began, and has every Python of `.venv` import this module
first. It is not shipped: a wheel has what is compiled beside its source. If a source changed since, nothing compiled is
imported: the import fails and says so. (Compiled modules have the constants of others built in, so any change counts.)

With DAWNCHORUS_INTERPRETED=1 in the environment every module is imported from its source. The part that is written in
C is used all the same, unless its source changed: all works without it, too.
"""

import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType

_WRITTEN_IN_C = "dawnchorus.fragment_stores.lmdb._lookup"


class CompiledFinder:
    """Finder of the modules of `dawnchorus` that were compiled."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return where a module was compiled to; None if it was not, or is to be interpreted.

        Raises:
            RuntimeError: a source changed since; not ImportError, which would be taken for a module that is missing.
        """
        if not name.startswith("dawnchorus.") or not path:
            return None
        root, checkout, _ = next(iter(path)).rpartition("/src/dawnchorus")
        built = f"{root}/build/compiled/{name.replace('.', '/')}{EXTENSION_SUFFIXES[0]}"
        if not checkout or not os.path.exists(built):
            return None
        is_interpreted = bool(os.environ.get("DAWNCHORUS_INTERPRETED"))
        if name == _WRITTEN_IN_C:
            source = f"{root}/fragment_stores/lmdb/_lookup.c"
            changed = source if os.path.getmtime(source) > os.path.getmtime(built) else None
        elif is_interpreted:
            return None
        else:
            changed = _changed_since_compiled(root)
        if changed is not None:
            if is_interpreted:
                return None
            raise RuntimeError(
                f"{changed} changed since it was compiled: run `make setup`, or set DAWNCHORUS_INTERPRETED=1"
            )
        return spec_from_file_location(name, built)


@cache
def _changed_since_compiled(root: str) -> str | None:
    """Return a source of what is compiled that is newer; None if there is none. To an unfinished build any is."""
    try:
        compiled_s = os.path.getmtime(f"{root}/build/compiled/.stamp")
    except FileNotFoundError:
        compiled_s = 0.0
    sources = [f"{root}/setup.py"]
    for directory in os.listdir(f"{root}/build/compiled/dawnchorus"):
        for inside, _, names in os.walk(f"{root}/{directory}"):
            sources += [f"{inside}/{name}" for name in names if name.endswith(".py")]
    return next((source for source in sources if os.path.getmtime(source) > compiled_s), None)


sys.meta_path.insert(0, CompiledFinder())

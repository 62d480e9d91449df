"""What pyproject.toml cannot say: which parts are compiled (docs/decisions/0006, 0007).

All of it may be missing where there is no C compiler: the same Python files are then interpreted.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# What every wake passes through, in the client and in a node. A class that is compiled can only be derived from by one
# that is compiled too: that is why all exchanges are here, those of saves and calls too.
COMPILED = {
    "wire/protocol": "frame_peek",
    "wire/transport": """channel connection connections counters fair_queue handlers queueing_delay reply_queues
        request_queue request_server socket_connection""",
    "fragment_stores": "image_batch",
    "fragment_stores/lmdb": "lookup schema snapshot",
    "nodes": "node node_clock node_counters read_path",
    "router": "plain_values",
    "router/dispatch": """circuit_breaker congestion_window dispatcher exchange judgement load_shedding membership
        node_flow retry_budget router send_queue unary_call""",
    "router/saves": "commit_operation save_coalescer save_order",
    "router/wakes": """acknowledged_versions fetch_operation fetch_plan fetch_results gather outcomes wake_batch
        wake_coalescer""",
}
MODULES = {
    f"dawnchorus.{directory.replace('/', '.')}.{name}"
    for directory, names in COMPILED.items()
    for name in names.split()
}
GROUP = "dawnchorus.compiled"
LIBRARY = f"{GROUP}__mypyc"
DIRECTORIES = ["fragment_stores", "nodes", "perf", "router", "tools", "wire"]
COMMANDS = set(sys.argv)


class BuildWholeOrNot(build_ext):
    """Leaves out the modules of a library that could not be built: Python would find them, and nothing behind them."""

    def build_extension(self, ext: Extension) -> None:
        """Build one, or see to it that none is there; the library comes first."""
        built = Path(self.get_ext_fullpath(ext.name))
        if ext.name in MODULES and not Path(self.get_ext_fullpath(LIBRARY)).exists():
            built.unlink(missing_ok=True)
            return
        try:
            super().build_extension(ext)
        except Exception:
            built.unlink(missing_ok=True)  # of an earlier build, of other sources
            raise


def compiled_modules() -> list[Extension]:
    """Return the extension modules that mypyc makes of the COMPILED ones: one library, and a name in it for each."""
    from mypyc.build import mypycify  # here, because it takes a second: what only asks for metadata does without

    # The links by which a type checker finds every module under its one name; an archive of the sources has none.
    for directory in DIRECTORIES:
        link = Path("src", "dawnchorus", directory)
        if not link.exists():
            link.symlink_to(Path("..", "..", directory))
    files = [f"src/{module.replace('.', '/')}.py" for module in sorted(MODULES)]
    extensions: list[Extension] = mypycify(files, group_name=GROUP, debug_level="0")
    for extension in extensions:
        extension.optional = True
        # A warning of a compiler that mypyc does not know yet is none of a user's business.
        extension.extra_compile_args = [option for option in extension.extra_compile_args if option != "-Werror"]
    return extensions


lookup = Extension(
    "dawnchorus.fragment_stores.lmdb._lookup",
    ["fragment_stores/lmdb/_lookup.c"],
    extra_compile_args=["-O3", "-std=c11", "-Wall", "-Wextra"],
    optional=True,
)
modules: list[Extension] = []
if "build_ext" in COMMANDS:
    modules = compiled_modules()
elif "bdist_wheel" in COMMANDS:
    try:
        modules = compiled_modules()
    except (ImportError, SystemExit) as error:
        # There is no mypy, or a later one finds a mistake: nothing that a user could mend.
        print(f"warning: nothing is compiled, all of it will be interpreted: mypyc: {error!r}", file=sys.stderr)
setup(cmdclass={"build_ext": BuildWholeOrNot}, ext_modules=[lookup, *modules])

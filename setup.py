"""The build as far as pyproject.toml cannot say it: packages and compiled modules (docs/decisions/0001, 0006, 0007).

All that is compiled may be missing if there is no C compiler: the same Python files are then interpreted.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DIRECTORIES = sorted(path.parent.name for path in Path().glob("*/__init__.py"))
"""The directories at the top that are sub-packages. They are not listed: a directory with an `__init__.py` is one."""

PACKAGES = {"dawnchorus": "src/dawnchorus"} | {
    f"dawnchorus.{path.parent.as_posix().replace('/', '.')}": str(path.parent)
    for directory in DIRECTORIES
    for path in sorted(Path(directory).rglob("__init__.py"))
}

# Every wake or save passes through these directories: all their modules are compiled but those named, for the reason
# given. A compiled class can only be derived from by a compiled one: that is why all exchanges are here.
INTERPRETED = {
    "wire/transport": {
        "acceptance": "used once a connection",
        "listener": "used once a connection",
        "loop_calls": "used once for what a thread has done",
        "scheduler": "protocols that a simulation implements",
        "server_socket": "used once a connection",
        "sockets": "used once a connection",
    },
    "router/dispatch": {},
    "router/saves": {
        "agent_write": "mostly handles msgspec Structs: no faster",
        "write_token": "a msgspec Struct",
    },
    "router/wakes": {
        "agent_state": "a msgspec Struct, and users' values",
        "fetcher": "called once a fetch",
        "fills": "called by states, which are interpreted",
        "read_spec": "made once a placement",
        "settle": "calls users' callbacks",
        "state_copy": "pickled",
        "state_images": "a msgspec Struct",
        "wake_context": "mostly handles msgspec Decoders",
        "wake_engine": "has an asynchronous generator",
        "wake_future": "derives from a class that is not compiled",
        "wake_stream": "an asynchronous generator",
    },
}
# Of the other directories only what every wake passes through. Compiled, the rest was no faster, or slower (a commit
# with apply_write, rows and write_digest), and it could no longer be patched and derived from.
COMPILED = {
    "wire/protocol": ["frame_peek"],
    "fragment_stores": ["image_batch"],
    "fragment_stores/lmdb": ["cold_reads", "lookup", "reader", "readers_writer_lock", "schema", "snapshot"],
    "nodes": ["answer_frames", "node", "node_clock", "node_counters", "read_path"],
    "router": ["plain_values"],
}
GROUP = "dawnchorus.compiled"
LIBRARY = f"{GROUP}__mypyc"
COMMANDS = set(sys.argv)


def compiled_names() -> list[str]:
    """Return the full names of the modules that are compiled."""
    found = {
        f"{directory}/{path.stem}"
        for directory, exceptions in INTERPRETED.items()
        for path in Path(directory).glob("*.py")
        if path.stem not in {"__init__", *exceptions}
    }
    named = {f"{directory}/{name}" for directory, names in COMPILED.items() for name in names}
    return sorted(f"dawnchorus.{path.replace('/', '.')}" for path in found | named)


MODULES = compiled_names()


class BuildCompleteOrNot(build_ext):
    """Leaves out the modules of a library that could not be built: Python would find them, and nothing behind them."""

    def run(self) -> None:
        """Build all, and remove what an earlier build left of modules that are not compiled any more."""
        super().run()
        outputs = {Path(self.get_ext_fullpath(extension.name)) for extension in self.extensions}
        for built in set(Path(self.build_lib).rglob("*.so")) - outputs:
            built.unlink()

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


def lookup() -> Extension:
    """Return the extension module that is written in C."""
    return Extension(
        "dawnchorus.fragment_stores.lmdb._lookup",
        ["fragment_stores/lmdb/_lookup.c"],
        extra_compile_args=["-O3", "-std=c11", "-Wall", "-Wextra"],
        optional=True,
    )


def compiled_modules() -> list[Extension]:
    """Return the extension modules that mypyc makes: one library, and a name in it for each module."""
    from mypyc.build import mypycify  # here, because it takes a second: what only asks for metadata does without

    # The links by which a type checker finds every module under its one name; an archive of the sources has none.
    for directory in DIRECTORIES:
        link = Path("src", "dawnchorus", directory)
        if not link.exists():
            link.symlink_to(Path("..", "..", directory))
    files = [f"src/{module.replace('.', '/')}.py" for module in MODULES]
    extensions: list[Extension] = mypycify(files, group_name=GROUP, debug_level="0")
    for extension in extensions:
        extension.optional = True
        # A warning of a compiler that mypyc does not know yet is none of a user's business.
        extension.extra_compile_args = [option for option in extension.extra_compile_args if option != "-Werror"]
    return extensions


# An editable install has nothing compiled: that would be put beside the sources. An archive of the sources has the C.
extensions: list[Extension] = [] if "editable_wheel" in COMMANDS else [lookup()]
if "build_ext" in COMMANDS:
    extensions += compiled_modules()
elif "bdist_wheel" in COMMANDS:
    try:
        extensions += compiled_modules()
    except (ImportError, SystemExit) as error:
        # There is no mypy, or a later one finds an error: nothing that a user could mend.
        print(f"warning: nothing is compiled, all of it will be interpreted: mypyc: {error!r}", file=sys.stderr)
setup(packages=list(PACKAGES), package_dir=PACKAGES, cmdclass={"build_ext": BuildCompleteOrNot}, ext_modules=extensions)

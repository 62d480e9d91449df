"""The contents of builds and of checks: a directory that is forgotten in one of them fails silently."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DIRECTORIES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
LOOKUP = "dawnchorus/fragment_stores/lmdb/_lookup"  # the part that is written in C
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
NOT_SHIPPED = Path("perf/benchmarks")  # microbenchmarks use the package from outside, as tests do


def python_files() -> dict[str, str]:
    """Return every Python file of the code directories: its place in the package -> its place in the repository."""
    files = [path.relative_to(ROOT) for directory in DIRECTORIES for path in sorted((ROOT / directory).rglob("*.py"))]
    inside = [path for path in files if not path.is_relative_to(NOT_SHIPPED)]
    return {"dawnchorus/__init__.py": "src/dawnchorus/__init__.py"} | {
        f"dawnchorus/{path}": str(path) for path in inside
    }


def setup_facts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the globals of setup.py, which is run without a command."""
    monkeypatch.chdir(ROOT)

    def build_nothing(**_: object) -> None:
        pass

    monkeypatch.setattr("setuptools.setup", build_nothing)
    return runpy.run_path("setup.py")


def compiled_files(modules: list[str]) -> list[str]:
    """Return the files that a C compiler makes: a library, a name in it for each module, and the part in C."""
    names = [module.replace(".", "/") for module in modules]
    return [f"{name}{SUFFIX}" for name in [LOOKUP, "dawnchorus/compiled__mypyc", *names]]


def code_directories() -> list[str]:
    """Return every directory that holds Python files of the package, sub-directories too."""
    return sorted({str(Path(path).parent) for path in python_files().values() if not path.startswith("src/")})


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a tool of this environment and keep what it says."""
    return subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False)


def copy_project(target: Path) -> None:
    """Copy what a build reads, with links as links."""
    keep = {*DIRECTORIES, "src", "pyproject.toml", "setup.py", "README.md", "LICENSE"}

    def ignore(directory: str, names: list[str]) -> set[str]:
        return (
            set(names) - keep
            if Path(directory) == ROOT
            else {name for name in names if name == "__pycache__" or name.endswith(".so")}
        )

    shutil.copytree(ROOT, target, symlinks=True, ignore=ignore)


def test_every_directory_is_linked_into_the_import_package() -> None:
    links = {path.name: os.readlink(path) for path in (ROOT / "src" / "dawnchorus").iterdir() if path.is_symlink()}
    assert links == {directory: f"../../{directory}" for directory in DIRECTORIES}


def test_every_code_directory_is_a_package() -> None:
    bare = [directory for directory in code_directories() if not (ROOT / directory / "__init__.py").exists()]
    assert not bare, "without __init__.py"


def test_setup_finds_every_package(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = ["dawnchorus", *(f"dawnchorus.{directory.replace('/', '.')}" for directory in code_directories())]
    assert sorted(setup_facts(monkeypatch)["PACKAGES"]) == sorted(packages)


def test_modules_named_in_setup_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = setup_facts(monkeypatch)
    named = [
        f"{directory}/{module}"
        for table in (facts["INTERPRETED"], facts["COMPILED"])
        for directory, modules in table.items()
        for module in modules
    ]
    assert named
    assert not [module for module in named if not (ROOT / f"{module}.py").is_file()]


def build(*arguments: str, directory: Path, compiler: str) -> subprocess.CompletedProcess[str]:
    """Build `directory`/project without isolation, so that nothing is fetched; a shell script is the compiler."""
    script = directory / "cc"
    script.write_text(f"#!/bin/sh\n{compiler}\n")
    script.chmod(0o755)
    command = [sys.executable, "-m", "build", "--no-isolation", *arguments, "."]
    environment = os.environ | {"CC": str(script)}
    return subprocess.run(
        command, cwd=directory / "project", env=environment, capture_output=True, text=True, check=False
    )


def test_sdist_and_wheel_hold_every_python_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds as `make wheel` does, the wheel from the sdist."""
    copy_project(tmp_path / "project")
    dist = tmp_path / "dist"
    built = build("--outdir", str(dist), directory=tmp_path, compiler='exec cc "$@" -O0')  # which takes half the time
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = dist.glob("*.whl")
    assert next(dist.glob("*.tar.gz"), None)
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        for name, source in python_files().items():
            assert archive.read(name) == (ROOT / source).read_bytes(), name
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "dawnchorus = dawnchorus.tools.main:main" in archive.read(entry_points).decode()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    compiled = compiled_files(setup_facts(monkeypatch)["MODULES"]) if shutil.which("cc") else []
    assert sorted(names) == sorted([*python_files(), "dawnchorus/py.typed", f"{LOOKUP}.pyi", *compiled])


def test_package_without_working_compiler_is_built_interpreted(tmp_path: Path) -> None:
    """This compiler accepts the small files: they are of no use without the large one, and would be imported."""
    copy_project(tmp_path / "project")
    compiler = 'case "$*" in *__native_compiled.c* | *_lookup.c*) exit 1 ;; esac; exec cc "$@"'
    built = build("--wheel", "--outdir", str(tmp_path), directory=tmp_path, compiler=compiler)
    assert built.returncode == 0, built.stdout + built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        assert f"{LOOKUP}.pyi" in archive.namelist()


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with our settings and directories, and in each directory one module with an error of type.

    All but wire's import their number from wire, so that the error is only seen if the import is resolved: what a type
    checker cannot find it takes for Any, and is content.
    """
    root = tmp_path_factory.mktemp("seeded")
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copytree(
        ROOT / "src", root / "src", symlinks=True, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    )
    for directory in code_directories():
        (root / directory).mkdir(parents=True, exist_ok=True)
        (root / directory / "__init__.py").write_text('"""A directory."""\n')
        up = "." * (directory.count("/") + 2)
        origin = "" if directory == "wire" else f"from {up}wire.seeded import number\n\n"
        number = "number: int = 1\n" if directory == "wire" else ""
        (root / directory / "seeded.py").write_text(f'"""Seeded."""\n\n{origin}{number}text: str = number\n')
    absolute = '"""Seeded."""\n\nfrom dawnchorus.wire.seeded import number\n\ntext: str = number\n'
    (root / "src" / "dawnchorus" / "__init__.py").write_text(absolute.replace("dawnchorus", ""))
    for directory in ["tests", "tests/wire"]:
        (root / directory).mkdir(parents=True, exist_ok=True)
        (root / directory / "test_seeded.py").write_text(absolute)
    return root


def seeded_files(root: Path) -> Counter[str]:
    """Return each file with a seeded error, by its real path, once."""
    return Counter(str(path.relative_to(root)) for path in root.rglob("*.py") if "text: str" in path.read_text())


def test_mypy_sees_type_error_in_every_directory(seeded: Path) -> None:
    checked = run(["mypy", "--cache-dir", str(seeded / ".mypy_cache")], seeded)
    found = re.findall(r"^(\S+?):\d+:.* error: .*\[assignment\]$", checked.stdout, re.MULTILINE)
    real = [str((seeded / path).resolve().relative_to(seeded.resolve())) for path in found]
    assert Counter(real) == seeded_files(seeded), checked.stdout + checked.stderr


def test_basedpyright_sees_type_error_in_every_directory(seeded: Path) -> None:
    checked = run(["basedpyright", "--pythonpath", sys.executable], seeded)
    found = re.findall(r"^\s*(\S+?):\d+:\d+ - error: .*", checked.stdout, re.MULTILINE)
    real = [str(Path(path).resolve().relative_to(seeded.resolve())) for path in found]
    assert Counter(real) == seeded_files(seeded), checked.stdout + checked.stderr

"""What is built and what is checked: both go wrong silently when a folder is forgotten in pyproject.toml."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ["fragment_stores", "nodes", "perf", "router", "tools", "wire"]
LOOKUP = "dawnchorus/fragment_stores/lmdb/_lookup"  # the part that is written in C
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
NOT_SHIPPED = Path("perf/benchmarks")  # microbenchmarks use the package from outside, as tests do


def python_files() -> dict[str, str]:
    """Every Python file of the code folders: its place in the package -> its place in the repository."""
    files = [path.relative_to(ROOT) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    inside = [path for path in files if not path.is_relative_to(NOT_SHIPPED)]
    return {"dawnchorus/__init__.py": "src/dawnchorus/__init__.py"} | {
        f"dawnchorus/{path}": str(path) for path in inside
    }


def compiled_files() -> list[str]:
    """What a C compiler makes of the sources: a library, and for each module in it a name; and what is written in C."""
    setup = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (modules,) = (
        ast.literal_eval(node.value)
        for node in setup.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "COMPILED"
    )
    names = [f"dawnchorus/{folder}/{name}" for folder, names in modules.items() for name in names.split()]
    return [f"{name}{SUFFIX}" for name in [LOOKUP, "dawnchorus/compiled__mypyc", *names]]


def code_folders() -> list[str]:
    """Every folder that holds Python files of the package, sub-folders too."""
    return sorted({str(Path(path).parent) for path in python_files().values() if not path.startswith("src/")})


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a tool of this environment and keep what it says."""
    return subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False)


def copy_project(target: Path) -> None:
    """Copy what a build reads, with links as links."""
    keep = {*FOLDERS, "src", "pyproject.toml", "setup.py", "README.md", "LICENSE"}

    def ignore(folder: str, names: list[str]) -> set[str]:
        return (
            set(names) - keep
            if Path(folder) == ROOT
            else {name for name in names if name == "__pycache__" or name.endswith(".so")}
        )

    shutil.copytree(ROOT, target, symlinks=True, ignore=ignore)


def test_every_folder_is_linked_into_the_import_package() -> None:
    links = {path.name: os.readlink(path) for path in (ROOT / "src" / "dawnchorus").iterdir() if path.is_symlink()}
    assert links == {folder: f"../../{folder}" for folder in FOLDERS}


def test_every_code_folder_is_a_package() -> None:
    bare = [folder for folder in code_folders() if not (ROOT / folder / "__init__.py").exists()]
    assert not bare, "without __init__.py"


def test_pyproject_names_every_package() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = ["dawnchorus", *(f"dawnchorus.{folder.replace('/', '.')}" for folder in code_folders())]
    assert sorted(pyproject["tool"]["setuptools"]["packages"]) == sorted(packages)


def build(*arguments: str, folder: Path, compiler: str) -> subprocess.CompletedProcess[str]:
    """Build `folder`/project without isolation, so that nothing is fetched; a shell script is the compiler."""
    script = folder / "cc"
    script.write_text(f"#!/bin/sh\n{compiler}\n")
    script.chmod(0o755)
    command = [sys.executable, "-m", "build", "--no-isolation", *arguments, "."]
    environment = os.environ | {"CC": str(script)}
    return subprocess.run(command, cwd=folder / "project", env=environment, capture_output=True, text=True, check=False)


def test_sdist_and_wheel_hold_every_python_file(tmp_path: Path) -> None:
    """Builds as `make wheel` does, the wheel from the sdist."""
    copy_project(tmp_path / "project")
    dist = tmp_path / "dist"
    built = build("--outdir", str(dist), folder=tmp_path, compiler='exec cc "$@" -O0')  # which takes half the time
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
    compiled = compiled_files() if shutil.which("cc") else []
    assert sorted(names) == sorted([*python_files(), "dawnchorus/py.typed", f"{LOOKUP}.pyi", *compiled])


def test_without_a_compiler_that_can_the_package_is_built_all_the_same(tmp_path: Path) -> None:
    """This one would take the small files: they are of no use without the large one, and would be imported."""
    copy_project(tmp_path / "project")
    compiler = 'case "$*" in *__native_compiled.c* | *_lookup.c*) exit 1 ;; esac; exec cc "$@"'
    built = build("--wheel", "--outdir", str(tmp_path), folder=tmp_path, compiler=compiler)
    assert built.returncode == 0, built.stdout + built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        assert f"{LOOKUP}.pyi" in archive.namelist()


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with our settings and folders, and in each folder one module with an error of type.

    All but wire's import their number from wire, so that the error is only seen if the import is resolved: what a type
    checker cannot find it takes for Any, and is content.
    """
    root = tmp_path_factory.mktemp("seeded")
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copytree(
        ROOT / "src", root / "src", symlinks=True, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    )
    for folder in code_folders():
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "__init__.py").write_text('"""A folder."""\n')
        up = "." * (folder.count("/") + 2)
        origin = "" if folder == "wire" else f"from {up}wire.seeded import number\n\n"
        number = "number: int = 1\n" if folder == "wire" else ""
        (root / folder / "seeded.py").write_text(f'"""Seeded."""\n\n{origin}{number}text: str = number\n')
    absolute = '"""Seeded."""\n\nfrom dawnchorus.wire.seeded import number\n\ntext: str = number\n'
    (root / "src" / "dawnchorus" / "__init__.py").write_text(absolute.replace("dawnchorus", ""))
    for folder in ["tests", "tests/wire"]:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "test_seeded.py").write_text(absolute)
    return root


def seeded_files(root: Path) -> Counter[str]:
    """Each file with a seeded error, by its real path, once."""
    return Counter(str(path.relative_to(root)) for path in root.rglob("*.py") if "text: str" in path.read_text())


def test_mypy_sees_a_type_error_in_every_folder_once(seeded: Path) -> None:
    checked = run(["mypy", "--cache-dir", str(seeded / ".mypy_cache")], seeded)
    found = re.findall(r"^(\S+?):\d+:.* error: .*\[assignment\]$", checked.stdout, re.MULTILINE)
    real = [str((seeded / path).resolve().relative_to(seeded.resolve())) for path in found]
    assert Counter(real) == seeded_files(seeded), checked.stdout + checked.stderr


def test_basedpyright_sees_a_type_error_in_every_folder_once(seeded: Path) -> None:
    checked = run(["basedpyright", "--pythonpath", sys.executable], seeded)
    found = re.findall(r"^\s*(\S+?):\d+:\d+ - error: .*", checked.stdout, re.MULTILINE)
    real = [str(Path(path).resolve().relative_to(seeded.resolve())) for path in found]
    assert Counter(real) == seeded_files(seeded), checked.stdout + checked.stderr

"""Rules that linters cannot see: arrows between directories, sizes, purity, the message table, words.

After TigerBeetle's src/tidy.zig: every rule is one small test that names each offender.
"""

import ast
import re
import subprocess
import typing
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from tests.support.real import REAL_FILES, UNIT_FILES
from tests.support.words import count_all, read_allowed

ROOT = Path(__file__).parent.parent
FACE = "dawnchorus"

# Arrows point down: a directory may import itself and those of a lower rank. Only tools and perf, on top, may meet.
RANKS = {"wire": 0, "fragment_stores": 1, "nodes": 2, "router": 2, "tools": 3, "perf": 3}
FACE_RANK = 4

# The other rooms that the rooms of these directories may import.
WIRE = {"wire", "wire/protocol", "wire/transport", "wire/cluster"}
ROOMS = {
    "wire": set[str](),
    "wire/protocol": {"wire"},
    "wire/transport": {"wire", "wire/protocol"},
    "wire/cluster": {"wire", "wire/protocol"},
    "fragment_stores": {"wire", "wire/protocol"},
    "fragment_stores/lmdb": {"wire", "wire/protocol", "fragment_stores"},
    "router": WIRE,
    "router/dispatch": WIRE,
    "router/wakes": {*WIRE, "router", "router/dispatch"},
    "router/saves": {*WIRE, "router", "router/dispatch"},
    "router/client": {*WIRE, "router", "router/dispatch", "router/wakes", "router/saves"},
}
# The registry alone knows the engines that come with the package.
REGISTRIES = {"fragment_stores/registry.py": {"fragment_stores/lmdb/engine.py"}}

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

# Modules that decide: events and `now` go in, what to do comes out. Neither they nor what they import from the project
# may import one of IMPURE.
IMPURE = {"zmq", "asyncio", "threading", "time", "uvloop"}
PURE = [
    "wire/transport/connections.py",
    "wire/transport/queueing_delay.py",
    "wire/transport/fair_queue.py",
    "wire/transport/request_queue.py",
    "perf/chaos/counts.py",
    "perf/chaos/ramp.py",
    "perf/chaos/schedule.py",
    "perf/chaos/script.py",
    "fragment_stores/apply_write.py",
    "fragment_stores/log_rows.py",
    "router/saves/agent_write.py",
    "router/dispatch/circuit_breaker.py",
    "router/dispatch/dispatcher.py",
    "router/dispatch/exchange.py",
    "router/wakes/acknowledged_versions.py",
    "router/dispatch/node_flow.py",
    "router/wakes/gather.py",
    "router/wakes/outcomes.py",
    "router/wakes/fetch_results.py",
    "router/wakes/fetch_plan.py",
    "router/dispatch/retry_budget.py",
    "router/dispatch/timetable.py",
    "router/saves/save_order.py",
    "router/dispatch/load_shedding.py",
    "router/dispatch/send_queue.py",
    "router/dispatch/congestion_window.py",
    "router/saves/write_token.py",
    "wire/errors.py",
    "wire/protocol/shard_hash.py",
    "wire/protocol/image.py",
    "wire/protocol/limits.py",
    "wire/protocol/messages.py",
    "wire/protocol/frame_peek.py",
    "wire/cluster/placement.py",
    "wire/protocol/versions.py",
    "wire/protocol/write_digest.py",
]


def is_benchmark(path: Path) -> bool:
    """Return whether the file is a microbenchmark: those use the package from outside, and are not shipped."""
    return path.is_relative_to(ROOT / "perf" / "benchmarks")


def code_files() -> list[Path]:
    """Return all Python files of the code directories."""
    return sorted(path for directory in RANKS for path in (ROOT / directory).rglob("*.py"))


def package_files() -> list[Path]:
    """Return all Python files of the import package."""
    return [*(path for path in code_files() if not is_benchmark(path)), *(ROOT / "src" / FACE).glob("*.py")]


def outside_files() -> list[Path]:
    """Return all Python files that use the package from outside."""
    return [*filter(is_benchmark, code_files()), *sorted((ROOT / "tests").rglob("*.py"))]


@cache
def tree(path: Path) -> ast.Module:
    """Return the parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name(path: Path) -> str:
    """Return the path as a person knows it."""
    return path.relative_to(ROOT).as_posix()


def rank(path: Path) -> int:
    """Return the rank of the directory that the file is in."""
    return RANKS.get(path.relative_to(ROOT).parts[0], FACE_RANK)


def may_import(importer: Path, target: Path) -> bool:
    """Return whether an arrow between the two files points down or stays in its directory."""
    same_directory = importer.relative_to(ROOT).parts[0] == target.relative_to(ROOT).parts[0]
    on_top = rank(importer) == rank(target) == RANKS["tools"]
    return same_directory or on_top or rank(target) < rank(importer)


def module_path(module: tuple[str, ...]) -> Path | None:
    """Return the file of a module named from the face down, `("wire", "messages")`; None if there is none."""
    base = ROOT.joinpath(*module) if module else ROOT / "src" / FACE
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def imported_files(path: Path) -> Iterator[tuple[int, Path | None]]:
    """Yield line and target of each relative import, those inside functions too; None if there is no such module."""
    package = () if path.is_relative_to(ROOT / "src") else path.parent.relative_to(ROOT).parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            climbed = len(package) - (node.level - 1)
            module = (*package[:climbed], *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                yield node.lineno, (module_path((*module, alias.name)) or module_path(module)) if climbed >= 0 else None


def absolute_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full module name of every absolute import of a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.lineno, node.module


def project_files() -> list[Path]:
    """Return every file that is or would be committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, or no git: what belongs to the project cannot be listed")
    paths = (ROOT / line for line in listed.split("\0") if line)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_the_directories_are_found() -> None:
    """The rules below would all hold in an empty directory."""
    assert {path.relative_to(ROOT).parts[0] for path in code_files()} == set(RANKS)
    assert len(package_files()) > len(RANKS)


def test_code_inside_the_package_imports_it_relatively() -> None:
    # Absolute names would be seen twice by type checkers, once through the links below src/.
    wrong = [
        f"{name(path)}:{line} imports {module} absolutely"
        for path in package_files()
        for line, module in absolute_imports(path)
        if module.split(".")[0] in {FACE, *RANKS}
    ]
    assert not wrong, "\n".join(wrong)


def test_code_outside_package_imports_by_name() -> None:
    wrong = [
        f"{name(path)}:{line} imports {module} instead of {FACE}.{module}"
        for path in outside_files()
        for line, module in absolute_imports(path)
        if module.split(".")[0] in RANKS
    ]
    assert not wrong, "\n".join(wrong)


def test_import_arrows_point_down() -> None:
    wrong: list[str] = []
    for path in package_files():
        for line, target in imported_files(path):
            if target is None:
                wrong.append(f"{name(path)}:{line} imports what is no module of the package")
            elif not may_import(path, target):
                wrong.append(f"{name(path)}:{line} imports {name(target)}, which does not stand below it")
    assert not wrong, "\n".join(wrong)


def test_rooms_import_only_rooms_below_them() -> None:
    wrong: dict[str, set[str]] = {}
    for path in package_files():
        room = name(path.parent)
        for _, target in imported_files(path) if room in ROOMS else ():
            if target is not None and name(target.parent) not in {room, *ROOMS[room]}:
                wrong.setdefault(name(path), set()).add(name(target))
    assert {name(path.parent) for path in package_files()} >= ROOMS.keys(), "a room is gone"
    assert wrong == REGISTRIES


def test_only_the_lmdb_engine_knows_lmdb() -> None:
    room = ROOT / "fragment_stores" / "lmdb"
    wrong = [
        f"{name(path)}:{line} imports {module}"
        for path in package_files()
        for line, module in [
            *absolute_imports(path),
            *((line, name(target)) for line, target in imported_files(path) if target is not None),
        ]
        if not path.is_relative_to(room)
        and (module.split(".")[0] == "lmdb" or module.startswith("fragment_stores/lmdb/"))
        and module not in REGISTRIES.get(name(path), set())
    ]
    assert not wrong, "\n".join(wrong)


def test_no_import_circles() -> None:
    edges = {
        path: {target for _, target in imported_files(path) if target not in (None, path)} for path in package_files()
    }
    # Take away, again and again, every module that imports nothing left: the rest lies on a circle or above one.
    while leaves := {path for path, targets in edges.items() if not targets & edges.keys()}:
        edges = {path: targets for path, targets in edges.items() if path not in leaves}
    assert not edges, "on or above an import circle: " + ", ".join(sorted(map(name, edges)))


def test_no_import_circle_is_dodged_by_type_checking() -> None:
    wrong = [
        f"{name(path)}:{inner.lineno}"
        for path in package_files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
        if isinstance(inner, ast.ImportFrom) and inner.level
    ]
    assert not wrong, "our own modules can be imported at all times, or point the wrong way: " + ", ".join(wrong)


@pytest.mark.parametrize("module", PURE)
def test_modules_that_decide_are_pure(module: str) -> None:
    todo, seen = [ROOT / module], set[Path]()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            impure = {imported.split(".")[0] for _, imported in absolute_imports(path)} & IMPURE
            assert not impure, f"{module} must be pure, but {name(path)} imports {sorted(impure)}"
            todo += [target for _, target in imported_files(path) if target]


def test_files_are_short() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in package_files()}
    assert not {path: length for path, length in lengths.items() if length > FILE_LINES_MAX}


def test_functions_fit_on_a_screen() -> None:
    lengths = {
        f"{name(path)}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in package_files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {function: length for function, length in lengths.items() if length > FUNCTION_LINES_MAX}


def test_every_module_has_a_docstring() -> None:
    bare = [name(path) for path in [*package_files(), *outside_files()] if not ast.get_docstring(tree(path))]
    assert not bare


def test_module_docstrings_open_with_a_noun_phrase() -> None:
    question = re.compile(r"(what|which|who|whom|whose|where|when|whether|how|why)(ever)?\b", re.IGNORECASE)
    wrong = [name(path) for path in package_files() if question.match(ast.get_docstring(tree(path)) or "")]
    assert not wrong


def test_documents_name_files_that_exist() -> None:
    """A page that names a file becomes wrong silently when the file moves."""
    files = [name(path) for path in project_files()]
    wrong: list[str] = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        mentioned = re.findall(r"[`(/\s]((?:[\w-]+/)*[\w-]+\.(?:py|c))\b", page.read_text(encoding="utf-8"))
        ours = [file.removeprefix(f"src/{FACE}/") for file in mentioned if not file.startswith("zmq/")]
        wrong += [
            f"{name(page)} names {one}" for one in ours if not any(f"/{file}".endswith(f"/{one}") for file in files)
        ]
    assert not wrong, "\n".join(wrong)


def test_no_error_is_swallowed_whole() -> None:
    wide = {"Exception", "BaseException", None}
    wrong: list[str] = []
    for path in package_files():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = node.type.id if isinstance(node.type, ast.Name) else node.type
                if caught in wide and all(isinstance(statement, ast.Pass) for statement in node.body):
                    wrong.append(f"{name(path)}:{node.lineno}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"suppress", "contextlib.suppress"}:
                wrong += [f"{name(path)}:{node.lineno}" for argument in node.args if ast.unparse(argument) in wide]
    assert not wrong, "catches everything and says nothing: " + ", ".join(wrong)


def test_lists_of_real_tests_name_existing_files() -> None:
    """A file that has moved would silently be marked wrongly."""
    tests = [path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    unknown = [pattern for pattern in (*REAL_FILES, *UNIT_FILES) if not any(fnmatch(path, pattern) for path in tests)]
    assert not unknown


def test_every_message_has_its_row_in_the_table() -> None:
    from dawnchorus.wire.protocol import messages

    coded = {struct.__name__: struct.__struct_config__.tag for struct in typing.get_args(messages.Message)}
    table = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (?:router|node) \|", table, re.MULTILINE)
    assert coded, "no message was found in wire/protocol/messages.py"
    assert len(set(coded.values())) == len(coded), "two messages share a tag"
    assert sorted(rows) == sorted((str(tag), struct) for struct, tag in coded.items()), "docs/messages.md differs"


# The brackets keep this file from offending against itself.
NOWHERE = {
    "unfinished work": re.compile(r"\b(TO[D]O|FIX[M]E|XX[X])\b"),
    "a path of one machine": re.compile(r"(?<![\w.~)}*-])/(work|root|opt/\w+)\b"),
    "a package registry's address": re.compile(
        r"pypi[.]org|pythonhosted[.]org|npmjs[.]|\bregistry[.](?!py\b)\w|devp[i]|ghcr[.]io"
    ),
}


@pytest.mark.parametrize("what", NOWHERE)
def test_forbidden_text_is_nowhere_in_the_project(what: str) -> None:
    wrong: list[str] = []
    for path in project_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # not text
        wrong += [
            f"{name(path)}:{number} {line.strip()}"
            for number, line in enumerate(lines, 1)
            if NOWHERE[what].search(line)
        ]
    assert not wrong, f"{what}:\n" + "\n".join(wrong)


def test_words_and_sentences_get_no_worse() -> None:
    allowed = read_allowed()
    worse = [
        f"{path}: {rule}: {count} places, {allowed.get((rule, path), 0)} allowed"
        for (rule, path), count in sorted(count_all().items())
        if count > allowed.get((rule, path), 0)
    ]
    assert not worse, (
        "`python -m tests.support.words --show PATH` shows the places; if they only moved, `python -m"
        " tests.support.words` rewrites the list:\n" + "\n".join(worse)
    )

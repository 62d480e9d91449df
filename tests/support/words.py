"""The rules of words and sentences that a machine can see, and the places that still break them, counted by file.

    .venv/bin/python -m tests.support.words           rewrites tests/allowed_words.txt after places were mended or moved
    .venv/bin/python -m tests.support.words --show PATH    shows the places in the files whose paths begin so

The list only shrinks: it is not rewritten if a rule would be broken more often in all than before.
"""

import ast
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["ALLOWED", "Counts", "count_all", "places", "read_allowed"]

ROOT = Path(__file__).parents[2]
ALLOWED = ROOT / "tests" / "allowed_words.txt"

Counts = Mapping[tuple[str, str], int]
"""By rule and file."""

# Words that the field has others for: directory, timeout, marked down, error, fault, corrupt, malformed frame, settle,
# raw ZeroMQ baseline, one task per agent, indeterminate, reject, intact. In code, tests and documents.
_WORDS = {
    "folder": r"folder",
    "time-out": r"time-outs?|time_outs?|timed? outs",
    "taken for dead": r"taken? for dead|takes it for dead",
    "mistake": r"mistakes?",
    "trouble": r"troubles?|troubled",
    "damaged": r"damaged",
    "garbage": r"garbage(?! collect)(?!'s)",
    "late fill": r"late[ _]fills?",
    "raw limit": r"raw limits?",
    "natural program": r"natural (?:program|storm|rate)s?",
    "undecidable": r"undecidable",
    "refuse": r"refus(?:ed?|es|ing)|refusals?",
    "unsound": r"unsound",
}
_WORD_PATTERNS = {
    name: re.compile(rf"(?<![A-Za-z])(?:{words})(?![A-Za-z])", re.IGNORECASE) for name, words in _WORDS.items()
}
# The kernel's words are not ours.
_OTHERS = re.compile(r"ConnectionRefused|ECONNREFUSED|[Cc]onnection refused")

_OPENING = re.compile(r"(?:^|(?<=[.:;!?] ))(?:What|Whoever|Nobody|Where nothing)\b")
"""Sentences that begin with a clause for a subject."""

_NOT_IMPERATIVE = re.compile(
    r"(?:A|An|The|This|These|Those|Its|It|All|Any|Each|Every|One|Two|No|Not|As|At|In|On|Of|From|With|Without|About|After|"
    r"What|Whatever|Who|Whoever|Whose|Where|When|Whether|Which|How|Why|Nobody|Nothing|Something|Somebody|Some|Only|Also|"
    r"That|There|Same|[A-Z][a-z]*[a-rt-z]s)\b(?<!Focus)"
)
"""First words of function docstrings that say what is, or what it does, instead of what to do."""

_TEST_NAME_WORDS_MAX = 8


def project_files() -> list[Path]:
    """Return every file of code and text that is or would be committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    paths = [ROOT / line for line in listed if line.endswith((".py", ".pyi", ".md", ".toml"))]
    own = {Path(__file__), ROOT / "docs" / "glossary.md"}
    return [path for path in paths if path.is_file() and not path.is_symlink() and path not in own]


def count_all() -> Counts:
    """Return how often each rule is broken, by rule and file."""
    return Counter((rule, path.relative_to(ROOT).as_posix()) for path in project_files() for rule, _ in places(path))


def places(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each rule that a file breaks with the place, in words."""
    text = path.read_text(encoding="utf-8")
    for line in _OTHERS.sub("", text).splitlines():
        for rule, pattern in _WORD_PATTERNS.items():
            yield from ((rule, line.strip()) for _ in pattern.finditer(line))
    if path.suffix == ".py":
        tree = ast.parse(text)
        prose = [*_comments(path), *_docstrings(tree)]
        for function in _functions(tree):
            if _is_no_imperative(function):
                yield "function docstring without imperative", f"{function.name}: {ast.get_docstring(function)}"
            if _is_long_test(function):
                yield "test name of more than eight words", function.name
    else:
        prose = text.splitlines()
    for line in prose:
        yield from (
            ("sentence that opens with a clause", line[opening.start() :]) for opening in _OPENING.finditer(line)
        )


def read_allowed() -> Counts:
    """Return what is still to be mended."""
    allowed: dict[tuple[str, str], int] = {}
    for line in ALLOWED.read_text(encoding="utf-8").splitlines():
        count, name, rule = line.split(" ", 2)
        allowed[rule, name] = int(count)
    return allowed


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _is_no_imperative(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    is_described = {"property", "fixture"} & {
        ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in function.decorator_list
    }
    docstring = ast.get_docstring(function) or ""
    is_test = function.name.startswith(("test_", "__"))
    return not is_described and not is_test and _NOT_IMPERATIVE.match(docstring) is not None


def _is_long_test(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return function.name.startswith("test_") and function.name.count("_") > _TEST_NAME_WORDS_MAX


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield the paragraphs of every docstring, and of the strings behind constants and fields, each on one line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for paragraph in re.split(r"\n\s*\n|\n\s*- ", node.value.value):
                yield " ".join(paragraph.split())


def _comments(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.string.lstrip("# ")


def _totals(counts: Counts) -> Counter[str]:
    totals = Counter[str]()
    for (rule, _), count in counts.items():
        totals[rule] += count
    return totals


def _rewrite() -> int:
    found = count_all()
    before, now = _totals(read_allowed()) if ALLOWED.exists() else _totals(found), _totals(found)
    grown = [rule for rule in now if now[rule] > before[rule]]
    for rule in sorted(grown):
        print(f"{rule}: {now[rule]} in all, {before[rule]} before", file=sys.stderr)
    if grown:
        return 1
    lines = [f"{count} {name} {rule}\n" for (rule, name), count in sorted(found.items())]
    ALLOWED.write_text("".join(lines), encoding="utf-8")
    print(f"{sum(found.values())} places in {len({name for _, name in found})} files are to be mended")
    return 0


def _show(prefix: str) -> int:
    for path in project_files():
        name = path.relative_to(ROOT).as_posix()
        for rule, place in places(path) if name.startswith(prefix) else ():
            print(f"{name}: {rule}: {' '.join(place.split())[:140]}")
    return 0


if __name__ == "__main__":
    sys.exit(_show(sys.argv[2]) if sys.argv[1:2] == ["--show"] else _rewrite())

"""The command line: messages for wrong use, exit codes, help."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from dawnchorus.tools import main as main_module
from dawnchorus.tools.main import main
from dawnchorus.wire.errors import (
    ClusterUnavailable,
    DataDirectoryError,
    DawnchorusError,
    InvalidRequestError,
    SaveRejected,
    TopologyError,
    UnknownKindError,
)
from tests.tools.command_line import error_of, run, write_topology

COMMANDS = ["up", "node", "load", "export", "wake", "save", "delete", "status", "perf storm", "perf memory"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"\n    dawnchorus {command}" in text
    assert "--topology" in text
    assert "--json" in text


def test_command_list_is_complete_and_lazy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command.split()[0]}  " in text
    code = """
import sys
from dawnchorus.tools.main import main
assert main(["--help"]) == 0
found = {name for name in sys.modules if name.startswith("dawnchorus.tools.")}
print(sorted(found - {f"dawnchorus.tools.{name}" for name in ("main", "console", "console.standard_streams")}))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert ended.stdout.endswith(b"\n[]\n")


def test_node_imports_nothing_for_people() -> None:
    code = """
import sys
from dawnchorus.tools.main import main
assert main(["node", "nobody", "--topology", "nowhere.toml"]) == 2
print(sorted({"rich", "redis", "dawnchorus.perf"} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert ended.stdout == b"[]\n"


def test_the_version_is_that_of_the_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", str.upper)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "dawnchorus DAWNCHORUS\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sing"],
        ["perf"],
        ["perf", "sing"],
        ["up", "--loud"],
        ["up", "extra"],
        ["up", "--topology", "tcp://127.0.0.1:7411"],
        ["node"],
        ["load"],
        ["load", "no-such-file.ndjson"],
        ["load", "."],
        ["load", "-", "--copies", "0"],
        ["load", "-", "--copies", "many"],
        ["export", "no-such-directory/agents.ndjson"],
        ["export", "."],
        ["wake"],
        ["wake", "a", "--deadline-s", "0"],
        ["wake", "a", "--kinds", "profile,profile"],
        ["save", "a"],
        ["save", "a", "--kind", "profile"],
        ["save", "a", "--value", "1"],
        ["save", "a", "--kind", "profile", "--value", "{"],
        ["save", "a", "--kind", "profile", "--value", "18446744073709551616"],
        ["save", "a", "--kind", "profile", "--value", '{"$bytes": "!"}'],
        ["save", "a", "--kind", "profile", "--value", "@no-such-file"],
        ["save", "a", "--kind", "profile", "--bytes-file", "no-such-file"],
        ["save", "a", "--kind", "profile", "--value", "1", "--value", "2"],
        ["save", "a", "--kind", "profile", "--kind", "profile", "--value", "1", "--value", "2"],
        ["save", "a", "--kind", "profile", "--value", "1", "--bytes-file", "x"],
        ["delete"],
        ["perf", "storm", "--copies", "2"],
        ["perf", "storm", "--file", "pyproject.toml", "--agents", "5"],
        ["perf", "storm", "--topology", "mine"],
    ],
)
def test_wrong_use_is_explained_and_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err


@pytest.mark.parametrize(
    "command",
    [
        ["up"],
        ["node", "live-1"],
        ["load", "-"],
        ["export"],
        ["wake", "a"],
        ["save", "a", "--kind", "profile", "--value", "1"],
        ["delete", "a"],
        ["status"],
    ],
)
def test_every_command_explains_a_topology_that_is_wrong(command: list[str], tmp_path: Path) -> None:
    path = write_topology(tmp_path)
    path.write_text(path.read_text().replace('store = "live"', 'store = "life"'))
    message = error_of(*command, "--topology", path)
    assert str(path) in message
    assert "life" in message
    assert "identity" in message
    missing = error_of(*command, "--topology", tmp_path / "nowhere.toml")
    assert "nowhere.toml" in missing


def test_topology_comes_from_environment_or_directory(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("no_such_key = 1")
    ended = run("status", code=2, env={"DAWNCHORUS_TOPOLOGY": str(other)})
    assert b"no_such_key" in ended.stderr
    (tmp_path / "topology.toml").write_text("another_wrong_key = 1")
    assert b"another_wrong_key" in run("status", code=2, cwd=tmp_path).stderr


def test_a_cluster_that_is_not_up_is_said(tmp_path: Path) -> None:
    message = error_of("status", "--topology", write_topology(tmp_path), code=1)
    assert "no node answered" in message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TopologyError("what is wrong"), 2),
        (DataDirectoryError("what is wrong"), 2),
        (InvalidRequestError("what is wrong"), 2),
        (UnknownKindError("what is wrong"), 2),
        (ClusterUnavailable("what is wrong"), 1),
        (SaveRejected(agent_id="a", write_id="00", rejected={"live": "what is wrong"}), 1),
        (DawnchorusError("what is wrong"), 1),
    ],
)
def test_our_errors_are_one_message_and_a_code(
    error: DawnchorusError, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(main_module, "cli", click.Command("dawnchorus", callback=fail))
    assert main([]) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"Error: {error}\n"
    assert "what is wrong" in output.err


def test_bug_is_shown_with_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("impossible")

    monkeypatch.setattr(main_module, "cli", click.Command("dawnchorus", callback=fail))
    with pytest.raises(AssertionError, match="impossible"):
        main([])


def test_an_interrupt_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "cli", click.Command("dawnchorus", callback=fail))
    assert main([]) == 130
    assert capsys.readouterr().err.strip() == ""

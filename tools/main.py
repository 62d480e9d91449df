"""The console script `dawnchorus`: finds a command, runs it, and turns what it raises into a message and an exit code.

Commands live in modules of their own that are imported when they are called, and not for the list of commands either: a
node starts with `dawnchorus node` and should not wait for what only a storm needs.

Exit codes: 0; 1 if not all succeeded or a wake was degraded; 2 if it was used wrongly (arguments, topology, a data
directory that is rejected); 130 after Ctrl-C and 143 after SIGTERM, as in a shell. Closed or full standard streams
change none of them, but that results for which there is no room are a failure: see `standard_streams`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, cast

import click

from .console import standard_streams

__all__ = ["main"]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


class _LazyCommand(NamedTuple):
    module: str
    attribute: str
    summary: str


_COMMANDS: Final[Mapping[str, _LazyCommand]] = {
    "up": _LazyCommand("cluster_commands", "up", "Start all nodes of a topology and supervise them."),
    "node": _LazyCommand("cluster_commands", "node", "Run one node in this process."),
    "load": _LazyCommand("transfer_commands", "load", "Save the agents of an NDJSON file."),
    "export": _LazyCommand("transfer_commands", "export", "Write all agents as NDJSON."),
    "wake": _LazyCommand("agent_commands", "wake", "Show the state of agents."),
    "save": _LazyCommand("agent_commands", "save", "Save fragments of one agent."),
    "delete": _LazyCommand("agent_commands", "delete", "Delete one agent, or some of its kinds."),
    "status": _LazyCommand("status_command", "status", "Show the health of each node."),
    "backup": _LazyCommand("backup_commands", "backup", "Copy all shards of the running cluster into a directory."),
    "restore": _LazyCommand("backup_commands", "restore", "Build the data of a stopped cluster from a backup."),
    "verify": _LazyCommand("backup_commands", "verify", "Check a backup, or the data of a stopped cluster."),
    "perf": _LazyCommand("perf_commands", "perf", "Measure wakes, saves and memory beside Redis and others."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called; their summaries stand in the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f".commands.{entry.module}", __package__)
        return cast("click.Command", getattr(module, entry.attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in _COMMANDS.items()])


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"dawnchorus {version('dawnchorus')}")
        ctx.exit()


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Each command has its own --help, with an example.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version."
)
def cli() -> None:
    """Wake ten thousand dormant agents at once.

    An agent's state is a set of fragments, one of each kind: profile, session, history and so on. Each kind is kept in
    a store, and nodes serve the stores. The topology file names kinds, stores and nodes.

    \b
    dawnchorus up                          in one terminal: start the cluster of ./topology.toml
    dawnchorus load agents.ndjson          in another: fill it
    dawnchorus wake agent-42               see an agent
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` are those of the process where none are given."""
    if arguments is None:
        standard_streams.prepare()
    try:
        code = cli.main(args=arguments, prog_name="dawnchorus", standalone_mode=False)
        # Python flushes standard output only after this function, where an error could no longer be met.
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # click ends so as well, with 1 and without a word, where a command meets the closed pipe while it runs.
        standard_streams.discard_output()
        return EXIT_FAILED
    except Exception as error:
        code = _explain(error)
        if code is None:
            raise
        return code


def _explain(error: Exception) -> int | None:
    """Print an error as one message and return its exit code; None for a bug, which is to be seen whole."""
    from ..wire.errors import (
        ConfigurationError,
        DawnchorusError,
        InvalidRequestError,
        UnknownKindError,
    )

    if not isinstance(error, DawnchorusError):
        if not isinstance(error, OSError):
            return None
        # Of the world, not of this program: mostly standard output, where there is no room for what was asked for.
        standard_streams.discard_output()
        click.echo(f"Error: {error if error.filename or not error.strerror else error.strerror}", err=True)
        return EXIT_FAILED
    click.echo(f"Error: {error}", err=True)
    usage = ConfigurationError | InvalidRequestError | UnknownKindError
    return EXIT_USAGE if isinstance(error, usage) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())

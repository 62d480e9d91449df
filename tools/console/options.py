"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

__all__ = ["CONNECT_DEADLINE_S", "deadline_option", "endpoint_or_file_option", "json_option", "topology_file_option"]

_ENVIRONMENT: Final = "DAWNCHORUS_TOPOLOGY"
_DEFAULT: Final = "topology.toml"

CONNECT_DEADLINE_S: Final = 2.0
"""How long a command for a person waits for nodes that do not welcome it, where others do."""

Command = TypeVar("Command", bound=Callable[..., Any])


def _reject_endpoint(_ctx: click.Context, _option: click.Parameter, value: str) -> str:
    if "://" in value:
        raise click.BadParameter(f"{value!r} is an endpoint; this command needs the topology file itself.")
    return value


def topology_file_option(command: Command) -> Command:
    """`-t PATH`: the topology file, for commands that run nodes."""
    return click.option(
        "-t",
        "--topology",
        default=_DEFAULT,
        show_default=True,
        envvar=_ENVIRONMENT,
        show_envvar=True,
        metavar="PATH",
        callback=_reject_endpoint,
        help="The topology file.",
    )(command)


def endpoint_or_file_option(command: Command) -> Command:
    """`-t PATH`: the topology file or the endpoint of any node, for commands that are clients."""
    return click.option(
        "-t",
        "--topology",
        default=_DEFAULT,
        show_default=True,
        envvar=_ENVIRONMENT,
        show_envvar=True,
        metavar="PATH",
        help="The topology file, or tcp://HOST:PORT of any node.",
    )(command)


def json_option(help_text: str) -> Callable[[Command], Command]:
    """`--json`: output for programs; `help_text` says which."""
    return click.option("--json", "as_json", is_flag=True, help=help_text)


def deadline_option(default: str) -> Callable[[Command], Command]:
    """`--deadline-s SECONDS`: the deadline of the call; `default` says which one it is if none is given."""
    return click.option(
        "--deadline-s",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help=f"Give up after this many seconds (default: {default}).",
    )

"""The commands `up` and `node`: whole clusters and single nodes, in the foreground."""

from __future__ import annotations

import click

from ..console.options import json_option, topology_file_option

__all__ = ["node", "up"]


@click.command()
@topology_file_option
@json_option("Print events as lines of JSON, also on a terminal.")
def up(topology: str, as_json: bool) -> int:
    """Start all nodes of a topology, one process each, and supervise them until Ctrl-C or SIGTERM.

    A node that dies is started again, after a pause that grows while it keeps dying. On a terminal, each node has a
    line that is kept current; otherwise events, and what the nodes log, are printed to standard output, one JSON object
    a line. Lines that are not read are dropped and counted: `up` never waits for its reader. The exit code is 0 after
    Ctrl-C or SIGTERM, and 2 if the topology is wrong or a node fails to start; the others are then ended again.

    \b
    Example:
      dawnchorus up
      dawnchorus up --topology clusters/dev.toml | tee -a up.log
    """
    from .up import run_up

    return run_up(topology, as_json=as_json)


@click.command()
@click.argument("name")
@topology_file_option
@json_option("Changes nothing: events are always lines of JSON.")
@click.option("--until-stdin-closes", is_flag=True, hidden=True, help="End with the process that holds standard input.")
@click.option("--launched", is_flag=True, hidden=True, help="Take what to start from standard input, too.")
def node(name: str, topology: str, as_json: bool, until_stdin_closes: bool, launched: bool) -> int:
    """Run the node NAME of a topology in this process, until Ctrl-C or SIGTERM.

    For setups with a supervisor of their own; `dawnchorus up` runs all nodes and starts them again when they die.
    Events are printed to standard error, one JSON object a line. The exit code is 2 if the node fails to start.

    \b
    Example:
      dawnchorus node identity-1 --topology /etc/dawnchorus/topology.toml
    """
    from ...nodes.node_process import run_node

    del as_json
    return run_node(topology, name, until_stdin_closes=until_stdin_closes, launched=launched)

"""The commands `backup`, `restore` and `verify`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import click

from ...fragment_stores.shard_files import Verified
from ...router.client.connect import connect
from ...wire.cluster.file_control_store import FileControlStore
from ...wire.cluster.placement import reconcile
from ...wire.cluster.restore_marker import require_no_restore
from ...wire.cluster.topology import Topology
from ...wire.cluster.topology_file import load_topology
from ...wire.errors import DataDirectoryError, InvalidRequestError, PlacementError
from ...wire.protocol.backup_messages import BACKUP_MARKER_FILE
from ..backup.make_backup import make_backup
from ..backup.manifest import MANIFEST_FILE, Manifest, ShardCopy, read_manifest, require_complete
from ..backup.restore import heal_shards, restore_all
from ..backup.shard_check import Expected, Verifiers, shards_of_backup, shards_of_data_directory, verify_shard
from ..backup.stopped_cluster import stopped_cluster
from ..console.async_runner import run
from ..console.options import CONNECT_DEADLINE_S, json_option, topology_file_option
from ..console.output import Problems, ProgressBar, format_bytes, print_json, progress_bar

__all__ = ["backup", "restore", "verify"]

RATE_MB_DEFAULT = 50.0
"""Megabytes a second: half of what a slow disk writes, so that saves find the rest. Median p99 of a single wake beside
it, over six runs on two busy cores: 1.2 times the idle one, and the same with 20."""

_directory = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("directory", metavar="DIR", type=_directory)
@click.option(
    "--rate-mb",
    type=click.FloatRange(min=0),
    default=RATE_MB_DEFAULT,
    show_default=True,
    metavar="N",
    help="Write at most this many megabytes a second; 0: no limit.",
)
@topology_file_option
@json_option("Print the summary as one JSON object; versions in it are strings.")
def backup(directory: Path, rate_mb: float, topology: str, as_json: bool) -> int:
    """Copy all shards of the running cluster into DIR, which is made and must be empty.

    The nodes go on serving; each writes the copies of its own shards, one after the other. Every save that was
    acknowledged before the backup began is in it. DIR is a backup once backup.json is in it, which is written last; if
    anything fails, what was begun is removed and the exit code is 1.

    \b
    Example:
      dawnchorus backup backups/2026-01-31
    """
    parsed = load_topology(topology)
    target = directory.resolve()
    if target.is_relative_to(os.path.realpath(parsed.data_dir)):
        raise click.UsageError(f"{directory}: is inside the cluster's data directory, which the backup should outlive")
    text = Path(topology).read_text(encoding="utf-8")
    began = time.monotonic()

    async def work(bar: ProgressBar) -> Manifest:
        async with connect(parsed, connect_deadline_s=CONNECT_DEADLINE_S) as cluster:
            return await make_backup(cluster, text, target, int(rate_mb * 1e6), bar)

    async def main() -> int:
        with progress_bar("backup") as bar:
            manifest = await work(bar)
        _report("backed up", manifest, target, time.monotonic() - began, as_json)
        return 0

    return run(main())


@click.command()
@click.argument("directory", metavar="DIR", type=_directory)
@click.option(
    "--shard",
    "shards",
    multiple=True,
    metavar="STORE/N",
    help="Only this shard, which is corrupt or missing; can be given several times.",
)
@topology_file_option
@json_option("Print the summary as one JSON object; versions in it are strings.")
def restore(directory: Path, shards: tuple[str, ...], topology: str, as_json: bool) -> int:
    """Build the data directory of a stopped cluster from the backup in DIR.

    The complete backup is read and checked first. A corrupt or incomplete one is rejected, and so is a data directory
    that holds data. With --shard, single corrupt or missing shards are replaced; the corrupt ones are kept beside them.
    Restored data gets newer versions than any that was lost had, so that no client keeps a stale copy for newer.

    \b
    Example:
      dawnchorus restore backups/2026-01-31
      dawnchorus restore backups/2026-01-31 --shard live/3
    """
    wanted = [_parse_shard(name) for name in dict.fromkeys(shards)]
    parsed = load_topology(topology)
    source = directory.resolve()
    began = time.monotonic()
    manifest = read_manifest(source)
    with stopped_cluster(parsed) as data, progress_bar("restore") as bar:
        require_complete(source, manifest, _teller(bar, "checks", manifest.shards))
        chosen = [copy for copy in manifest.shards if not wanted or (copy.store, copy.shard) in wanted]
        tell = _teller(bar, "copies", chosen)
        kept: list[Path] = []
        if wanted:
            kept = heal_shards(parsed, data, manifest, source, wanted, tell)
        else:
            restore_all(parsed, data, manifest, source, tell)
        for path in kept:
            bar.print(f"the corrupt shard is kept in {path}; remove it when it is not needed any more")
    _report("restored", manifest, data, time.monotonic() - began, as_json, chosen)
    return 0


@click.command()
@click.argument("directory", metavar="[DIR]", type=_directory, required=False)
@topology_file_option
@json_option("Print the summary as one JSON object, with up to 1,000 findings.")
def verify(directory: Path | None, topology: str, as_json: bool) -> int:
    """Check the backup in DIR, or, without DIR, the data directory of the topology's cluster, which must be stopped.

    Everything is read: every page, every image, the log and the expiry index, and each is compared with the others. A
    backup's files are compared with its manifest as well. Each problem is named with its shard, and the exit code is
    then 1.

    \b
    Example:
      dawnchorus verify backups/2026-01-31
      dawnchorus verify --topology clusters/dev.toml
    """
    began = time.monotonic()
    with progress_bar("verify") as bar:
        problems = Problems(bar)
        if directory is not None:
            source = directory.resolve()
            manifest = _read_backup(source)
            require_complete(source, manifest, _teller(bar, "reads", manifest.shards))
            seen = _verify_all(shards_of_backup(source, manifest), problems, bar)
        else:
            parsed = load_topology(topology)
            if not Path(parsed.data_dir).is_dir():
                raise DataDirectoryError(f"{parsed.data_dir}: there is no data directory")
            with stopped_cluster(parsed):
                seen = _verify_all(_placed_shards(parsed), problems, bar)
        problems.finish()
    totals = {
        "shards": len(seen),
        "images": sum(shard.agents for shard in seen),
        "fragments": sum(shard.fragments for shard in seen),
        "log_rows": sum(shard.log_rows for shard in seen),
        "expiry_rows": sum(shard.expiry_rows for shard in seen),
        "stale_expiry_rows": sum(shard.stale_expiry_rows for shard in seen),
        "seconds": round(time.monotonic() - began, 3),
    }
    if as_json:
        print_json({**totals, "problem_count": problems.count, "problems": problems.listed})
    else:
        click.echo(
            f"verified {totals['shards']} shards, {totals['images']:,} images, {totals['fragments']:,} fragments,"
            f" {totals['log_rows']:,} rows of the log in {totals['seconds']:.1f} s: "
            + (f"{problems.count:,} problems, listed above" if problems.count else "intact")
        )
    return 1 if problems.count else 0


def _read_backup(source: Path) -> Manifest:
    if not any((source / name).exists() for name in (MANIFEST_FILE, BACKUP_MARKER_FILE)) and not list(
        source.glob("*.mdb")
    ):
        raise DataDirectoryError(f"{source}: is no backup; for the data directory of a cluster give --topology alone")
    return read_manifest(source)


def _placed_shards(topology: Topology) -> list[Expected]:
    require_no_restore(topology.data_dir)
    control = FileControlStore.in_directory(topology.data_dir)
    placement = asyncio.run(control.read())
    if placement is None:
        raise PlacementError(f"{control.path}: there is no placement; restore it, or all, from a backup")
    return shards_of_data_directory(topology, reconcile(topology, placement))


def _verify_all(shards: list[Expected], problems: Problems, bar: ProgressBar) -> list[Verified]:
    seen: list[Verified] = []
    with Verifiers() as verifiers:
        for number, shard in enumerate(shards):
            name = f"{shard.store}/{shard.shard}"

            def tell(entries: int, name: str = name, number: int = number) -> None:
                bar.show(f"{name}, {entries:,} entries", number, len(shards))

            tell(0)
            findings, verified = verify_shard(verifiers, shard, tell)
            if verified is not None:
                seen.append(verified)
            for finding in findings:
                message = f"shard {name}: {finding.where}: {finding.detail}"
                problems.add(message, store=shard.store, shard=shard.shard, where=finding.where)
    return seen


def _parse_shard(name: str) -> tuple[str, int]:
    store, slash, shard = name.rpartition("/")
    if not slash or not shard.isdecimal():
        raise InvalidRequestError(f"{name!r} is no shard; give STORE/N, as `dawnchorus status` names it")
    return store, int(shard)


def _teller(
    bar: ProgressBar, what: str, copies: list[ShardCopy] | tuple[ShardCopy, ...]
) -> Callable[[ShardCopy, int], None]:
    total = sum(copy.bytes for copy in copies)
    done = 0

    def tell(copy: ShardCopy, more: int) -> None:
        nonlocal done
        done += more
        bar.show(f"{what} {copy.file}", done, total)

    return tell


def _report(
    what: str, manifest: Manifest, directory: Path, took_s: float, as_json: bool, copies: list[ShardCopy] | None = None
) -> None:
    shards = manifest.shards if copies is None else copies
    size = sum(copy.bytes for copy in shards)
    if as_json:
        print_json(
            {
                "cluster": manifest.cluster,
                "cluster_uuid": manifest.cluster_uuid,
                "directory": str(directory),
                "began_at": manifest.began_at,
                "bytes": size,
                "seconds": round(took_s, 3),
                "shards": [
                    {"store": copy.store, "shard": copy.shard, "version": copy.version, "agents": copy.agents}
                    for copy in shards
                ],
            }
        )
    else:
        shown = f"{len(shards)} shards of cluster {manifest.cluster}, {format_bytes(size)}"
        click.echo(f"{what} {shown}, in {took_s:.1f} s: {directory}")

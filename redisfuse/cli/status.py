"""Show the state of one mount, or of all mounts."""

import json
from collections.abc import Iterator
from pathlib import Path

import click

from redisfuse.cli._mount_status import MountReport, read_mounts
from redisfuse.cli._mountpoint_param import MOUNTPOINT
from redisfuse.cli._output import is_terminal
from redisfuse.cli._status_metrics import format_metrics
from redisfuse.cli._status_output import format_status
from redisfuse.cli._terminal import print_out
from redisfuse.errors import MountError, UsageError
from redisfuse.fuse import mountpoint as mountpoints


@click.command
@click.argument("mountpoint", type=MOUNTPOINT, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line for each mount.")
@click.option("--prometheus", is_flag=True, help="Print metrics in Prometheus's text format.")
@click.option("--watch", is_flag=True, help="Show the state until q or Ctrl-C; with --json, print it again and again.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="With --watch: how often.",
)
def command(mountpoint: Path | None, as_json: bool, prometheus: bool, watch: bool, interval: float) -> None:
    """Show the state of one mount, or of all mounts.

    Without MOUNTPOINT, mounts of other users are only named, and are omitted from --json and --prometheus. The exit
    status is 1 if nothing is mounted, or if a mount does not respond.

    \b
    redisfuse status
    redisfuse status --watch ~/redis
    redisfuse status --json | jq .commands
    redisfuse status --prometheus > /var/lib/node_exporter/redisfuse.prom
    """  # noqa: D301 - click reads the control character \b
    if prometheus and (as_json or watch):
        raise UsageError("--prometheus prints metrics once; it can't be combined with --json or --watch")
    path = None if mountpoint is None else mountpoints.absolute_path(mountpoint)
    if watch:
        _watch(path, interval, as_json=as_json)
        return
    report = read_mounts(path)
    if prometheus:
        for line in format_metrics(report.facts):
            click.echo(line)
    else:
        _print_report(report, as_json=as_json)
    if report.errors:
        raise MountError("; ".join(report.errors))


def _watch(path: Path | None, interval: float, *, as_json: bool) -> None:
    from redisfuse.cli import _status_watch

    if not as_json and not is_terminal():
        raise UsageError("--watch is for a terminal; with --json it prints lines to a pipe")

    reports = _iter_reports(path, fails=as_json)
    if as_json:
        _status_watch.watch_lines(reports, interval)
    else:
        _status_watch.watch_screen(reports, interval)


def _iter_reports(path: Path | None, *, fails: bool) -> Iterator[MountReport]:
    """Yield the state of mounts at the moment of each request, without end.

    `fails`: raise MountError for a mount that does not respond.
    """
    while True:
        report = read_mounts(path)
        if fails and report.errors:
            raise MountError("; ".join(report.errors))
        yield report


def _print_report(report: MountReport, *, as_json: bool) -> None:
    for facts in report.responding:
        if as_json:
            click.echo(json.dumps(facts))
        else:
            for line in format_status(facts):
                print_out(line)
    if not as_json:
        for note in report.notes:
            print_out(note)

"""Show the state of one mount, or of all mounts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from redisfuse.cli._mount_status import fetch_status
from redisfuse.cli._mountpoint_param import MOUNTPOINT
from redisfuse.cli._output import format_bytes, format_count, is_terminal
from redisfuse.cli._status_metrics import format_metrics
from redisfuse.cli._terminal import print_out
from redisfuse.client.replication import MasterLink
from redisfuse.errors import MountError, UsageError
from redisfuse.fuse import mountpoint as mountpoints
from redisfuse.text import for_terminal


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
    survey = _survey_mounts(path)
    if prometheus:
        for line in format_metrics(survey.facts):
            click.echo(line)
    else:
        _print_survey(survey, as_json=as_json)
    if survey.errors:
        raise MountError("; ".join(survey.errors))


def _watch(path: Path | None, interval: float, *, as_json: bool) -> None:
    from redisfuse.cli import _status_watch

    if not as_json and not is_terminal():
        raise UsageError("--watch is for a terminal; with --json it prints lines to a pipe")

    def read() -> _status_watch.Report:
        survey = _survey_mounts(path)
        if as_json and survey.errors:
            raise MountError("; ".join(survey.errors))
        facts = [facts for facts in survey.facts.values() if facts is not None]
        return _status_watch.Report(facts, [*survey.notes, *survey.errors])

    if as_json:
        _status_watch.watch_lines(read, interval)
    else:
        _status_watch.watch_screen(read, interval, _format_status)


@dataclass(frozen=True, slots=True)
class _Survey:
    """The state of mounts."""

    facts: dict[str, dict[str, Any] | None]  # by mount point; None: the mount does not respond
    notes: list[str]  # on mounts of other users
    errors: list[str]


def _survey_mounts(path: Path | None) -> _Survey:
    """Return the state of the mount at `path`, or of all mounts."""
    survey = _Survey({}, [], [])
    mounts = [mount for mount in mountpoints.list_redisfuse_mounts() if path is None or mount.mountpoint == path]
    if not mounts:
        survey.errors.append("nothing is mounted" if path is None else f"{path} is not a redisfuse mount")
        if path is not None:
            survey.facts[str(path)] = None
    for mount in mounts:
        try:
            survey.facts[str(mount.mountpoint)] = json.loads(fetch_status(mount.mountpoint))
        except PermissionError:
            (survey.notes if path is None else survey.errors).append(f"{mount.mountpoint} {_describe_owner(mount)}")
        except OSError as error:
            survey.facts[str(mount.mountpoint)] = None
            survey.errors.append(f"{mount.mountpoint} does not respond: {error.strerror}")
    return survey


def _print_survey(survey: _Survey, *, as_json: bool) -> None:
    for facts in survey.facts.values():
        if facts is None:
            continue
        if as_json:
            click.echo(json.dumps(facts))
        else:
            for line in _format_status(facts):
                print_out(line)
    if not as_json:
        for note in survey.notes:
            print_out(note)


def _describe_owner(mount: mountpoints.MountInfo) -> str:
    return f"is a mount of another user (uid {mount.owner_uid}), and only that user can see its status"


def _format_status(facts: Mapping[str, Any]) -> list[str]:
    """Return the status of one mount as lines."""
    rows = [
        ("mounted", f"{facts['server']} ({facts['server_version']}), {facts['mode']}"),
        ("keys", _format_key_count(facts)),
        ("changes", "tracked by the server" if facts["live"] else f"not tracked: {facts['reason']}"),
        *([("replica", _format_link(facts, facts["max_lag_seconds"]))] if facts["master_link"] else []),
        *_format_shards(facts),
        *([("sentinels", "{} of {} answer".format(*facts["sentinels"]))] if facts.get("sentinels") else []),
        ("kernel cache", "invalidated when a key changes" if facts["kernel_cache"] else _format_no_cache(facts)),
        *_format_hashes(facts),
        ("sent", f"{facts['commands']} commands in {facts['round_trips']} round trips"),
        ("cache", _format_cache(facts)),
        *_format_evictions(facts),
        (
            "memory",
            f"{format_bytes(facts['memory_bytes'])}, of which {format_bytes(facts['index_bytes'])} for the index"
            + (" (key names are on disk)" if facts["index_on_disk"] else ""),
        ),
        ("process", f"pid {facts['pid']} for {facts['up_seconds']:g} s, {facts['binding']} on {facts['library']}"),
    ]
    if facts["journal"]:
        rows.append(("journal", f"{facts['journal']}, session {facts['session']}"))
    return [for_terminal(facts["mountpoint"]), *(f"  {name:<13}{text}" for name, text in rows)]


def _format_cache(facts: Mapping[str, Any]) -> str:
    if facts["cache_hit_rate"] is None:
        return "not used yet"
    size, limit = format_bytes(facts["cache_bytes"]), format_bytes(facts["cache_limit_bytes"])
    return f"{facts['cache_hit_rate']:.0%} hit rate, {size} of {limit} in use"


def _format_evictions(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a row about what the cache could not hold, if there is anything."""
    keys, contents = facts["cache_evicted_keys"], facts["cache_evicted_contents"]
    if not keys and not contents:
        return []
    evicted = f"the attributes of {format_count(keys, 'key')} and {format_count(contents, 'content')}"
    return [("evicted", f"{evicted}, which did not fit into --cache-memory")]


def _format_shards(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a row for each shard of a cluster, and one about unserved slots."""
    rows = []
    for shard in facts.get("shards", ()):
        state = "tracked" if shard["live"] else f"not tracked: {shard['reason']}"
        if shard["live"] and not shard["ready"]:
            state = f"tracked, scanning: {shard['scanned']} keys so far"
        if shard["master_link"]:
            state += f"; {_format_link(shard, facts['max_lag_seconds'])}"
        rows.append(("shard", f"{shard['node']}, {format_count(shard['slots'], 'slot')}, {state}"))
    if facts.get("unserved_slots"):
        kind = "replica" if facts["replicas"] else "node"
        rows.append(("cluster", f"no {kind} serves {format_count(facts['unserved_slots'], 'slot')}"))
    return rows


def _format_link(facts: Mapping[str, Any], limit: float) -> str:
    """Return the state of a replica's link, and how old its values may be."""
    text, lag = MasterLink(**facts["master_link"]).text, facts["lag_seconds"]
    if lag is not None:
        text += f"; values are at most {lag:.0f} s old"
    if limit and (lag is None or lag > limit):
        text += f", so reads are refused (--max-lag {limit:g})"
    return text


def _format_hashes(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a row about the layout of hashes, unless all are listed as fields."""
    if facts["hashes"] != "auto":
        return [("hashes", f"listed as {facts['hashes']}")]
    folders, count = facts["hash_file_folders"], facts["hash_file_folder_count"]
    if not folders:
        return []
    shown = ", ".join(f"/{folder}" for folder in folders)
    more = f" and {count - len(folders)} more" if count > len(folders) else ""
    return [("hashes", f"listed as files in {shown}{more} (more than --hash-limit hashes)")]


def _format_key_count(facts: Mapping[str, Any]) -> str:
    if facts.get("paused"):
        return "read when the mount is used again"
    if not facts["ready"]:
        total = facts["scan_total"]
        return f"scanning: {facts['scanned']} of {total or 'an unknown number'}"
    return f"{facts['keys']}{' (rescanning)' if facts['scanning'] else ''}"


def _format_no_cache(facts: Mapping[str, Any]) -> str:
    return f"expires after one second: {facts['kernel_cache_reason'] or 'changes are not tracked yet'}"

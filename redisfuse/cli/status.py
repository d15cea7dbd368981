"""Show the mounts and their state."""

import errno
import json
import os
import queue
import threading
from pathlib import Path
from typing import Any

import click

from redisfuse.cli._output import format_bytes
from redisfuse.cli._params import PATH
from redisfuse.cli._terminal import print_out
from redisfuse.errors import MountError
from redisfuse.fuse import mountpoint as mountpoints
from redisfuse.keyspace.heartbeat import MasterLink
from redisfuse.text import for_terminal

STATUS_TIMEOUT_SECONDS = 5.0  # for the reply of a mount
STATUS_XATTR = "user.redisfuse.status"  # of a mount's root; served by mount/adapter.py


@click.command
@click.argument("mountpoint", type=PATH, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line for each mount.")
def command(mountpoint: Path | None, as_json: bool) -> None:
    """Show the state of one mount, or of all mounts.

    Without MOUNTPOINT, mounts of other users are only named, and are omitted from --json. The exit status is 1 if
    nothing is mounted, or if a mount does not respond.
    """
    mounts = mountpoints.list_redisfuse_mounts()
    if mountpoint is not None:
        path = mountpoints.absolute_path(mountpoint)
        mounts = [mount for mount in mounts if mount.mountpoint == path]
    if not mounts:
        raise MountError("nothing is mounted" if mountpoint is None else f"{mountpoint} is not a redisfuse mount")
    errors = []
    for mount in mounts:
        try:
            facts = json.loads(_fetch_status(mount.mountpoint))
        except PermissionError:
            if mountpoint is not None:
                errors.append(f"{mountpoint} {_describe_owner(mount)}")
            elif not as_json:
                print_out(f"{mount.mountpoint} {_describe_owner(mount)}")
            continue
        except OSError as error:
            errors.append(f"{mount.mountpoint} does not respond: {error.strerror}")
            continue
        if as_json:
            click.echo(json.dumps(facts))
        else:
            for line in _format_status(facts):
                print_out(line)
    if errors:
        raise MountError("; ".join(errors))


def _describe_owner(mount: mountpoints.MountInfo) -> str:
    return f"is a mount of another user (uid {mount.owner_uid}), and only that user can see its status"


def _fetch_status(mountpoint: Path) -> bytes:
    """Return a mount's status as JSON.

    Raises OSError, also if the mount does not reply in time (its process may be stopped).
    """
    replies: queue.SimpleQueue[bytes | OSError] = queue.SimpleQueue()

    def read_xattr() -> None:
        try:
            replies.put(os.getxattr(mountpoint, STATUS_XATTR))
        except OSError as error:
            replies.put(error)

    threading.Thread(target=read_xattr, daemon=True).start()
    try:
        reply = replies.get(timeout=STATUS_TIMEOUT_SECONDS)
    except queue.Empty:
        raise TimeoutError(errno.ETIMEDOUT, f"no reply within {STATUS_TIMEOUT_SECONDS:g} s") from None
    if isinstance(reply, OSError):
        raise reply
    return reply


def _format_status(facts: dict[str, Any]) -> list[str]:
    """Return the status of one mount as lines."""
    rate = facts["cache_hit_rate"]
    rows = [
        ("mounted", f"{facts['server']} ({facts['server_version']}), {facts['mode']}"),
        ("keys", _format_key_count(facts)),
        ("changes", "tracked by the server" if facts["live"] else f"not tracked: {facts['reason']}"),
        *([("replica", MasterLink(**facts["master_link"]).text)] if facts["master_link"] else []),
        ("kernel cache", "invalidated when a key changes" if facts["kernel_cache"] else _format_no_cache(facts)),
        *_format_hashes(facts),
        ("sent", f"{facts['commands']} commands in {facts['round_trips']} round trips"),
        ("cache", "not used yet" if rate is None else f"{rate:.0%} hit rate"),
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


def _format_hashes(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a row about the layout of hashes, unless all are listed as fields."""
    if facts["hashes"] != "auto":
        return [("hashes", f"listed as {facts['hashes']}")]
    folders, count = facts["hash_file_folders"], facts["hash_file_folder_count"]
    if not folders:
        return []
    shown = ", ".join(f"/{folder}" for folder in folders)
    more = f" and {count - len(folders)} more" if count > len(folders) else ""
    return [("hashes", f"listed as files in {shown}{more} (more than --hash-limit hashes)")]


def _format_key_count(facts: dict[str, Any]) -> str:
    if not facts["ready"]:
        total = facts["scan_total"]
        return f"scanning: {facts['scanned']} of {total or 'an unknown number'}"
    return f"{facts['keys']}{' (rescanning)' if facts['scanning'] else ''}"


def _format_no_cache(facts: dict[str, Any]) -> str:
    return f"expires after one second: {facts['kernel_cache_reason'] or 'changes are not tracked yet'}"

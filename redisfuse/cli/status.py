"""What is mounted, and how it is doing."""

import errno
import json
import os
import queue
import threading
from pathlib import Path
from typing import Any

import click

from redisfuse.cli._options import PATH
from redisfuse.cli._terminal import print_out
from redisfuse.config import format_size
from redisfuse.errors import MountError
from redisfuse.fuse import mountpoint as mountpoints
from redisfuse.text import for_terminal

STATUS_TIMEOUT_SECONDS = 5.0  # seconds that a mount has to answer
STATUS_XATTR = "user.redisfuse.status"  # of a mount's root; mount/adapter.py answers it


@click.command
@click.argument("mountpoint", type=PATH, required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each mount.")
def command(mountpoint: Path | None, as_json: bool) -> None:
    """What is mounted, and how it is doing: of one mount, or of all of them.

    Exit status 1 if nothing is mounted, or a mount does not answer.
    """
    found = mountpoints.list_redisfuse_mounts()
    if mountpoint is not None:
        wanted = mountpoints.absolute_path(mountpoint)
        found = [mount for mount in found if mount.mountpoint == wanted]
    if not found:
        raise MountError("nothing is mounted" if mountpoint is None else f"{mountpoint} is not a redisfuse mount")
    dead = []
    for mount in found:
        try:
            facts = json.loads(_fetch_status(mount.mountpoint))
        except OSError as error:
            dead.append(f"{mount.mountpoint} does not answer: {error.strerror}")
            continue
        if as_json:
            click.echo(json.dumps(facts))
        else:
            for line in _format_status(facts):
                print_out(line)
    if dead:
        raise MountError("; ".join(dead))


def _fetch_status(mountpoint: Path) -> bytes:
    """A mount's own words. Raises OSError, also if it says none in time (its process may be stopped)."""
    answer: queue.SimpleQueue[bytes | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(os.getxattr(mountpoint, STATUS_XATTR))
        except OSError as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answer.get(timeout=STATUS_TIMEOUT_SECONDS)
    except queue.Empty:
        raise TimeoutError(errno.ETIMEDOUT, f"nothing within {STATUS_TIMEOUT_SECONDS:g} s") from None
    if isinstance(found, OSError):
        raise found
    return found


def _format_status(facts: dict[str, Any]) -> list[str]:
    """The facts of one mount in words."""
    rate = facts["cache_hit_rate"]
    rows = [
        ("mounted", f"{facts['server']} ({facts['server_version']}), {facts['mode']}"),
        ("keys", _format_key_count(facts)),
        ("changes", "followed as they happen" if facts["live"] else f"not followed: {facts['reason']}"),
        ("kernel cache", "kept true by pushing changes" if facts["kernel_cache"] else _format_no_cache(facts)),
        ("sent", f"{facts['commands']} commands in {facts['round_trips']} round trips"),
        ("cache", "not used yet" if rate is None else f"{rate:.0%} of what was asked cost the server nothing"),
        (
            "memory",
            f"{format_memory(facts['memory_bytes'])}, of that the index {format_memory(facts['index_bytes'])}"
            + (" (its keys are on disk)" if facts["index_on_disk"] else ""),
        ),
        ("runs", f"pid {facts['pid']} for {facts['up_seconds']:g} s, {facts['binding']} on {facts['library']}"),
    ]
    if facts["journal"]:
        rows.append(("journal", f"{facts['journal']}, session {facts['session']}"))
    return [for_terminal(facts["mountpoint"]), *(f"  {name:<13}{text}" for name, text in rows)]


def _format_key_count(facts: dict[str, Any]) -> str:
    if not facts["ready"]:
        total = facts["scan_total"]
        return f"being read: {facts['scanned']} of {total or 'an unknown number'}"
    return f"{facts['keys']}{' (being read again)' if facts['scanning'] else ''}"


def _format_no_cache(facts: dict[str, Any]) -> str:
    return f"one second only: {facts['kernel_cache_reason'] or 'changes are not followed yet'}"


def format_memory(size: int) -> str:
    """About so much: `3.4 MiB`."""
    if size < 1024:
        return format_size(size) + " B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024 or unit == "GiB":
            break
    return f"{value:.1f} {unit}"

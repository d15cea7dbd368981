"""The status of mounts, read from their roots."""

import errno
import json
import os
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redisfuse.fuse import mountpoint as mountpoints

Facts = Mapping[str, Any]
"""The status of a mount, as mount/status.py builds it."""

STATUS_TIMEOUT_SECONDS = 5.0  # for the reply of a mount
STATUS_XATTR = "user.redisfuse.status"  # of a mount's root; served by mount/adapter.py


def fetch_status(mountpoint: Path) -> bytes:
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


@dataclass(frozen=True, slots=True)
class MountReport:
    """The state of mounts at one moment."""

    facts: dict[str, Facts | None]  # by mount point; None: the mount does not respond
    notes: list[str]  # on mounts of other users
    errors: list[str]

    @property
    def responding(self) -> list[Facts]:
        """The states of the mounts that respond."""
        return [facts for facts in self.facts.values() if facts is not None]


def read_mounts(path: Path | None) -> MountReport:
    """Return the state of the mount at `path`, or of all mounts."""
    report = MountReport({}, [], [])
    mounts = [mount for mount in mountpoints.list_redisfuse_mounts() if path is None or mount.mountpoint == path]
    if not mounts:
        report.errors.append("nothing is mounted" if path is None else f"{path} is not a redisfuse mount")
        if path is not None:
            report.facts[str(path)] = None
    for mount in mounts:
        try:
            report.facts[str(mount.mountpoint)] = json.loads(fetch_status(mount.mountpoint))
        except PermissionError:
            (report.notes if path is None else report.errors).append(f"{mount.mountpoint} {_describe_owner(mount)}")
        except OSError as error:
            report.facts[str(mount.mountpoint)] = None
            report.errors.append(f"{mount.mountpoint} does not respond: {error.strerror}")
    return report


def _describe_owner(mount: mountpoints.MountInfo) -> str:
    return f"is a mount of another user (uid {mount.owner_uid}), and only that user can see its status"

"""Mount points: listing and unmounting them, without a FUSE library."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from redisfuse.errors import MountError

FILESYSTEM_TYPE = "fuse.redisfuse"
_SOURCE_PREFIXES = ("redis://", "rediss://", "unix://", "redis+sentinel://")  # of a mount with `-o subtype=`

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_USER_ID = re.compile(r"(?:^|,)user_id=(\d+)")
_OCTAL_ESCAPE = re.compile(rb"\\([0-7]{3})")
_FUSERMOUNT_TIMEOUT_SECONDS = 30.0  # seconds for fusermount, which does no more than a system call


class MountInfo(NamedTuple):
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5)).

    `device` is "major:minor".
    """

    mountpoint: Path
    fs_type: str
    source: str
    device: str
    options: str

    @property
    def is_redisfuse(self) -> bool:
        """Whether it is a mount of redisfuse, with any subtype (`-o subtype=`)."""
        return self.fs_type == FILESYSTEM_TYPE or (
            self.fs_type.startswith("fuse.") and self.source.startswith(_SOURCE_PREFIXES)
        )

    @property
    def owner_uid(self) -> int | None:
        """The user who mounted a FUSE filesystem; None for other filesystems."""
        match = _USER_ID.search(self.options)
        return int(match[1]) if match else None


def _unescape(field: bytes) -> str:
    return os.fsdecode(_OCTAL_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))


def iter_mounts() -> Iterator[MountInfo]:
    """Yield all mounts of this namespace, in the order of mounting."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        rest = fields[fields.index(b"-") + 1 :]
        yield MountInfo(
            Path(_unescape(fields[4])), _unescape(rest[0]), _unescape(rest[1]), _unescape(fields[2]), _unescape(rest[2])
        )


def list_redisfuse_mounts() -> list[MountInfo]:
    """Return the redisfuse mounts of this namespace."""
    return [mount for mount in iter_mounts() if mount.is_redisfuse]


def find_mount(path: Path) -> MountInfo | None:
    """Return the mount, of any type, whose mount point is `path`.

    The topmost if there are several; None if there is none.
    """
    mountpoint, topmost = absolute_path(path), None
    for mount in iter_mounts():
        if mount.mountpoint == mountpoint:
            topmost = mount
    return topmost


def absolute_path(path: Path) -> Path:
    """Return `path` without symbolic links in its parents.

    Does not access `path` itself, which may be a dead or hung mount.
    """
    path = Path(os.path.abspath(path))
    return Path(os.path.realpath(path.parent)) / path.name if path.name else path


def resolve_path(path: Path) -> Path:
    """Return `absolute_path`, following `path` itself if it is a symbolic link.

    A mount point is not a symbolic link, and is not accessed.
    """
    path = absolute_path(path)
    return Path(os.path.realpath(path)) if find_mount(path) is None and os.path.islink(path) else path


def is_stale(path: Path) -> bool:
    """Return whether `path` is a FUSE mount whose process has ended (ENOTCONN)."""
    try:
        os.statvfs(path)  # unlike stat, it is never answered from a cache
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def find_fusermount() -> str | None:
    """Return the program that mounts and unmounts for ordinary users, if any."""
    return shutil.which("fusermount3") or shutil.which("fusermount")


def _umount2(path: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), flags | _UMOUNT_NOFOLLOW) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def try_unmount(path: Path, lazy: bool) -> None:
    """Unmount once.

    Raises OSError (EBUSY) if the mount is in use, MountError for any other failure.
    """
    if os.geteuid() == 0:
        try:
            _umount2(path, _MNT_DETACH if lazy else 0)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise
            raise MountError(f"{path} could not be unmounted: {error.strerror}") from error
        return
    program = find_fusermount()
    if program is None:
        raise MountError("fusermount is missing: install it with `apt install fuse3`")
    command = [program, "-u", *(["-z"] if lazy else []), "--", str(path)]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_FUSERMOUNT_TIMEOUT_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise MountError(f"{path} could not be unmounted: {program} did not answer") from error
    if done.returncode != 0:
        if "busy" in done.stderr:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        reason = done.stderr.strip().splitlines()[-1:] or [f"{program} failed"]
        raise MountError(f"{path} could not be unmounted: {reason[0]}")


def unmount(path: Path, *, lazy: bool = False, retry_seconds: float = 1.0) -> None:
    """Unmount the redisfuse mount at `path`.

    `lazy` detaches it even if programs use it. A busy mount is tried again for `retry_seconds`. Raises MountError: not
    mounted, not a redisfuse mount, in use, not permitted.
    """
    path = resolve_path(path)
    mount = find_mount(path)
    if mount is None:
        raise MountError(f"{path} is not mounted")
    if not mount.is_redisfuse:
        raise MountError(f"{path} is not a redisfuse mount but {mount.fs_type}")
    if os.geteuid() not in (0, mount.owner_uid):
        raise MountError(
            f"{path} is a mount of another user (uid {mount.owner_uid}): only that user or root can end it"
        )
    deadline = time.monotonic() + retry_seconds
    while True:
        try:
            try_unmount(path, lazy)
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise MountError(
                    f"{path} is in use: leave it (`fuser -vm {path}` shows the processes in it), or unmount with --lazy"
                ) from error
        time.sleep(0.05)

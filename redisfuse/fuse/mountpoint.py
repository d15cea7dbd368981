"""Mount points: listing, checking and unmounting them.

Needs no FUSE library.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
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
_CAP_SYS_ADMIN = 1 << 21  # capabilities(7), linux/capability.h
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
    found = None
    wanted = absolute_path(path)
    for mount in iter_mounts():
        if mount.mountpoint == wanted:
            found = mount
    return found


def absolute_path(path: Path) -> Path:
    """Return `path` without symbolic links in its parents.

    Does not access `path` itself, which may be a dead or hung mount.
    """
    path = Path(os.path.abspath(path))
    return Path(os.path.realpath(path.parent)) / path.name if path.name else path


def _resolve_path(path: Path) -> Path:
    """Return `absolute_path`, following `path` itself if it is a symbolic link.

    A mount point is none, and is not accessed.
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
    path = _resolve_path(path)
    mount = find_mount(path)
    if mount is None:
        raise MountError(f"{path} is not mounted")
    if not mount.is_redisfuse:
        raise MountError(f"{path} is not a redisfuse mount but {mount.fs_type}")
    deadline = time.monotonic() + retry_seconds
    while True:
        try:
            try_unmount(path, lazy)
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise MountError(
                    f"{path} is in use: leave it (`fuser -vm {path}` says who is there), or unmount with --lazy"
                ) from error
        time.sleep(0.05)


def clean_stale_mount(path: Path) -> bool:
    """Unmount a dead redisfuse mount at `path`; return whether there was one."""
    path = absolute_path(path)
    mount = find_mount(path)
    if mount is None or not mount.is_redisfuse or not is_stale(path):
        return False
    unmount(path, lazy=True)
    return True


def check_mount_permission() -> str:
    """Try what a mount needs: to open /dev/fuse, and the capability or fusermount.

    Returns how this process can mount, for a message. Raises MountError, one line.
    """
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise MountError(_explain_device_error(error)) from None
    status = Path("/proc/self/status").read_text()
    if _read_capabilities(status, "CapEff") & _CAP_SYS_ADMIN:
        return "with CAP_SYS_ADMIN"
    if os.geteuid() == 0:
        raise MountError("this process lacks CAP_SYS_ADMIN, which mounting needs (in a container: --cap-add SYS_ADMIN)")
    program = find_fusermount()
    if program is None:
        raise MountError("fusermount is missing: install it with `apt install fuse3`")
    if reason := _explain_unprivileged(program, status):
        raise MountError(f"{program} can't mount: {reason}")
    return f"through {program}"


def _explain_device_error(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "/dev/fuse is missing: `modprobe fuse` loads the module (in a container: --device /dev/fuse)"
    if error.errno == errno.EACCES:
        return "/dev/fuse may not be opened by this user: it usually has mode 0666, or belongs to a group `fuse`"
    if error.errno == errno.EPERM:
        return "/dev/fuse may not be opened in this container: start it with --device /dev/fuse"
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return "the kernel has no FUSE behind /dev/fuse: `modprobe fuse` loads the module"
    return f"/dev/fuse can't be opened: {error.strerror}"


def _read_capabilities(status: str, name: str) -> int:
    """Return a set of capabilities in /proc/PID/status (proc_pid_status(5))."""
    match = re.search(rf"^{name}:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return int(match[1], 16) if match else 0


def _explain_unprivileged(program: str, status: str) -> str:
    """Return why fusermount could not mount; empty if it could."""
    state = os.stat(program)
    has_capabilities = "security.capability" in os.listxattr(program)
    if not (state.st_mode & stat.S_ISUID and state.st_uid == 0) and not has_capabilities:
        return f"it is not setuid root; install it again, or run: chmod u+s {program}"
    if os.statvfs(program).f_flag & os.ST_NOSUID:
        return "its filesystem is mounted with nosuid"
    if re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE):
        return "this process runs with no_new_privs (in systemd: NoNewPrivileges=no)"
    if not _read_capabilities(status, "CapBnd") & _CAP_SYS_ADMIN:
        return "this process and its children can't get CAP_SYS_ADMIN (in a container: --cap-add SYS_ADMIN)"
    return ""


def validate_mountpoint(path: Path, *, nonempty: bool = False) -> Path:
    """Return the absolute path of a mount point, if it can be used.

    A dead mount of redisfuse is unmounted first. Raises MountError, one line: missing, not a directory, not empty,
    already mounted, no /dev/fuse, no fusermount.
    """
    check_mount_permission()
    clean_stale_mount(path)
    try:
        state = os.stat(path)
    except FileNotFoundError:
        raise MountError(f"mount point {path} does not exist: make it with `mkdir {path}`") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise MountError(f"a dead mount is at {path}: `fusermount -u {path}` takes it away") from None
        raise MountError(f"mount point {path} can't be used: {error.strerror}") from None
    if not stat.S_ISDIR(state.st_mode):
        raise MountError(f"mount point {path} is not a directory")
    path = _resolve_path(path)
    mount = find_mount(path)
    if mount is not None and (mount.is_redisfuse or not nonempty):
        what = f"{mount.source} ({mount.fs_type})"
        raise MountError(f"{what} is already mounted at {path}: unmount it first, with `redisfuse umount {path}`")
    try:
        with os.scandir(path) as entries:
            occupied = next(entries, None) is not None
    except OSError as error:
        raise MountError(f"mount point {path} can't be read: {error.strerror}") from None
    if occupied and not nonempty:
        raise MountError(f"mount point {path} is not empty: choose another, or hide what is in it with -o nonempty")
    return path


def set_read_ahead(path: Path, kib: int) -> bool:
    """Set the kernel's read-ahead of this mount, in KiB.

    Needs root; returns whether it was set.
    """
    mount = find_mount(path)
    if mount is None:
        return False
    try:
        Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb").write_text(str(kib))
    except OSError:
        return False
    return True

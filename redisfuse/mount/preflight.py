"""Checking a mount point and the permission to mount, and setting the read-ahead.

Needs no FUSE library.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from pathlib import Path

from redisfuse.errors import MountError
from redisfuse.fuse.mountpoint import absolute_path, find_fusermount, find_mount, is_stale, resolve_path, unmount

_CAP_SYS_ADMIN = 1 << 21  # capabilities(7), linux/capability.h


def clean_stale_mount(path: Path) -> bool:
    """Unmount a dead redisfuse mount at `path`; return whether there was one."""
    path = absolute_path(path)
    mount = find_mount(path)
    if mount is None or not mount.is_redisfuse or not is_stale(path):
        return False
    unmount(path, lazy=True)
    return True


def check_mount_permission() -> str:
    """Open /dev/fuse, and check the capability to mount, or fusermount.

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
            raise MountError(f"a dead mount is at {path}: `fusermount -u {path}` removes it") from None
        raise MountError(f"mount point {path} can't be used: {error.strerror}") from None
    if not stat.S_ISDIR(state.st_mode):
        raise MountError(f"mount point {path} is not a directory")
    path = resolve_path(path)
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
        raise MountError(f"mount point {path} is not empty: choose another, or hide its contents with -o nonempty")
    return path


def set_read_ahead(path: Path, kib: int) -> None:
    """Set the kernel's read-ahead of a mount, in KiB, if this process may (root)."""
    mount = find_mount(path)
    if mount is not None:
        with contextlib.suppress(OSError):
            Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb").write_text(str(kib))

"""Files that only this user or root could have prepared.

A configuration, a password, a journal or a log that another user can write, replace or plant decides what a mount does
or discloses what it contains. A path is trusted if

- the file belongs to this user or to root, and other users can't write to it;
- other users can't create files in its folder, not even in one with the sticky bit: there they could plant a file
  beside it (SQLite's -wal), or take its name before it exists;
- other users can't replace any folder or symbolic link on the way to it (a sticky folder is enough there).

A group does not count as other users if it is the user's private group: its name is the user's, and it has no other
member. Folders of read-only filesystems are trusted, whatever their modes. docs/operating.md describes the rule for
users.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from pathlib import Path
from typing import BinaryIO

from redisfuse.errors import UntrustedFileError

_MAX_SYMBOLIC_LINKS = 40  # the kernel's limit (path_resolution(7))


def open_trusted(path: Path, *, private: bool = False) -> BinaryIO:
    """Open a file for reading.

    `private`: other users must not be able to read it either. Raises UntrustedFileError, or OSError if it can't be
    opened.
    """
    os.stat(path)  # a missing file is reported as such, wherever it would be
    check_location(path)
    file = path.open("rb")
    try:
        status = os.fstat(file.fileno())
        if not _is_null_device(status):
            _check_file(path, status)
        if private and is_readable_by_others(status):
            raise UntrustedFileError(f"{path} is not private: others can read it; run: chmod 600 {path}")
    except BaseException:
        file.close()
        raise
    return file


def open_log(path: Path) -> int:
    """Open a file for appending and return its descriptor.

    A missing file is created with mode 0600, a missing folder with mode 0700. Raises UntrustedFileError or OSError.
    """
    create_folder(path.parent)
    check_location(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):  # a terminal, a pipe and /dev/null keep nothing
            _check_file(path, status)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_null_device(status: os.stat_result) -> bool:
    """Return whether a file is /dev/null, to which all users can write."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev


def create_folder(folder: Path) -> None:
    """Create a folder and its missing parents, with mode 0700."""
    if folder.is_dir():
        return
    create_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)


def is_readable_by_others(status: os.stat_result) -> bool:
    """Return whether the group of a file, or all users, have any permission."""
    return bool(status.st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def check_location(path: Path, *, remedy: str = "chmod go-w") -> None:
    """Raise UntrustedFileError if another user could plant or replace a file.

    The file at `path` itself need not exist. `remedy` is the command that makes its folder private. Raises OSError for
    a folder that can't be examined.
    """
    pending = list(reversed(Path(os.path.abspath(path)).parts))
    folder = pending.pop()
    link_count = 0
    while pending:
        name = pending.pop()
        if name == os.pardir:
            folder = os.path.dirname(folder)
            continue
        _check_folder(folder, os.lstat(folder), path, is_last=not pending, remedy=remedy)
        entry = os.path.join(folder, name)
        try:
            status = os.lstat(entry)
        except FileNotFoundError:
            if pending:
                raise
            return
        if not stat.S_ISLNK(status.st_mode):
            folder = entry
            continue
        _check_owner(entry, status, path)
        link_count += 1
        if link_count > _MAX_SYMBOLIC_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = os.path.join(folder, os.readlink(entry))
        if not pending and os.path.exists(entry) and not os.path.lexists(target):
            return  # a link of /proc/PID/fd to a pipe, as of `--password-file <(command)`
        parts = Path(target).parts
        folder = parts[0]
        pending += reversed(parts[1:])


def _check_folder(folder: str, status: os.stat_result, path: Path, *, is_last: bool, remedy: str) -> None:
    """Raise UntrustedFileError unless a folder on the way to `path` is trusted.

    In the last one, others must not even create files.
    """
    _check_owner(folder, status, path)
    is_sticky = bool(status.st_mode & stat.S_ISVTX)
    if (is_sticky and not is_last) or not _is_writable_by_others(folder, status):
        return
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return
    if is_sticky:
        raise UntrustedFileError(
            f"{path} is not trusted: all users can create files in {folder}; use a folder that only you can write to"
        )
    raise UntrustedFileError(
        f"{path} is not trusted: other users can write to {folder} (mode {stat.S_IMODE(status.st_mode):04o}); "
        f"run: {remedy} {folder}"
    )


def _check_file(path: Path, status: os.stat_result) -> None:
    _check_owner(str(path), status, path)
    if _is_writable_by_others(str(path), status):
        raise UntrustedFileError(
            f"{path} is not trusted: other users can write to it (mode {stat.S_IMODE(status.st_mode):04o}); "
            f"check what it contains, then run: chmod go-w {path}"
        )


def _check_owner(name: str, status: os.stat_result, path: Path) -> None:
    if status.st_uid not in (os.geteuid(), 0):
        subject = "it" if name == str(path) else name
        raise UntrustedFileError(
            f"{path} is not trusted: {subject} belongs to another user (uid {status.st_uid}); "
            f"it must belong to you or to root"
        )


def _is_writable_by_others(name: str, status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not (_is_private_group(status.st_gid) and not _has_acl(name))


@functools.cache
def _is_private_group(gid: int) -> bool:
    """Return whether a group consists of this user only.

    Systems whose umask is 0002 create such a group for each user.
    """
    import grp
    import pwd

    try:
        user = pwd.getpwuid(os.geteuid())
        group = grp.getgrgid(gid)
    except KeyError:
        return False
    return gid != 0 and gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _has_acl(name: str) -> bool:
    """Return whether a file has a POSIX ACL.

    Then the mode shows the ACL's mask as the permissions of the group.
    """
    try:
        os.getxattr(name, "system.posix_acl_access")
    except OSError:
        return False
    return True

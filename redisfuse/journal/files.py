"""The journal's file: its place, permissions and creation.

It contains production values. The calls that create the directory and the file set their modes, 0700 and 0600, so that
at no moment another user can open them. SQLite gives the files that it creates beside it (-wal, -shm) the mode of the
database, but takes any that are there: another user must not be able to create files in the directory. This module
never opens a file that may be in use: closing any descriptor of it would drop SQLite's locks ("How To Corrupt An SQLite
Database File", 2.2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

from redisfuse.errors import JournalError, JournalFullError, JournalReadOnlyError, UntrustedFileError
from redisfuse.trusted_files import check_location, create_folder, is_readable_by_others

JOURNAL_FILE_NAME = "journal.db"
COMPANION_SUFFIXES = ("-wal", "-shm", "-journal")
"""The endings of the names of SQLite's files beside a database."""


def default_path() -> Path:
    """Return the path of `journal.db` in the platform's state directory.

    All servers share it.
    """
    from platformdirs import user_state_path

    return user_state_path("redisfuse", appauthor=False) / JOURNAL_FILE_NAME


def get_log_path(path: Path) -> Path:
    """Return the path of the write-ahead log of the journal at `path`."""
    return path.with_name(path.name + "-wal")


def get_index_path(path: Path) -> Path:
    """Return the path of the write-ahead log's index, which SQLite maps."""
    return path.with_name(path.name + "-shm")


class FileStatus(NamedTuple):
    """The device, inode and size in bytes of a file.

    Device and inode change when the file is replaced.
    """

    device: int
    inode: int
    size: int

    @classmethod
    def from_path(cls, path: Path | str) -> FileStatus | None:
        """Return the status of the file at `path`; None if there is none.

        Symbolic links are not followed.
        """
        try:
            status = os.lstat(path)
        except OSError:
            return None
        return cls(status.st_dev, status.st_ino, status.st_size)

    def is_same_file(self, other: FileStatus) -> bool:
        """Return whether both are of one file."""
        return self[:2] == other[:2]


def check_file(path: Path) -> None:
    """Raise JournalError unless `path` is a file that only this user can read.

    The same holds for SQLite's files beside it. Other users must not be able to create files in its directory either,
    where they could replace it, or plant those.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise JournalError(f"there is no journal at {path}; a mount with --write --journal creates one") from None
    except OSError as error:
        raise JournalError(f"the journal {path} can't be examined: {error.strerror}") from None
    _check_private(path, status, "journal")
    if status.st_size == 0:
        raise JournalError(
            f"the journal {path} is an empty file, not a database; "
            f"remove it if it never contained a change, otherwise restore it from a backup"
        )
    _check_location(path)
    for suffix in COMPANION_SUFFIXES:
        companion = path.with_name(path.name + suffix)
        with contextlib.suppress(FileNotFoundError):  # also if it was removed just now
            _check_private(companion, os.lstat(companion), "journal's file")


def _check_private(path: Path, status: os.stat_result, name: str) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise JournalError(f"the {name} {path} is a symbolic link; give the path of the file itself")
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise JournalError(f"the {name} {path} is {kind}; give the path of a file with --journal-file")
    if status.st_uid != os.geteuid():
        raise JournalError(f"the {name} {path} belongs to another user (uid {status.st_uid}); it was not opened")
    if is_readable_by_others(status):
        raise JournalError(
            f"other users can read the {name} {path}, which contains values; make it private: chmod 600 {path}"
        )


def create_temporary_file(path: Path) -> Path:
    """Create an empty file of mode 0600 beside `path` and return its path.

    Its directory is created with mode 0700 if there is none. The journal is built in the temporary file and then
    gets its name from `publish_file`, so that an incomplete one never has that name.
    Raises JournalError, JournalReadOnlyError or JournalFullError.
    """
    try:
        create_folder(path.parent)
        _check_location(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)  # a umask may have cleared the owner's bits
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _translate_error(error, path) from None
    return temporary


def publish_file(temporary: Path, path: Path) -> None:
    """Give a complete journal its name, durably.

    If another process has created one meanwhile, that one stays.
    """
    try:
        with contextlib.suppress(FileExistsError):
            try:
                os.link(temporary, path)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise
                if not os.path.lexists(path):  # a filesystem without hard links
                    os.rename(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _translate_error(error, path) from None


def _check_location(path: Path) -> None:
    """Raise JournalError if the journal's directory is open to other users.

    They could create or replace files in it.
    """
    try:
        check_location(path, remedy="chmod 700")
    except UntrustedFileError as error:
        raise JournalError(f"the journal {error}") from None


def _translate_error(error: OSError, path: Path) -> JournalError:
    classes: dict[int | None, type[JournalError]] = {
        errno.ENOSPC: JournalFullError,
        errno.EDQUOT: JournalFullError,
        errno.EROFS: JournalReadOnlyError,
        errno.EACCES: JournalReadOnlyError,
        errno.EPERM: JournalReadOnlyError,
    }
    error_class = classes.get(error.errno, JournalError)
    return error_class(
        f"the journal {path} can't be created: {error.strerror}; choose another path with --journal-file"
    )

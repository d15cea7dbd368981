"""Where a journal is, and who may read it: it holds production values.

The folder is made 0700 and the file 0600 by the calls that create them, so there is no moment at which somebody else
could open them. (SQLite gives its -wal and -shm files the mode of the database.) Never opens a file that may be in use:
closing any descriptor of it would drop SQLite's locks (see "How To Corrupt An SQLite Database File", 2.2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from redisfuse.errors import JournalError, JournalFullError, JournalReadOnlyError

JOURNAL_FILE_NAME = "journal.db"


def default_path() -> Path:
    """`journal.db` in the platform's state folder, one for all servers."""
    from platformdirs import user_state_path

    return user_state_path("redisfuse", appauthor=False) / JOURNAL_FILE_NAME


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Which file a path leads to: it changes when the file is replaced."""

    device: int
    inode: int

    @classmethod
    def from_path(cls, path: Path) -> FileIdentity | None:
        """The mark of what is at `path` now, not following a symlink; None if nothing is."""
        try:
            found = os.lstat(path)
        except OSError:
            return None
        return cls(found.st_dev, found.st_ino)


def check_file(path: Path) -> None:
    """Raise JournalError unless `path` is our file, unreadable to others, in a folder that others can't alter."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        raise JournalError(f"there is no journal at {path}; a mount with --write --journal makes one") from None
    except OSError as error:
        raise JournalError(f"the journal {path} can't be looked at: {error.strerror}") from None
    if stat.S_ISLNK(found.st_mode):
        raise JournalError(f"the journal {path} is a symbolic link; give the path of the file itself")
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise JournalError(f"the journal {path} is {kind}; give the path of a file with --journal-file")
    if found.st_uid != os.geteuid():
        raise JournalError(f"the journal {path} belongs to somebody else (uid {found.st_uid}); it is not opened")
    if found.st_mode & 0o077:
        raise JournalError(f"others can read the journal {path}, which holds values; make it private: chmod 600 {path}")
    if found.st_size == 0:
        raise JournalError(
            f"the journal {path} is an empty file, not a database; "
            f"if it never held anything remove it, otherwise restore it from a backup"
        )
    _check_folder(path.parent)


def create_temporary_file(path: Path) -> Path:
    """Make an empty file of mode 0600 beside `path`, in a folder made 0700 if there was none, and return its path.

    The journal is built there and then given its name by `publish_file`, so a half-made one is never found under it.
    Raises JournalError, JournalReadOnlyError or JournalFullError.
    """
    try:
        _create_folder(path.parent)
        _check_folder(path.parent)
        made = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        descriptor = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)  # a umask may have taken the owner's bits
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _translate_error(error, path) from None
    return made


def publish_file(temporary: Path, path: Path) -> None:
    """Give a finished journal its name, durably, unless another process was quicker: then theirs stays."""
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


def _create_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)


def _check_folder(folder: Path) -> None:
    """Others who can write to the folder could put another file in the journal's place."""
    found = os.stat(folder)
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        raise JournalError(f"others can write to {folder}, the journal's folder; make it private: chmod 700 {folder}")
    if found.st_uid not in (os.geteuid(), 0):
        raise JournalError(f"{folder}, the journal's folder, belongs to somebody else (uid {found.st_uid})")


def _translate_error(error: OSError, path: Path) -> JournalError:
    kinds: dict[int | None, type[JournalError]] = {
        errno.ENOSPC: JournalFullError,
        errno.EDQUOT: JournalFullError,
        errno.EROFS: JournalReadOnlyError,
        errno.EACCES: JournalReadOnlyError,
        errno.EPERM: JournalReadOnlyError,
    }
    kind = kinds.get(error.errno, JournalError)
    return kind(f"the journal {path} can't be made: {error.strerror}; give another place with --journal-file")

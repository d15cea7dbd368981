"""Detects that the journal's files were truncated, replaced or removed.

The files are open meanwhile.

SQLite itself does not notice: it has pages in memory and continues to append to its log, so that its commits succeed
although earlier changes are lost. Looking at the identities and sizes of the files costs three lstat(2) before a commit
and three after it.

Other processes shorten the files legitimately: `redisfuse prune` shrinks the database, a checkpoint truncates the log.
So a file that is shorter than before is compared with what SQLite needs of it. Pages that were overwritten are found by
`redisfuse journal check`.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from pathlib import Path

from redisfuse.errors import JournalError
from redisfuse.journal.files import FileStatus, get_index_path, get_log_path

LOG_SIZE_LIMIT_BYTES = 16 << 20  # to which SQLite truncates a log that it begins again
_LOG_HEADER_BYTES = 32  # "The Database File Format", 4.1
_FRAME_HEADER_BYTES = 24
_SALT_BYTES = slice(16, 24)  # of the log's header
_FRAME_HEADER = struct.Struct(">I4x8s8x")  # number of the page, salt


class FileGuard:
    """The files of one writing connection, as they were after its last commit.

    Used by one thread.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._database = str(path)  # strings are looked at faster than paths
        self._log = str(get_log_path(path))
        self._index = str(get_index_path(path))
        self.is_truncated = False  # once true it stays so: SQLite's memory does not fit the files any more
        self._data_version: int | None = None  # changes when another process commits, or begins the log again
        self._statuses: dict[str, FileStatus | None] = {}
        self.record(connection)

    def check(self, connection: sqlite3.Connection) -> None:
        """Raise JournalError if a file was replaced or truncated.

        It is not the one that was opened, or lacks bytes that it had.
        """
        if self.is_truncated:
            raise build_truncated_error(self._path)
        shortened: list[tuple[str, FileStatus]] = []
        for file, before in self._statuses.items():
            status = FileStatus.from_path(file)
            if (status is None) != (before is None):
                raise build_moved_error(self._path)
            if status is None or before is None:
                continue
            if not status.is_same_file(before):
                raise build_moved_error(self._path)
            if status.size < before.size:
                shortened.append((file, status))
        for file, status in shortened:
            if not self._is_complete(connection, file, status):
                self.is_truncated = True
                raise build_truncated_error(self._path)
            self._statuses[file] = status

    def check_identity(self) -> None:
        """Raise JournalError if the database is not the file that was opened.

        For a guard without a connection.
        """
        status, before = FileStatus.from_path(self._database), self._statuses[self._database]
        if status is None or before is None or not status.is_same_file(before):
            raise build_moved_error(self._path)

    def record(self, connection: sqlite3.Connection) -> None:
        """Record the sizes of the files after a commit or a checkpoint.

        The commit or checkpoint is the connection's own.

        A file that is shorter than before keeps its size here, and is examined by the next `check`.
        """
        if self.is_truncated:
            return
        # Read before the sizes: a change by another process in between must not count as seen.
        self._data_version = _fetch_data_version(connection)
        for file in (self._database, self._log, self._index):
            status, before = FileStatus.from_path(file), self._statuses.get(file)
            smallest = 0 if before is None else before.size
            if file == self._log:
                smallest = min(smallest, LOG_SIZE_LIMIT_BYTES)
            if before is None or (status is not None and status.is_same_file(before) and status.size >= smallest):
                self._statuses[file] = status

    def _is_complete(self, connection: sqlite3.Connection, file: str, status: FileStatus) -> bool:
        """Return whether a file that became shorter has all that SQLite needs of it."""
        if file == self._database:
            return not has_missing_pages(connection, self._path)
        if file == self._index or _fetch_data_version(connection) == self._data_version:
            return False  # no other process has used the database, and this one did not truncate the log
        try:
            busy, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.OperationalError:
            return False
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        return bool(busy) or frames <= max(0, status.size - _LOG_HEADER_BYTES) // (_FRAME_HEADER_BYTES + page_size)


def has_missing_pages(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether the database lacks pages at its end.

    Those that are neither in the file nor in its log. SQLite would read them as zeros.
    """
    connection.execute("BEGIN")  # a snapshot: no other process can begin the log again, or shrink the file
    try:
        (page_count,) = connection.execute("PRAGMA page_count").fetchone()
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        if os.stat(path).st_size >= page_count * page_size:
            return False
        logged_pages = _read_logged_pages(get_log_path(path), page_size)
        # Examined after the log, because a checkpoint may be moving pages from it to the file.
        first_missing = os.stat(path).st_size // page_size + 1
        return not logged_pages.issuperset(range(first_missing, page_count + 1))
    finally:
        connection.execute("COMMIT")


def _read_logged_pages(log: Path, page_size: int) -> set[int]:
    """Return the numbers of the pages in the log.

    SQLite has no locks on that file; see the module `files`.
    """
    pages: set[int] = set()
    try:
        descriptor = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return pages
    try:
        salt = os.pread(descriptor, _LOG_HEADER_BYTES, 0)[_SALT_BYTES]
        offset = _LOG_HEADER_BYTES
        while len(header := os.pread(descriptor, _FRAME_HEADER_BYTES, offset)) == _FRAME_HEADER_BYTES:
            page, frame_salt = _FRAME_HEADER.unpack(header)
            if frame_salt != salt:  # from here on it is left over from before the log was begun again
                break
            pages.add(page)
            offset += _FRAME_HEADER_BYTES + page_size
    finally:
        os.close(descriptor)
    return pages


def _fetch_data_version(connection: sqlite3.Connection) -> int | None:
    try:
        (version,) = connection.execute("PRAGMA data_version").fetchone()
    except sqlite3.Error:
        return None
    assert isinstance(version, int)
    return version


def build_moved_error(path: Path) -> JournalError:
    """Return the error for a journal that is no longer the file that was opened."""
    return JournalError(
        f"the journal {path} was removed or replaced while in use; changes are refused until it is back: "
        f"put it back, or mount again"
    )


def build_truncated_error(path: Path) -> JournalError:
    """Return the error for a journal that lost bytes while it was open."""
    return JournalError(
        f"the journal {path} or its log was truncated while in use, so changes in it are lost; more are refused: "
        f"restore it from a backup, or move it away, and mount again"
    )

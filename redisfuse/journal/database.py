"""The journal's database: checks, pragmas, migrations and errors."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import redisfuse
from redisfuse.errors import JournalError, JournalFullError, JournalLockedError, JournalReadOnlyError
from redisfuse.journal import file_guard, files

BUSY_TIMEOUT_SECONDS = 5.0  # that a write waits for another process's transaction
APPLICATION_ID = 0x72667573  # "rfus", in the file's header: identifies a journal to redisfuse and to file(1)
MIGRATION_SET = "redisfuse"


def prepare_database(path: Path, *, create: bool) -> None:
    """Check the journal at `path` and apply the migrations that it lacks.

    If there is no file and `create` is true, it is created. Raises JournalError, with a one-line reason, for a file
    that is not a journal of this user; then nothing is changed.
    """
    if create and not os.path.lexists(path):
        _create_database(path)
    files.check_file(path)
    with translate_errors(path):
        if not is_schema_current(path):
            _migrate_file(path, is_new=False)


def _create_database(path: Path) -> None:
    temporary = files.create_temporary_file(path)
    try:
        with translate_errors(path):
            _migrate_file(temporary, is_new=True)
        files.publish_file(temporary, path)
    finally:
        for suffix in ("", *files.COMPANION_SUFFIXES):
            with contextlib.suppress(OSError):
                os.unlink(f"{temporary}{suffix}")


def connect(path: Path, *, writable: bool, busy_timeout: float = BUSY_TIMEOUT_SECONDS) -> sqlite3.Connection:
    """Open a connection in autocommit mode.

    A transaction begins with an explicit BEGIN. Any thread can use it, one at a time. A journal in a directory that
    can't be written is opened read-only as an immutable file.
    """
    with translate_errors(path):
        connection = _open_connection(path, "rw" if writable else "ro", busy_timeout)
        try:
            if writable:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA wal_autocheckpoint = 0")  # the writer does it when no caller waits
                connection.execute(f"PRAGMA journal_size_limit = {file_guard.LOG_SIZE_LIMIT_BYTES}")
                # SQLite silently opens read-only a file that it can't write: try a write that changes nothing.
                connection.execute("DELETE FROM blobs WHERE id < 0")
            else:
                connection.execute("PRAGMA query_only = ON")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if file_guard.has_missing_pages(connection, path):
                raise JournalError(
                    f"the journal {path} is damaged: its file was truncated; restore it from a backup, or move it away"
                )
        except sqlite3.OperationalError as error:
            connection.close()
            if _is_unreadable(error, path):
                raise JournalError(
                    f"the journal {path} is damaged ({error}): its file was truncated, or its disk fails; "
                    "restore it from a backup, or move it away"
                ) from error
            if writable or not _needs_immutable(error, path):
                raise
            connection = _open_connection(path, "ro&immutable=1", busy_timeout)
        except BaseException:
            connection.close()
            raise
        return connection


def is_schema_current(path: Path) -> bool:
    """Return whether all migrations are applied.

    Raises JournalError if the file belongs to another program or a newer redisfuse.
    """
    with contextlib.closing(connect(path, writable=False)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        applied: set[str] = set()
        if "_sqlite_migrations" in tables:
            rows = connection.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = ?", (MIGRATION_SET,))
            applied = {name for (name,) in rows}
    available = {file.stem for file in list_migration_files()}
    if applied - available:
        raise JournalError(
            f"the journal {path} was written by a newer redisfuse (its schema has {max(applied - available)}); "
            f"it was not changed; upgrade this redisfuse"
        )
    if not applied and (tables or application_id not in (0, APPLICATION_ID)):
        raise JournalError(f"{path} is another program's database, not a journal; it was not changed")
    if not applied and application_id == 0:
        raise JournalError(f"{path} is an empty database, not a journal; it was not changed")
    return applied == available


def list_migration_files() -> list[Path]:
    """Return the files of the numbered migrations, in order."""
    return sorted(_find_migrations_folder().glob("m[0-9][0-9][0-9][0-9]_*.py"))


def _find_migrations_folder() -> Path:
    """Return the directory of the migrations.

    It is in the package (a wheel) or beside it (a source tree, an editable install).
    """
    package = Path(redisfuse.__file__).resolve().parent
    for folder in (package / "migrations", package.parent / "migrations"):
        if (folder / "m0001_journal.py").is_file():
            return folder
    raise JournalError("the journal's migrations are missing from this installation; install redisfuse again")


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the missing migrations in one transaction.

    It is an immediate transaction, so that two processes never apply the same migration.
    """
    from sqlite_utils import Database

    spec = importlib.util.spec_from_file_location("redisfuse_migrations", _find_migrations_folder() / "migrations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    connection.execute("BEGIN IMMEDIATE")
    try:
        module.migrations.apply(Database(connection, execute_plugins=False))
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def _migrate_file(path: Path, *, is_new: bool) -> None:
    with contextlib.closing(_open_connection(path, "rw", BUSY_TIMEOUT_SECONDS)) as connection:
        if is_new:
            # A change writes to a dozen pages: half the bytes of the default of 4096.
            connection.execute("PRAGMA page_size = 2048")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # so that prune can shrink the file
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        migrate(connection)


def _open_connection(path: Path, mode: str, busy_timeout: float) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}",
        uri=True,
        timeout=busy_timeout,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )


def _needs_immutable(error: sqlite3.OperationalError, path: Path) -> bool:
    """Return whether `path` can only be opened as an immutable file.

    That is a journal in a directory that can't be written (a backup, a read-only disk) and that no process has open.
    """
    wal = files.get_log_path(path)
    return (
        error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        and not (wal.exists() and wal.stat().st_size)
        and not os.access(path.parent, os.W_OK)
    )


# -- errors ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Translate SQLite's exceptions into the project's, with the path."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate_error(error, path) from error


def translate_error(error: sqlite3.Error, path: Path) -> JournalError:
    """Return the project's error for one of SQLite's."""
    code = getattr(error, "sqlite_errorcode", 0)
    primary = code & 0xFF
    if primary == sqlite3.SQLITE_FULL or (
        primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and _is_disk_full(path)
    ):
        return JournalFullError(f"the disk of the journal {path} is full; free some space, or run redisfuse prune")
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return file_guard.build_moved_error(path)
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return JournalReadOnlyError(f"the journal {path} can't be written: {error}")
    if primary == sqlite3.SQLITE_IOERR and _is_read_only(path):
        return JournalReadOnlyError(f"the journal {path} can't be written: its filesystem has become read-only")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return JournalLockedError(f"another process holds a lock on the journal {path}; try again when it has finished")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return JournalError(
            f"the journal {path} is damaged or not a database ({error}); restore it from a backup, or move it away"
        )
    if primary == sqlite3.SQLITE_CANTOPEN:
        if not os.access(path.parent, os.W_OK):
            return JournalReadOnlyError(f"the journal {path} can't be opened: its directory can't be written")
        cannot_open = JournalError(f"the journal {path} can't be opened: {error}")
        if _is_out_of_descriptors():
            cannot_open.errno = errno.EMFILE
        return cannot_open
    return JournalError(f"the journal {path}: {error}")


def _is_disk_full(path: Path) -> bool:
    """Return whether there is no room for a write past the end of the files.

    SQLite reports only "disk I/O error" when such a write fails.
    """
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    wal = files.get_log_path(path)
    with contextlib.suppress(OSError):
        if limit != resource.RLIM_INFINITY and max(file.stat().st_size for file in (path, wal)) + 65536 > limit:
            return True
    with contextlib.suppress(OSError):
        disk = os.statvfs(path.parent)
        return disk.f_bavail * disk.f_frsize < 262144
    return False


def _is_read_only(path: Path) -> bool:
    """Return whether the filesystem has become read-only under an open file.

    SQLite reports only "disk I/O error" then.
    """
    return os.path.exists(path) and not os.access(path, os.W_OK)


def _is_unreadable(error: sqlite3.Error, path: Path) -> bool:
    """Return whether SQLite failed to read, as newer versions do for missing pages."""
    is_io_error = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_IOERR
    return is_io_error and not _is_disk_full(path) and not _is_read_only(path)


def _is_out_of_descriptors() -> bool:
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return False

"""The one thread that writes to the journal.

Because of it, changes that arrive together share one fsync. `submit` queues a task and returns when the transaction
with it is on the disk. `enqueue` queues a row that is written with the next transaction, or in one of its own a moment
later; it wakes no thread. If one task of a batch fails for a reason of its own, the transaction is rolled back and
repeated with the others, so that no other task is lost with it. A task may therefore run more than once.

After an I/O error the kernel may have dropped pages that it could not write, and the next fsync may succeed
nevertheless (fsync(2), "Dealing with errors"; SQLite's write-ahead log is such pages). After an I/O error the writer
therefore accepts nothing until the contents of the log have been copied into the database and synced, and the log has
been restarted.
"""

from __future__ import annotations

import collections
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

from redisfuse.errors import JournalError
from redisfuse.journal import database
from redisfuse.journal.file_guard import FileGuard

T = TypeVar("T")
WriteTask = Callable[[sqlite3.Connection], T]

MAX_PIGGYBACK_DELAY_SECONDS = 0.1  # that enqueued rows wait for a transaction to share
MAX_JOBS_PER_TRANSACTION = 256
CHECKPOINT_BYTES = 4 << 20  # written to the log before it is copied into the database
BULK_CHECKPOINT_BYTES = 64 << 20  # the same, for commands that change many keys: a page is copied once for many rows
CACHE_KIB = 8192  # of pages: more than one transaction with chunks of a large content has, which would else spill
ESTIMATED_LOG_BYTES_PER_ROW = 8192
ESTIMATED_LOG_BYTES_PER_FURTHER_ROW = 2048  # of a transaction of more than ROWS_WITH_OWN_PAGES
ROWS_WITH_OWN_PAGES = 100

_SAFE_ERROR_CODES = (  # after these the log is not suspect
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_TOOBIG,
)


def no_op(_: sqlite3.Connection) -> None:
    """Do nothing: a task that flushes the enqueued rows."""


class _WriteJob(Generic[T]):
    """A task in the queue, and its result."""

    __slots__ = ("done", "durable", "error", "result", "task")

    def __init__(self, task: WriteTask[T], durable: bool) -> None:
        self.task = task
        self.durable = durable
        self.done = threading.Lock()  # locked until the writer's thread releases it
        self.done.acquire()
        self.result: T
        self.error: BaseException | None = None

    def wait(self) -> T:
        """Return the task's result once its transaction is committed, or raise its error."""
        self.done.acquire()
        if self.error is not None:
            raise self.error
        return self.result


class JournalWriter:
    """A queue of tasks and the thread that commits them.

    Thread-safe. Can't be used after a fork.
    """

    def __init__(
        self,
        path: Path,
        *,
        busy_timeout: float = database.BUSY_TIMEOUT_SECONDS,
        checkpoint_bytes: int = CHECKPOINT_BYTES,
    ) -> None:
        self._path = path
        self._checkpoint_bytes = checkpoint_bytes
        self._busy_timeout = busy_timeout
        # Used by callers and the thread:
        self._queue: queue.SimpleQueue[_WriteJob[Any] | None] = queue.SimpleQueue()  # None: only wakes the thread
        self._piggybacked_rows: collections.deque[tuple[str, tuple[Any, ...]]] = collections.deque()
        self._is_idle = False  # the thread waits without a time-out
        self._expects_rows = False  # after a job: its outcome follows soon, and need not wake the thread
        self._is_stopping = False
        self._is_closed = False
        # Used by the thread only, once it runs:
        self._is_wal_suspect = False  # an I/O error occurred; see the module's docstring
        self._synchronous = "FULL"
        self._bytes_since_checkpoint = 0
        self._connection: sqlite3.Connection | None = None
        self._guard: FileGuard
        self._open_connection()
        self._thread = threading.Thread(target=self._run_loop, name="journal", daemon=True)
        self._thread.start()

    def submit(self, task: WriteTask[T], *, durable: bool = True) -> T:
        """Run `task(connection)` in a transaction and return its result.

        It returns once the transaction is committed. `durable`: and once it is on the disk. The caller blocks
        meanwhile, so it must hold no lock that a task takes. Raises JournalError or one of its subclasses if the commit
        fails, else whatever the task raised.
        """
        if self._is_closed:
            raise JournalError(f"the journal {self._path} is closed")
        job = _WriteJob(task, durable)
        self._queue.put(job)
        return job.wait()

    def enqueue(self, sql: str, row: tuple[Any, ...]) -> None:
        """Run `sql` with `row` in the next transaction, or in its own a moment later.

        The statement must not be one that can fail.
        """
        if self._is_closed:
            raise JournalError(f"the journal {self._path} is closed")
        self._piggybacked_rows.append((sql, row))
        if self._is_idle:
            self._queue.put(None)

    def close(self) -> None:
        """Write everything that is queued and end the thread.

        Raises JournalError if the write fails.
        """
        if self._is_closed:
            return
        self._is_closed = True
        job = _WriteJob[None](no_op, durable=True)
        self._queue.put(job)
        try:
            job.wait()
        finally:
            self._is_stopping = True
            self._queue.put(None)
            if not self._guard.is_truncated:
                self._thread.join()
                if self._connection is not None:
                    self._connection.close()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run_loop(self) -> None:
        while not self._is_stopping:
            jobs = self._collect_jobs()
            if jobs or self._piggybacked_rows:
                self._run_jobs(jobs)
                if self._connection is not None:
                    self._guard.record(self._connection)
                    self._checkpoint_if_due(self._connection)
        if self._guard.is_truncated:
            # To close the connection would copy what is left of the log into the database, and damage it more. So this
            # (daemon) thread keeps it until the process exits.
            threading.Event().wait()

    def _collect_jobs(self) -> list[_WriteJob[Any]]:
        """Wait for jobs and return them.

        Returns none when enqueued rows have waited long enough, and when the writer is stopping.
        """
        jobs: list[_WriteJob[Any]] = []
        with contextlib.suppress(queue.Empty):
            job = self._wait_for_job()
            while job is not None and len(jobs) < MAX_JOBS_PER_TRANSACTION:
                jobs.append(job)
                job = self._queue.get_nowait()
        return jobs

    def _wait_for_job(self) -> _WriteJob[Any] | None:
        """Return the next job.

        Raises queue.Empty when enqueued rows have waited long enough.
        """
        if not self._expects_rows and not self._piggybacked_rows:
            self._is_idle = True
            try:
                if not self._piggybacked_rows:  # `enqueue` may have appended a row before it could see _is_idle
                    job = self._queue.get()
                    if job is not None or self._is_stopping:
                        self._expects_rows = True
                        return job
            finally:
                self._is_idle = False
        self._expects_rows = False
        job = self._queue.get(timeout=MAX_PIGGYBACK_DELAY_SECONDS)
        self._expects_rows = True
        return job

    def _run_jobs(self, jobs: list[_WriteJob[Any]]) -> None:
        try:
            with database.translate_errors(self._path):
                self._commit_jobs(jobs)
        except BaseException as error:
            for job in jobs:
                job.error = job.error or error
        for job in jobs:
            job.done.release()

    def _commit_jobs(self, jobs: list[_WriteJob[Any]]) -> None:
        connection = self._get_trusted_connection()
        changes_before = connection.total_changes
        row_count = len(self._piggybacked_rows)
        remaining = jobs
        try:
            self._set_synchronous(connection, "FULL" if any(job.durable for job in jobs) else "NORMAL")
            while True:
                connection.execute("BEGIN IMMEDIATE")
                self._write_piggybacked_rows(connection, row_count)
                if self._execute_jobs(remaining):
                    break
                connection.execute("ROLLBACK")
                remaining = [job for job in remaining if job.error is None]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._is_wal_suspect = getattr(error, "sqlite_errorcode", 0) & 0xFF not in _SAFE_ERROR_CODES
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()
            raise
        except BaseException:
            connection.rollback()
            raise
        for _ in range(row_count):
            self._piggybacked_rows.popleft()
        self._bytes_since_checkpoint += _estimate_log_bytes(connection.total_changes - changes_before)

    def _write_piggybacked_rows(self, connection: sqlite3.Connection, row_count: int) -> None:
        """Write the oldest enqueued rows, in their order."""
        for sql, rows in groupby(islice(self._piggybacked_rows, row_count), key=itemgetter(0)):
            connection.executemany(sql, [row for _, row in rows])

    def _execute_jobs(self, jobs: list[_WriteJob[Any]]) -> bool:
        """Run the tasks; return False if one failed for a reason of its own.

        An error of the database is raised: it fails all of them.
        """
        assert self._connection is not None
        for job in jobs:
            try:
                job.result = job.task(self._connection)
            except sqlite3.Error:
                raise
            except Exception as error:
                job.error = error
                return False
        return True

    def _get_trusted_connection(self) -> sqlite3.Connection:
        """Return a connection to the file at the path, reopened after an I/O error.

        Raises JournalError if a file of the journal was truncated, removed or replaced.
        """
        if self._connection is None:
            self._guard.check_identity()
        else:
            self._guard.check(self._connection)
        if self._is_wal_suspect or self._connection is None:
            self._reopen_connection()
        assert self._connection is not None
        return self._connection

    def _open_connection(self) -> sqlite3.Connection:
        self._connection = database.connect(self._path, writable=True, busy_timeout=self._busy_timeout)
        self._connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._synchronous = "FULL"
        self._guard = FileGuard(self._path, self._connection)
        return self._connection

    def _reopen_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        connection = self._open_connection()
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._guard = FileGuard(self._path, connection)
        if busy:
            raise JournalError(
                f"the journal {self._path} can't be checked after an I/O error while another process uses it; try again"
            )
        self._is_wal_suspect = False

    def _set_synchronous(self, connection: sqlite3.Connection, level: str) -> None:
        if level != self._synchronous:
            connection.execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level

    def _checkpoint_if_due(self, connection: sqlite3.Connection) -> None:
        """Copy the log into the database once it is long enough.

        No caller waits for this.
        """
        if self._bytes_since_checkpoint < self._checkpoint_bytes or self._guard.is_truncated:
            return
        self._bytes_since_checkpoint = 0
        try:
            self._set_synchronous(connection, "FULL")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self._guard.record(connection)
        except sqlite3.Error as error:
            self._is_wal_suspect = getattr(error, "sqlite_errorcode", 0) & 0xFF not in _SAFE_ERROR_CODES


def _estimate_log_bytes(rows: int) -> int:
    """Return the approximate bytes that a transaction wrote to the log."""
    further_rows = max(0, rows - ROWS_WITH_OWN_PAGES)
    return (rows - further_rows) * ESTIMATED_LOG_BYTES_PER_ROW + further_rows * ESTIMATED_LOG_BYTES_PER_FURTHER_ROW

"""The one thread that writes to the journal, so that changes which arrive together share one fsync.

`submit` hands it a piece of work and returns when the transaction with it is on the disk; `enqueue` hands it rows that
may ride in somebody's next transaction, or go alone a moment later, and wakes nobody. If one work of a batch fails for
itself, the transaction is begun anew with the others: it takes nothing with it. So a work may run more than once.

After an I/O error the kernel may have dropped pages that it could not write and say "done" to the next fsync (fsync(2),
"Dealing with errors"; SQLite's log is such pages). So nothing is accepted after one until the log's content has been
copied into the database, that is on the disk, and the log begins anew.
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
from redisfuse.journal.files import FileIdentity

T = TypeVar("T")
WriteTask = Callable[[sqlite3.Connection], T]

MAX_PIGGYBACK_DELAY_SECONDS = 0.1  # seconds that rows handed to `enqueue` wait at most for company
MAX_JOBS_PER_TRANSACTION = 256  # works in one transaction
CHECKPOINT_BYTES = 4 << 20  # bytes written to the log before it is copied into the database

_SAFE_ERROR_CODES = (  # after these nothing of the log is in doubt
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_TOOBIG,
)


def no_op(_: sqlite3.Connection) -> None:
    """No work: for those who want what waits to be written."""


class _WriteJob(Generic[T]):
    __slots__ = ("done", "durable", "error", "result", "work")

    def __init__(self, task: WriteTask[T], durable: bool) -> None:
        self.work = task
        self.durable = durable
        self.done = threading.Lock()
        self.done.acquire()
        self.result: T
        self.error: BaseException | None = None

    def wait(self) -> T:
        self.done.acquire()
        if self.error is not None:
            raise self.error
        return self.result


class JournalWriter:
    """Thread-safe. Not to be carried over a fork."""

    def __init__(self, path: Path, *, busy_timeout: float = database.BUSY_TIMEOUT_SECONDS) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._queue: queue.SimpleQueue[_WriteJob[Any] | None] = queue.SimpleQueue()  # None: look again
        self._piggybacked_rows: collections.deque[tuple[str, tuple[Any, ...]]] = collections.deque()
        self._is_idle = False  # the thread waits without a limit
        self._is_stopping = False
        self._is_wal_suspect = False  # an I/O error happened; see the module's docstring
        self._synchronous = "FULL"
        self._bytes_since_checkpoint = 0
        self._is_closed = False
        self._connection: sqlite3.Connection | None = None
        self._file_identities: dict[Path, FileIdentity | None] = {}
        self._open_connection()
        self._thread = threading.Thread(target=self._run_loop, name="journal", daemon=True)
        self._thread.start()

    def submit(self, task: WriteTask[T], *, durable: bool = True) -> T:
        """Run `work(connection)` in a transaction and return its result when that is committed.

        Durable: and on the disk. Raises JournalError's kinds if it is not, or whatever `work` raised.
        """
        if self._is_closed:
            raise JournalError(f"the journal {self._path} is closed")
        job = _WriteJob(task, durable)
        self._queue.put(job)
        return job.wait()

    def enqueue(self, sql: str, row: tuple[Any, ...]) -> None:
        """Run `sql` with `row` in the next transaction, or in one of its own a moment later. It must not fail."""
        if self._is_closed:
            raise JournalError(f"the journal {self._path} is closed")
        self._piggybacked_rows.append((sql, row))
        if self._is_idle:
            self._queue.put(None)

    def close(self) -> None:
        """Write what is waiting and end the thread. Raises the error if that could not be written."""
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
            self._thread.join()
            if self._connection is not None:
                self._connection.close()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run_loop(self) -> None:
        while not self._is_stopping:
            jobs = self._collect_jobs()
            if jobs or self._piggybacked_rows:
                self._run_jobs(jobs)
                self._checkpoint_if_due()

    def _collect_jobs(self) -> list[_WriteJob[Any]]:
        """What is waiting: jobs; or none if riders have waited long enough, or if it is the end."""
        jobs: list[_WriteJob[Any]] = []
        with contextlib.suppress(queue.Empty):
            first = self._wait_for_job()
            while first is not None and len(jobs) < MAX_JOBS_PER_TRANSACTION:
                jobs.append(first)
                first = self._queue.get_nowait()
        return jobs

    def _wait_for_job(self) -> _WriteJob[Any] | None:
        """The next job. Raises queue.Empty when the riders have waited long enough."""
        if not self._piggybacked_rows:
            self._is_idle = True
            try:
                if not self._piggybacked_rows:  # one may have come before it could see that we sleep
                    item = self._queue.get()
                    if item is not None or self._is_stopping:
                        return item
            finally:
                self._is_idle = False
        return self._queue.get(timeout=MAX_PIGGYBACK_DELAY_SECONDS)

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
        before = connection.total_changes
        riders = len(self._piggybacked_rows)
        left = jobs
        try:
            self._set_synchronous(connection, "FULL" if any(job.durable for job in jobs) else "NORMAL")
            while True:
                connection.execute("BEGIN IMMEDIATE")
                self._write_piggybacked_rows(connection, riders)
                if self._execute_jobs(left):
                    break
                connection.execute("ROLLBACK")
                left = [job for job in left if job.error is None]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._is_wal_suspect = getattr(error, "sqlite_errorcode", 0) & 0xFF not in _SAFE_ERROR_CODES
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()
            raise
        except BaseException:
            connection.rollback()
            raise
        for _ in range(riders):
            self._piggybacked_rows.popleft()
        self._bytes_since_checkpoint += (connection.total_changes - before) * 8192

    def _write_piggybacked_rows(self, connection: sqlite3.Connection, row_count: int) -> None:
        """Write the oldest riders, in their order."""
        for sql, rows in groupby(islice(self._piggybacked_rows, row_count), key=itemgetter(0)):
            connection.executemany(sql, [row for _, row in rows])

    def _execute_jobs(self, jobs: list[_WriteJob[Any]]) -> bool:
        """Do the jobs; False if one failed for itself (an error of the database fails them all)."""
        assert self._connection is not None
        for job in jobs:
            try:
                job.result = job.work(self._connection)
            except sqlite3.Error:
                raise
            except Exception as error:
                job.error = error
                return False
        return True

    def _get_trusted_connection(self) -> sqlite3.Connection:
        """A connection whose file is still the one at the path, and that is not in doubt after an I/O error."""
        for path, mark in self._file_identities.items():
            if FileIdentity.from_path(path) != mark:
                raise database.build_moved_error(self._path)
        if self._is_wal_suspect or self._connection is None:
            self._reopen_connection()
        assert self._connection is not None
        return self._connection

    def _open_connection(self) -> None:
        connection = database.connect(self._path, writable=True, busy_timeout=self._busy_timeout)
        self._synchronous = "FULL"
        self._connection = connection
        log = self._path.with_name(self._path.name + "-wal")
        self._file_identities = {file: FileIdentity.from_path(file) for file in (self._path, log)}

    def _reopen_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._open_connection()
        assert self._connection is not None
        busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise JournalError(
                f"the journal {self._path} had an I/O error and another process keeps it from being checked; try again"
            )
        self._is_wal_suspect = False

    def _set_synchronous(self, connection: sqlite3.Connection, level: str) -> None:
        if level != self._synchronous:
            connection.execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level

    def _checkpoint_if_due(self) -> None:
        """Copy the log into the database, while nobody waits for it."""
        if self._bytes_since_checkpoint < CHECKPOINT_BYTES or self._connection is None:
            return
        self._bytes_since_checkpoint = 0
        try:
            self._set_synchronous(self._connection, "FULL")
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            self._is_wal_suspect = getattr(error, "sqlite_errorcode", 0) & 0xFF not in _SAFE_ERROR_CODES

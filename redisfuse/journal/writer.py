"""The one thread that writes to the journal, so that changes which arrive together share one fsync.

`submit` hands it a piece of work and returns when the transaction with it is on the disk; `later` hands it rows that
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
from redisfuse.journal.files import Mark

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

RIDE = 0.1  # seconds that rows handed to `later` wait at most for company
BATCH = 256  # works in one transaction
CHECKPOINT = 4 << 20  # bytes written to the log before it is copied into the database

_HARMLESS = (  # after these nothing of the log is in doubt
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_TOOBIG,
)


def nothing(_: sqlite3.Connection) -> None:
    """No work: for those who want what waits to be written."""


class _Job(Generic[T]):
    __slots__ = ("done", "durable", "error", "result", "work")

    def __init__(self, work: Work[T], durable: bool) -> None:
        self.work = work
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


class Writer:
    """Thread-safe. Not to be carried over a fork."""

    def __init__(self, path: Path, *, busy_timeout: float = database.BUSY_TIMEOUT) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._queue: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()  # None: look again
        self._riders: collections.deque[tuple[str, tuple[Any, ...]]] = collections.deque()
        self._sleeping = False  # the thread waits without a limit
        self._closing = False
        self._suspect = False  # an I/O error happened; see the module's docstring
        self._synchronous = "FULL"
        self._since_checkpoint = 0
        self._closed = False
        self._connection: sqlite3.Connection | None = None
        self._marks: dict[Path, Mark | None] = {}
        self._open()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def submit(self, work: Work[T], *, durable: bool = True) -> T:
        """Run `work(connection)` in a transaction and return its result when that is committed.

        Durable: and on the disk. Raises JournalError's kinds if it is not, or whatever `work` raised.
        """
        if self._closed:
            raise JournalError(f"the journal {self._path} is closed")
        job = _Job(work, durable)
        self._queue.put(job)
        return job.wait()

    def later(self, sql: str, row: tuple[Any, ...]) -> None:
        """Run `sql` with `row` in the next transaction, or in one of its own a moment later. It must not fail."""
        if self._closed:
            raise JournalError(f"the journal {self._path} is closed")
        self._riders.append((sql, row))
        if self._sleeping:
            self._queue.put(None)

    def close(self) -> None:
        """Write what is waiting and end the thread. Raises the error if that could not be written."""
        if self._closed:
            return
        self._closed = True
        job = _Job[None](nothing, durable=True)
        self._queue.put(job)
        try:
            job.wait()
        finally:
            self._closing = True
            self._queue.put(None)
            self._thread.join()
            if self._connection is not None:
                self._connection.close()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            jobs = self._collect()
            if jobs or self._riders:
                self._transact(jobs)
                self._checkpoint_if_due()

    def _collect(self) -> list[_Job[Any]]:
        """What is waiting: jobs; or none if riders have waited long enough, or if it is the end."""
        jobs: list[_Job[Any]] = []
        with contextlib.suppress(queue.Empty):
            first = self._wait()
            while first is not None and len(jobs) < BATCH:
                jobs.append(first)
                first = self._queue.get_nowait()
        return jobs

    def _wait(self) -> _Job[Any] | None:
        """The next job. Raises queue.Empty when the riders have waited long enough."""
        if not self._riders:
            self._sleeping = True
            try:
                if not self._riders:  # one may have come before it could see that we sleep
                    item = self._queue.get()
                    if item is not None or self._closing:
                        return item
            finally:
                self._sleeping = False
        return self._queue.get(timeout=RIDE)

    def _transact(self, jobs: list[_Job[Any]]) -> None:
        try:
            with database.translated(self._path):
                self._attempt(jobs)
        except BaseException as error:
            for job in jobs:
                job.error = job.error or error
        for job in jobs:
            job.done.release()

    def _attempt(self, jobs: list[_Job[Any]]) -> None:
        connection = self._ready()
        before = connection.total_changes
        riders = len(self._riders)
        left = jobs
        try:
            self._set_synchronous(connection, "FULL" if any(job.durable for job in jobs) else "NORMAL")
            while True:
                connection.execute("BEGIN IMMEDIATE")
                self._ride(connection, riders)
                if self._work(left):
                    break
                connection.execute("ROLLBACK")
                left = [job for job in left if job.error is None]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._suspect = getattr(error, "sqlite_errorcode", 0) & 0xFF not in _HARMLESS
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()
            raise
        except BaseException:
            connection.rollback()
            raise
        for _ in range(riders):
            self._riders.popleft()
        self._since_checkpoint += (connection.total_changes - before) * 8192

    def _ride(self, connection: sqlite3.Connection, riders: int) -> None:
        """Write the oldest riders, in their order."""
        for sql, rows in groupby(islice(self._riders, riders), key=itemgetter(0)):
            connection.executemany(sql, [row for _, row in rows])

    def _work(self, jobs: list[_Job[Any]]) -> bool:
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

    def _ready(self) -> sqlite3.Connection:
        """A connection whose file is still the one at the path, and that is not in doubt after an I/O error."""
        for path, mark in self._marks.items():
            if Mark.of(path) != mark:
                raise database.moved(self._path)
        if self._suspect or self._connection is None:
            self._reopen()
        assert self._connection is not None
        return self._connection

    def _open(self) -> None:
        connection = database.connect(self._path, write=True, busy_timeout=self._busy_timeout)
        self._synchronous = "FULL"
        self._connection = connection
        log = self._path.with_name(self._path.name + "-wal")
        self._marks = {file: Mark.of(file) for file in (self._path, log)}

    def _reopen(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._open()
        assert self._connection is not None
        busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise JournalError(
                f"the journal {self._path} had an I/O error and another process keeps it from being checked; try again"
            )
        self._suspect = False

    def _set_synchronous(self, connection: sqlite3.Connection, level: str) -> None:
        if level != self._synchronous:
            connection.execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level

    def _checkpoint_if_due(self) -> None:
        """Copy the log into the database, while nobody waits for it."""
        if self._since_checkpoint < CHECKPOINT or self._connection is None:
            return
        self._since_checkpoint = 0
        try:
            self._set_synchronous(self._connection, "FULL")
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            self._suspect = getattr(error, "sqlite_errorcode", 0) & 0xFF not in _HARMLESS

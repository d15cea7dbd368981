"""The journal: records changes before they reach Redis, and their outcomes.

Thread-safe. Open it after a fork, not before: the writer's thread does not survive one.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from redisfuse.errors import JournalError, JournalReadOnlyError, NotFoundError
from redisfuse.journal import (
    blobs,
    change_rows,
    database,
    directory_rows,
    files,
    fingerprint_rows,
    key_history,
    operations,
    sessions,
)
from redisfuse.journal.change_filter import ChangeFilter, KeySpan
from redisfuse.journal.directory_rows import DirectoryComponents
from redisfuse.journal.models import (
    Change,
    ChangeIntent,
    JournalSession,
    Outcome,
    ServerFingerprint,
    SessionMetadata,
)
from redisfuse.journal.net_change import NetChanges
from redisfuse.journal.operations import OperationSummary
from redisfuse.journal.processes import DEFAULT_IDLE_MS, OperationTracker
from redisfuse.journal.reader import JournalReader
from redisfuse.journal.reversals import ReversalIndex
from redisfuse.journal.writer import CHECKPOINT_BYTES, JournalWriter, no_op
from redisfuse.text import literal_glob


class Journal:
    """An open journal, as `Journal.open` returns it."""

    def __init__(
        self, path: Path, reader: JournalReader, writer: JournalWriter | None, operations: OperationTracker
    ) -> None:
        self.path = path
        self.reader = reader
        self._writer = writer
        self._operations = operations
        self._pid = os.getpid()
        self._has_unpublished_outcomes = False  # set before outcomes are enqueued; queries would not see them yet

    @property
    def writable(self) -> bool:
        """Whether the journal was opened for writing."""
        return self._writer is not None

    @classmethod
    def open(
        cls,
        path: Path | None = None,
        *,
        create: bool = False,
        writable: bool = True,
        busy_timeout: float = database.BUSY_TIMEOUT_SECONDS,
        operation_idle_ms: int | None = DEFAULT_IDLE_MS,
        checkpoint_bytes: int = CHECKPOINT_BYTES,
    ) -> Journal:
        """Open the journal at `path`, or create it if `create` is true.

        Without a path it is `files.default_path()`. `busy_timeout`: seconds that a write waits for another process's
        transaction. `operation_idle_ms`: how long a process may pause within an operation; None: any time.
        `checkpoint_bytes`: the size of the log at which it is copied into the database. Raises
        JournalError, with the reason and the path, if the file is not a journal that only this user can read; then
        nothing was changed.
        """
        path = path if path is not None else files.default_path()
        database.prepare_database(path, create=create)
        reader = JournalReader(path, busy_timeout=busy_timeout)
        writer = JournalWriter(path, busy_timeout=busy_timeout, checkpoint_bytes=checkpoint_bytes) if writable else None
        return cls(path, reader, writer, OperationTracker(operation_idle_ms))

    # -- sessions ----------------------------------------------------------------------------------------------------

    def begin_session(self, metadata: SessionMetadata) -> int:
        """Record the begin of a session and return its id."""
        return self._require_writer().submit(lambda connection: sessions.insert_session(connection, metadata, now_ms()))

    def end_session(self, session_id: int) -> None:
        """Record the end of a session."""
        self._require_writer().submit(lambda connection: sessions.end_session(connection, session_id, now_ms()))

    def get_session(self, session_id: int) -> JournalSession:
        """Return one session. Raises NotFoundError."""
        session = sessions.fetch_session(self.reader, session_id)
        if session is None:
            raise NotFoundError(f"there is no session {session_id} in the journal {self.path}")
        return session

    def iter_sessions(self, limit: int | None = None) -> Iterator[tuple[JournalSession, int]]:
        """Yield sessions, newest first, each with the number of its changes."""
        return sessions.iter_newest_sessions(self.reader, limit)

    def get_fingerprint(self, session_id: int) -> ServerFingerprint | None:
        """Return the fingerprint of a session's server; None if there is none."""
        return fingerprint_rows.fetch_fingerprint(self.reader, session_id)

    def find_changed_keys(self, server_name: str, keys: Iterable[bytes], since_ms: int) -> set[bytes]:
        """Return the keys that were, or may have been, changed since a time."""
        self._publish_own_outcomes()
        return fingerprint_rows.find_changed_keys(self.reader, server_name, keys, since_ms)

    def count_changes(self, server_name: str, since_ms: int) -> int:
        """Return the number of the changes on a server since a time."""
        self._publish_own_outcomes()
        return fingerprint_rows.count_changes(self.reader, server_name, since_ms)

    def add_recognized_run(self, run_id: str, earlier: str) -> None:
        """Record that a run of a server has the data of an earlier one."""
        self._require_writer().submit(lambda db: fingerprint_rows.add_recognized_run(db, run_id, earlier))

    def is_recognized_run(self, run_id: str, earlier: str) -> bool:
        """Return whether a run is recorded to have an earlier one's data."""
        return fingerprint_rows.is_recognized_run(self.reader, run_id, earlier)

    def get_newest_session(self, server_name: str) -> JournalSession | None:
        """Return the newest session of a server; None if there is none."""
        return sessions.fetch_newest_session(self.reader, server_name)

    # -- writing changes ---------------------------------------------------------------------------------------------

    def record_intents(
        self,
        session_id: int,
        intents: Sequence[ChangeIntent],
        *,
        outcome: Outcome = "pending",
        error: str | None = None,
        grouping: bool | Sequence[int] = True,
        connection_id: str | None = None,
    ) -> list[int]:
        """Record changes that are about to be made, and return their ids.

        With outcome `refused`, they are changes that were not made; with `held`, that may be made later. `grouping`:
        whether all are one operation, or the sizes of several operations. `connection_id`: the connection that is to
        execute them. The ids are in the order of the intents. The rows are on the disk on return. Raises JournalError
        or one of its subclasses: then none of them is recorded, and the caller must not make the changes.
        """
        writer = self._require_writer()
        if not intents:
            return []
        recorded_at = now_ms()

        def insert(connection: sqlite3.Connection, prepared: Sequence[blobs.PreparedBlob]) -> list[int]:
            return change_rows.insert_changes(
                connection,
                session_id,
                intents,
                {each.blob.digest: blobs.insert_blob(connection, each) for each in prepared},
                outcome=outcome,
                error=error,
                recorded_at=recorded_at,
                grouping=grouping,
                operations=self._operations,
                connection_id=connection_id,
            )

        for force_stage in (False, True):
            with (
                contextlib.suppress(blobs.BlobPrunedError),
                blobs.prepared_blobs(writer, self.reader, intents, force_stage=force_stage) as prepared,
            ):
                return writer.submit(partial(insert, prepared=prepared))
        raise JournalError(
            f"a value was pruned from the journal {self.path} while a change of it was recorded; try again"
        )

    def record_connection(self, change_ids: Sequence[int], connection_id: str | None) -> None:
        """Record which connection is to execute pending changes.

        A crash of this process does not undo that; a power failure may.
        """
        writer = self._require_writer()
        for id in change_ids:
            writer.enqueue(change_rows.UPDATE_CONNECTION_SQL, (connection_id, id))
        writer.submit(no_op, durable=False)

    def record_outcome(self, change_ids: Sequence[int], outcome: Outcome, error: str | None = None) -> None:
        """Record the outcome of changes.

        Other processes see it within a second. It is on the disk with the next change, or at `flush` or `close`.
        """
        settled_at = now_ms()
        writer = self._require_writer()
        self._has_unpublished_outcomes = True
        for id in change_ids:
            writer.enqueue(change_rows.UPDATE_OUTCOME_SQL, (outcome, error, settled_at, id))

    def discard_held(self, change_id: int) -> None:
        """Remove a held change, whose file was removed.

        A crash of this process does not undo that.
        """
        self._require_writer().enqueue(change_rows.DELETE_HELD_SQL, (change_id,))
        self.publish_outcomes()

    def publish_outcomes(self) -> None:
        """Commit the recorded outcomes, so that other processes see them.

        A power failure may still undo them.
        """
        if self._writer is not None:
            self._writer.submit(no_op, durable=False)

    def flush(self) -> None:
        """Write the recorded outcomes to the disk."""
        if self._writer is not None:
            self._has_unpublished_outcomes = False
            self._writer.submit(no_op)

    # -- reading changes ---------------------------------------------------------------------------------------------

    def get_change(self, change_id: int) -> Change:
        """Return one change. Raises NotFoundError."""
        self._publish_own_outcomes()
        change = change_rows.fetch_change(self.reader, change_id)
        if change is None:
            raise NotFoundError(f"there is no change {change_id} in the journal {self.path}")
        return change

    def fetch_changes(self, change_ids: Sequence[int]) -> Iterator[Change]:
        """Yield the changes with these ids that exist, in this order."""
        self._publish_own_outcomes()
        return change_rows.fetch_changes(self.reader, list(change_ids))

    def find_changes(self, change_filter: ChangeFilter = ChangeFilter()) -> Iterator[Change]:  # noqa: B008 - frozen
        """Yield the changes that match a filter, fetched a page at a time.

        The newest is first, unless `oldest_first` is set.
        """
        self._publish_own_outcomes()
        return change_rows.find_changes(self.reader, change_filter)

    def find_net_changes(self, change_filter: ChangeFilter) -> NetChanges:
        """Return the net changes of what matches a filter, oldest first."""
        self._publish_own_outcomes()
        return NetChanges(self.reader, change_filter)

    def get_group(self, group_id: int) -> list[Change]:
        """Return the changes of one operation, in the order in which they were recorded."""
        self._publish_own_outcomes()
        return change_rows.fetch_group(self.reader, group_id)

    def find_pending_changes(self, server_name: str | None = None) -> list[Change]:
        """Return the pending changes of a server, or of all, oldest first.

        `server_name`: ServerIdentity.name.
        """
        return list(self.find_changes(ChangeFilter(server_name=server_name, outcomes=("pending",), oldest_first=True)))

    def find_later_changes(self, change: Change, limit: int | None = None) -> list[Change]:
        """Return the later changes of the same datum, newest first.

        They are changes of the same key and server that are, or may be, in Redis.
        """
        same_key = ChangeFilter(
            server_name=change.server_name,
            key_glob=literal_glob(change.key),
            outcomes=("applied", "pending", "unknown"),
        )
        later = (other for other in self._iter_newer(same_key, change.id) if change_rows.overlaps(other, change))
        return list(islice(later, limit))

    def find_operations(self, change_filter: ChangeFilter = ChangeFilter()) -> Iterator[OperationSummary]:  # noqa: B008
        """Yield the operations with changes that meet a filter, newest first."""
        self._publish_own_outcomes()
        return operations.find_operations(self.reader, change_filter)

    def find_key_history(self, name: bytes, server_name: str | None = None) -> tuple[KeySpan, ...]:
        """Return when a path, or a key, had which name.

        Empty if no change has it, or for a directory.
        """
        return key_history.find_key_history(self.reader, name, server_name)

    def find_reverting_ids(self, change_id: int) -> list[int]:
        """Return the ids of the applied changes that reverted one, newest first."""
        return self.create_reversal_index().find_reverting_ids([change_id]).get(change_id, [])

    def create_reversal_index(self) -> ReversalIndex:
        """Return an index of what was taken back until now."""
        self._publish_own_outcomes()
        return ReversalIndex(self.reader)

    def _iter_newer(self, change_filter: ChangeFilter, change_id: int) -> Iterator[Change]:
        for change in self.find_changes(change_filter):
            if change.id <= change_id:
                return
            yield change

    # -- empty directories -------------------------------------------------------------------------------------------

    def list_directories(self, server_name: str) -> set[DirectoryComponents]:
        """Return the empty directories of a server's database (ServerIdentity.name)."""
        return directory_rows.fetch_directories(self.reader, server_name)

    def add_directory(self, server_name: str, directory: DirectoryComponents) -> None:
        """Add an empty directory. It is on the disk on return."""
        self.update_directories(server_name, add=[directory])

    def update_directories(
        self,
        server_name: str,
        *,
        add: Iterable[DirectoryComponents] = (),
        remove: Iterable[DirectoryComponents] = (),
        session_id: int | None = None,
        intents: Sequence[ChangeIntent] = (),
        group_id: int | None = None,
    ) -> list[int]:
        """Remove, add and journal directories in one transaction; return change ids.

        The intents are applied and one operation: that of the change `group_id`, or (None) one of their own. Their
        states are ABSENT and DIRECTORY, without contents.
        """
        added, removed = list(add), list(remove)

        def update(connection: sqlite3.Connection) -> list[int]:
            recorded_at = now_ms()
            directory_rows.update_directories(connection, server_name, added, removed, recorded_at)
            if session_id is None or not intents:
                return []
            return change_rows.insert_applied_changes(
                connection, session_id, intents, recorded_at=recorded_at, operations=self._operations, group_id=group_id
            )

        return self._require_writer().submit(update)

    # -- database ----------------------------------------------------------------------------------------------------

    def fetch_data_version(self) -> int:
        """Return a number that differs after any process has written.

        This process counts, too.
        """
        [(version,)] = self.query("PRAGMA data_version")
        assert isinstance(version, int)
        return version

    def query(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query.

        It sees everything that was committed before it began.
        """
        return self.reader.query(sql, values)

    def close(self) -> None:
        """Write everything that is queued, and close.

        Raises JournalError if the write fails.
        """
        self.reader.close()  # before the writer: the last connection to close copies the log into the database
        if self._writer is not None and self._pid == os.getpid():
            self._writer.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_writer(self) -> JournalWriter:
        if self._writer is None:
            raise JournalReadOnlyError(f"the journal {self.path} was opened for reading only")
        if self._pid != os.getpid():
            raise JournalError(f"the journal {self.path} was opened before a fork; the child must open it again")
        return self._writer

    def _publish_own_outcomes(self) -> None:
        """Commit the outcomes of this process, so that its queries see them."""
        if self._has_unpublished_outcomes:
            self._has_unpublished_outcomes = False
            self._require_writer().submit(no_op, durable=False)


def now_ms() -> int:
    """Return the Unix time in ms."""
    return time.time_ns() // 1_000_000

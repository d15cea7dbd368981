"""The journal: every change before it is in Redis, what became of it, and all that is needed to take it back.

Thread-safe. Open it after a fork, not before. Nothing here knows Redis.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from redisfuse.errors import JournalError, JournalReadOnlyError, NotFoundError
from redisfuse.journal import blobs, change_rows, database, directory_rows, files, sessions
from redisfuse.journal.change_rows import ChangeFilter
from redisfuse.journal.directory_rows import DirectoryComponents
from redisfuse.journal.models import Blob, Change, ChangeIntent, JournalSession, Outcome, SessionMetadata, State
from redisfuse.journal.writer import JournalWriter, no_op
from redisfuse.text import compile_glob, literal_glob


class Journal:
    """An open journal. Made with `Journal.open`."""

    def __init__(self, path: Path, *, writable: bool, busy_timeout: float) -> None:
        self.path = path
        self.writable = writable
        self._pid = os.getpid()
        self._busy_timeout = busy_timeout
        self._reader_lock = threading.RLock()  # held for one query; nothing is called under it
        self._reader_connection: sqlite3.Connection | None = None
        self._has_unpublished_outcomes = False  # settles that readers would not see yet were handed to the writer
        self._writer = JournalWriter(path, busy_timeout=busy_timeout) if writable else None

    @classmethod
    def open(
        cls,
        path: Path | None = None,
        *,
        create: bool = False,
        writable: bool = True,
        busy_timeout: float = database.BUSY_TIMEOUT_SECONDS,
    ) -> Journal:
        """Open the journal at `path` (default: the platform's place), making it if `create` is true.

        Raises JournalError, with the reason and the file's name, if it is not a journal of ours that only we can read;
        then nothing was altered. `busy_timeout`: seconds that a write waits for another process's.
        """
        path = path if path is not None else files.default_path()
        database.prepare_database(path, create=create)
        return cls(path, writable=writable, busy_timeout=busy_timeout)

    # -- sessions ----------------------------------------------------------------------------------------------------

    def begin_session(self, metadata: SessionMetadata) -> int:
        """Note a session that begins now; returns its id."""
        return self._require_writer().submit(lambda connection: sessions.insert_session(connection, metadata, now_ms()))

    def end_session(self, session_id: int) -> None:
        """Note that it ended."""
        self._require_writer().submit(lambda connection: sessions.end_session(connection, session_id, now_ms()))

    def get_session(self, session_id: int) -> JournalSession:
        """One session. Raises NotFoundError."""
        found = sessions.fetch_session(self.query, session_id)
        if found is None:
            raise NotFoundError(f"there is no session {session_id} in the journal {self.path}")
        return found

    def iter_sessions(self, limit: int | None = None) -> Iterator[tuple[JournalSession, int]]:
        """Sessions, newest first, each with the number of its changes."""
        return sessions.iter_newest_sessions(self.query, limit)

    # -- changes: writing --------------------------------------------------------------------------------------------

    def record_intents(
        self,
        session_id: int,
        intents: Sequence[ChangeIntent],
        *,
        outcome: Outcome = "pending",
        error: str | None = None,
        grouping: bool | Sequence[int] = True,
    ) -> list[int]:
        """Record changes that are about to be made (or, `refused`, that were not). They are on the disk on return.

        `get_group`: they are one operation; or how many of them belong to each of several operations. Returns their ids, in
        order. Raises JournalError's kinds; then none of them is recorded and nothing may be changed.
        """
        writer = self._require_writer()
        if not intents:
            return []
        contents = _collect_blobs(intents)
        at = now_ms()
        for stage_anyway in (False, True):
            ready: list[blobs.PreparedBlob] = []
            try:
                for content, fresh in contents.values():
                    made = blobs.prepare_blob(writer, self.query, content, is_new=fresh, force_stage=stage_anyway)
                    ready.append(made)

                def work(connection: sqlite3.Connection, ready: list[blobs.PreparedBlob] = ready) -> list[int]:
                    ids = {each.blob.digest: blobs.insert_blob(connection, each) for each in ready}
                    return change_rows.insert_changes(
                        connection,
                        session_id,
                        intents,
                        ids,
                        outcome=outcome,
                        error=error,
                        recorded_at=at,
                        grouping=grouping,
                    )

                return writer.submit(work)
            except BaseException as problem:
                self._discard_staged(writer, ready)
                if not isinstance(problem, blobs.BlobPrunedError) or stage_anyway:
                    raise
        raise JournalError(f"the journal {self.path} lost a content while it was being written")

    def record_outcome(self, change_ids: Sequence[int], outcome: Outcome, error: str | None = None) -> None:
        """Note what became of changes. On the disk with the next change, or within a second, or at `close`."""
        at = now_ms()
        writer = self._require_writer()
        self._has_unpublished_outcomes = True
        for id in change_ids:
            writer.enqueue(change_rows.UPDATE_OUTCOME_SQL, (outcome, error, at, id))

    def publish_outcomes(self) -> None:
        """Let other processes read what `record_outcome` has noted, now; a crash may still undo it."""
        if self._writer is not None:
            self._writer.submit(no_op, durable=False)

    def flush(self) -> None:
        """Write what `record_outcome` has noted, now."""
        if self._writer is not None:
            self._has_unpublished_outcomes = False
            self._writer.submit(no_op)

    def _discard_staged(self, writer: JournalWriter, prepared: list[blobs.PreparedBlob]) -> None:
        for each in prepared:
            if each.staged_id is not None:
                with contextlib.suppress(JournalError):
                    blobs.enqueue_discard(writer, each.staged_id)

    # -- changes: reading --------------------------------------------------------------------------------------------

    def get_change(self, change_id: int) -> Change:
        """One change. Raises NotFoundError."""
        self._publish_own_outcomes()
        found = change_rows.fetch_change(self.query, change_id)
        if found is None:
            raise NotFoundError(f"there is no change {change_id} in the journal {self.path}")
        return found

    def find_changes(self, change_filter: ChangeFilter = ChangeFilter()) -> Iterator[Change]:  # noqa: B008 - frozen
        """The changes that a filter wants, newest first unless it says otherwise, read as they are asked for."""
        self._publish_own_outcomes()
        return change_rows.find_changes(self.query, change_filter)

    def find_change_ids(self, change_filter: ChangeFilter = ChangeFilter()) -> list[int]:  # noqa: B008 - frozen
        """The same, only their ids."""
        self._publish_own_outcomes()
        return change_rows.find_change_ids(self.query, change_filter)

    def get_group(self, group_id: int) -> list[Change]:
        """The changes of one operation, in the order in which they were recorded."""
        self._publish_own_outcomes()
        return change_rows.fetch_group(self.query, group_id)

    def find_pending_changes(self, server_name: str | None = None) -> list[Change]:
        """Changes of which it is not known whether they are in Redis, oldest first (`server`: ServerIdentity.name)."""
        return list(self.find_changes(ChangeFilter(server_name=server_name, outcomes=("pending",), oldest_first=True)))

    def find_later_changes(self, change: Change, limit: int | None = None) -> list[Change]:
        """Changes to the same key of the same server after this one that are, or may be, in Redis; newest first."""
        wanted = ChangeFilter(
            server_name=change.server_name,
            key_glob=literal_glob(change.key),
            outcomes=("applied", "pending", "unknown"),
        )
        found = (each for each in self._iter_newer(wanted, change.id) if _overlaps(each, change))
        return list(islice(found, limit))

    def find_reverting_ids(self, change_id: int) -> list[int]:
        """Ids of the applied changes that wrote this change's prior state back, newest first."""
        self._publish_own_outcomes()
        rows = self.query(
            "SELECT id FROM changes WHERE reverts = ? AND reverts IS NOT NULL AND +state = 'applied' ORDER BY id DESC",
            (change_id,),
        )
        return [found for (found,) in rows]

    def _iter_newer(self, change_filter: ChangeFilter, change_id: int) -> Iterator[Change]:
        for change in self.find_changes(change_filter):
            if change.id <= change_id:
                return
            yield change

    # -- empty directories -------------------------------------------------------------------------------------------

    def list_directories(self, server_name: str) -> set[DirectoryComponents]:
        """The empty directories kept for a server's database (`server`: ServerIdentity.name)."""
        return directory_rows.fetch_directories(self.query, server_name)

    def add_directory(self, server_name: str, directory: DirectoryComponents) -> None:
        """Keep an empty directory. On the disk on return."""
        self.update_directories(server_name, add=[directory])

    def remove_directory(self, server_name: str, directory: DirectoryComponents) -> None:
        """Forget an empty directory. On the disk on return."""
        self.update_directories(server_name, remove=[directory])

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
        """Remove and add directories, and record it as `intents` (applied, one group), all in one transaction.

        `get_group`: the change whose operation this is a part of; None: it is one of its own. Returns the ids of the
        changes. The intents' states are ABSENT and DIRECTORY: they have no content.
        """
        added, removed = list(add), list(remove)

        def update(connection: sqlite3.Connection) -> list[int]:
            at = now_ms()
            directory_rows.update_directories(connection, server_name, added, removed, at)
            if session_id is None or not intents:
                return []
            ids = change_rows.insert_changes(
                connection, session_id, intents, {}, outcome="applied", error=None, recorded_at=at, grouping=True
            )
            if group_id is not None:
                change_rows.join_group(connection, ids, group_id)
            return ids

        return self._require_writer().submit(update)

    # -- the rest ----------------------------------------------------------------------------------------------------

    def fetch_data_version(self) -> int:
        """A number that is another one whenever somebody (this process too) has written to the journal since."""
        [(version,)] = self.query("PRAGMA data_version")
        assert isinstance(version, int)
        return version

    def query(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query. It sees what was committed before it began."""
        with self._reader_lock, database.translate_errors(self.path):
            if self._reader_connection is None:
                self._reader_connection = database.connect(self.path, writable=False, busy_timeout=self._busy_timeout)
                self._reader_connection.create_function("redis_glob", 2, _create_glob_function(), deterministic=True)
            return self._reader_connection.execute(sql, values).fetchall()

    def close(self) -> None:
        """Write what is waiting and close. Raises JournalError if that could not be written."""
        with self._reader_lock:
            if self._reader_connection is not None:
                self._reader_connection.close()  # before the writer: the last to close copies the log into the database
                self._reader_connection = None
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
            raise JournalReadOnlyError(f"the journal {self.path} was opened for reading")
        if self._pid != os.getpid():
            raise JournalError(f"the journal {self.path} was opened before a fork")
        return self._writer

    def _publish_own_outcomes(self) -> None:
        """Let this process read its own settles."""
        if self._has_unpublished_outcomes:
            self._has_unpublished_outcomes = False
            self._require_writer().submit(no_op, durable=False)


def now_ms() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


def _collect_blobs(intents: Sequence[ChangeIntent]) -> dict[bytes, tuple[Blob, bool]]:
    """Every content of these intents once, and whether it is new: what was there before is often in the journal."""
    found: dict[bytes, tuple[Blob, bool]] = {}
    for intent in intents:
        for state in (intent.prior, intent.new):
            for content in (state.content, state.portable_copy):
                if content is not None:
                    found.setdefault(content.digest, (content, state is intent.new))
    return found


def _overlaps(later: Change, change: Change) -> bool:
    """Whether the later change concerns the same datum: a field and its whole key do, two fields do not."""
    return later.field is None or change.field is None or later.field == change.field


def _create_glob_function() -> Any:
    """The SQL function redis_glob(pattern, key)."""
    compiled: dict[bytes, Any] = {}

    def matches_glob(pattern: bytes, key: bytes) -> bool:
        regex = compiled.get(pattern)
        if regex is None:
            literal, regex = compile_glob(pattern)
            if regex is None:
                return key == literal
            compiled[pattern] = regex
        return regex.fullmatch(key) is not None

    return matches_glob


__all__ = [
    "Blob",
    "Change",
    "ChangeFilter",
    "ChangeIntent",
    "Journal",
    "JournalSession",
    "Outcome",
    "SessionMetadata",
    "State",
]

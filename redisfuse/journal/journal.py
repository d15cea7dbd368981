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
from redisfuse.journal.change_rows import Filter
from redisfuse.journal.directory_rows import Directory
from redisfuse.journal.models import Change, Content, Intent, Outcome, Session, SessionInfo, State
from redisfuse.journal.writer import Writer, nothing
from redisfuse.text import compile_glob, literal_glob


class Journal:
    """An open journal. Made with `Journal.open`."""

    def __init__(self, path: Path, *, write: bool, busy_timeout: float) -> None:
        self.path = path
        self.writable = write
        self._process = os.getpid()
        self._busy_timeout = busy_timeout
        self._reading = threading.RLock()  # held for one query; nothing is called under it
        self._reader: sqlite3.Connection | None = None
        self._unsettled_here = False  # settles that readers would not see yet were handed to the writer
        self._writer = Writer(path, busy_timeout=busy_timeout) if write else None

    @classmethod
    def open(
        cls,
        path: Path | None = None,
        *,
        create: bool = False,
        write: bool = True,
        busy_timeout: float = database.BUSY_TIMEOUT,
    ) -> Journal:
        """Open the journal at `path` (default: the platform's place), making it if `create` is true.

        Raises JournalError, with the reason and the file's name, if it is not a journal of ours that only we can read;
        then nothing was altered. `busy_timeout`: seconds that a write waits for another process's.
        """
        path = path if path is not None else files.default_path()
        database.prepare(path, create=create)
        return cls(path, write=write, busy_timeout=busy_timeout)

    # -- sessions ----------------------------------------------------------------------------------------------------

    def begin_session(self, info: SessionInfo) -> int:
        """Note a session that begins now; returns its id."""
        return self._write().submit(lambda connection: sessions.insert(connection, info, now()))

    def end_session(self, session: int) -> None:
        """Note that it ended."""
        self._write().submit(lambda connection: sessions.end(connection, session, now()))

    def session(self, id: int) -> Session:
        """One session. Raises NotFoundError."""
        found = sessions.by_id(self.query, id)
        if found is None:
            raise NotFoundError(f"there is no session {id} in the journal {self.path}")
        return found

    def sessions(self, limit: int | None = None) -> Iterator[tuple[Session, int]]:
        """Sessions, newest first, each with the number of its changes."""
        return sessions.newest_first(self.query, limit)

    # -- changes: writing --------------------------------------------------------------------------------------------

    def intend(
        self,
        session: int,
        intents: Sequence[Intent],
        *,
        state: Outcome = "pending",
        error: str | None = None,
        group: bool | Sequence[int] = True,
    ) -> list[int]:
        """Record changes that are about to be made (or, `refused`, that were not). They are on the disk on return.

        `group`: they are one operation; or how many of them belong to each of several operations. Returns their ids, in
        order. Raises JournalError's kinds; then none of them is recorded and nothing may be changed.
        """
        writer = self._write()
        if not intents:
            return []
        contents = _contents(intents)
        at = now()
        for stage_anyway in (False, True):
            ready: list[blobs.Ready] = []
            try:
                for content, fresh in contents.values():
                    made = blobs.ready(writer, self.query, content, fresh=fresh, stage_anyway=stage_anyway)
                    ready.append(made)

                def work(connection: sqlite3.Connection, ready: list[blobs.Ready] = ready) -> list[int]:
                    ids = {each.content.digest: blobs.add(connection, each) for each in ready}
                    return change_rows.insert(
                        connection, session, intents, ids, state=state, error=error, at=at, grouped=group
                    )

                return writer.submit(work)
            except BaseException as problem:
                self._discard(writer, ready)
                if not isinstance(problem, blobs.VanishedError) or stage_anyway:
                    raise
        raise JournalError(f"the journal {self.path} lost a content while it was being written")

    def settle(self, ids: Sequence[int], state: Outcome, error: str | None = None) -> None:
        """Note what became of changes. On the disk with the next change, or within a second, or at `close`."""
        at = now()
        writer = self._write()
        self._unsettled_here = True
        for id in ids:
            writer.later(change_rows.SETTLE, (state, error, at, id))

    def show(self) -> None:
        """Let other processes read what `settle` has noted, now; a crash may still undo it."""
        if self._writer is not None:
            self._writer.submit(nothing, durable=False)

    def flush(self) -> None:
        """Write what `settle` has noted, now."""
        if self._writer is not None:
            self._unsettled_here = False
            self._writer.submit(nothing)

    def _discard(self, writer: Writer, ready: list[blobs.Ready]) -> None:
        for each in ready:
            if each.staged is not None:
                with contextlib.suppress(JournalError):
                    blobs.discard_later(writer, each.staged)

    # -- changes: reading --------------------------------------------------------------------------------------------

    def change(self, id: int) -> Change:
        """One change. Raises NotFoundError."""
        self._catch_up()
        found = change_rows.by_id(self.query, id)
        if found is None:
            raise NotFoundError(f"there is no change {id} in the journal {self.path}")
        return found

    def changes(self, wanted: Filter = Filter()) -> Iterator[Change]:  # noqa: B008 - frozen
        """The changes that a filter wants, newest first unless it says otherwise, read as they are asked for."""
        self._catch_up()
        return change_rows.matching(self.query, wanted)

    def change_ids(self, wanted: Filter = Filter()) -> list[int]:  # noqa: B008 - frozen
        """The same, only their ids."""
        self._catch_up()
        return change_rows.matching_ids(self.query, wanted)

    def group(self, id: int) -> list[Change]:
        """The changes of one operation, in the order in which they were recorded."""
        self._catch_up()
        return change_rows.of_group(self.query, id)

    def pending(self, server: str | None = None) -> list[Change]:
        """Changes of which it is not known whether they are in Redis, oldest first (`server`: ServerIdentity.name)."""
        return list(self.changes(Filter(server=server, states=("pending",), oldest_first=True)))

    def later_changes(self, change: Change, limit: int | None = None) -> list[Change]:
        """Changes to the same key of the same server after this one that are, or may be, in Redis; newest first."""
        wanted = Filter(server=change.server, key=literal_glob(change.key), states=("applied", "pending", "unknown"))
        found = (each for each in self._newer(wanted, change.id) if _touches(each, change))
        return list(islice(found, limit))

    def reverted_by(self, id: int) -> list[int]:
        """Ids of the applied changes that wrote this change's prior state back, newest first."""
        self._catch_up()
        rows = self.query(
            "SELECT id FROM changes WHERE reverts = ? AND reverts IS NOT NULL AND +state = 'applied' ORDER BY id DESC",
            (id,),
        )
        return [found for (found,) in rows]

    def _newer(self, wanted: Filter, id: int) -> Iterator[Change]:
        for change in self.changes(wanted):
            if change.id <= id:
                return
            yield change

    # -- empty directories -------------------------------------------------------------------------------------------

    def directories(self, server: str) -> set[Directory]:
        """The empty directories kept for a server's database (`server`: ServerIdentity.name)."""
        return directory_rows.of(self.query, server)

    def add_directory(self, server: str, directory: Directory) -> None:
        """Keep an empty directory. On the disk on return."""
        self.alter_directories(server, add=[directory])

    def remove_directory(self, server: str, directory: Directory) -> None:
        """Forget an empty directory. On the disk on return."""
        self.alter_directories(server, remove=[directory])

    def alter_directories(
        self,
        server: str,
        *,
        add: Iterable[Directory] = (),
        remove: Iterable[Directory] = (),
        session: int | None = None,
        intents: Sequence[Intent] = (),
        group: int | None = None,
    ) -> list[int]:
        """Remove and add directories, and record it as `intents` (applied, one group), all in one transaction.

        `group`: the change whose operation this is a part of; None: it is one of its own. Returns the ids of the
        changes. The intents' states are ABSENT and DIRECTORY: they have no content.
        """
        added, removed = list(add), list(remove)

        def work(connection: sqlite3.Connection) -> list[int]:
            at = now()
            directory_rows.alter(connection, server, added, removed, at)
            if session is None or not intents:
                return []
            ids = change_rows.insert(connection, session, intents, {}, state="applied", error=None, at=at, grouped=True)
            if group is not None:
                change_rows.join(connection, ids, group)
            return ids

        return self._write().submit(work)

    # -- the rest ----------------------------------------------------------------------------------------------------

    def data_version(self) -> int:
        """A number that is another one whenever somebody (this process too) has written to the journal since."""
        [(version,)] = self.query("PRAGMA data_version")
        assert isinstance(version, int)
        return version

    def query(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query. It sees what was committed before it began."""
        with self._reading, database.translated(self.path):
            if self._reader is None:
                self._reader = database.connect(self.path, write=False, busy_timeout=self._busy_timeout)
                self._reader.create_function("redis_glob", 2, _matcher(), deterministic=True)
            return self._reader.execute(sql, values).fetchall()

    def close(self) -> None:
        """Write what is waiting and close. Raises JournalError if that could not be written."""
        with self._reading:
            if self._reader is not None:
                self._reader.close()  # before the writer: the last to close copies the log into the database
                self._reader = None
        if self._writer is not None and self._process == os.getpid():
            self._writer.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self) -> Writer:
        if self._writer is None:
            raise JournalReadOnlyError(f"the journal {self.path} was opened for reading")
        if self._process != os.getpid():
            raise JournalError(f"the journal {self.path} was opened before a fork")
        return self._writer

    def _catch_up(self) -> None:
        """Let this process read its own settles."""
        if self._unsettled_here:
            self._unsettled_here = False
            self._write().submit(nothing, durable=False)


def now() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


def _contents(intents: Sequence[Intent]) -> dict[bytes, tuple[Content, bool]]:
    """Every content of these intents once, and whether it is new: what was there before is often in the journal."""
    found: dict[bytes, tuple[Content, bool]] = {}
    for intent in intents:
        for state in (intent.prior, intent.new):
            for content in (state.content, state.logical):
                if content is not None:
                    found.setdefault(content.digest, (content, state is intent.new))
    return found


def _touches(later: Change, change: Change) -> bool:
    """Whether the later change concerns the same datum: a field and its whole key do, two fields do not."""
    return later.field is None or change.field is None or later.field == change.field


def _matcher() -> Any:
    """The SQL function redis_glob(pattern, key)."""
    compiled: dict[bytes, Any] = {}

    def matches(pattern: bytes, key: bytes) -> bool:
        regex = compiled.get(pattern)
        if regex is None:
            literal, regex = compile_glob(pattern)
            if regex is None:
                return key == literal
            compiled[pattern] = regex
        return regex.fullmatch(key) is not None

    return matches


__all__ = ["Change", "Content", "Filter", "Intent", "Journal", "Outcome", "Session", "SessionInfo", "State"]

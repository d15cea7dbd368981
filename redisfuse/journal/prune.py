"""Pruning: removes old settled changes with their contents.

It shrinks the file. It runs beside mounts that write: on a connection of its own, in short transactions.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from more_itertools import chunked

from redisfuse.journal import blobs, database, fingerprint_rows
from redisfuse.journal.journal import Journal, now_ms

MAX_ROWS_PER_TRANSACTION = 2000  # removed, so that a mount that writes at the same time waits only briefly
STALE_STAGED_BLOB_MS = 24 * 3600 * 1000  # age at which a staged content is taken to be a dead process's
VACUUM_PAGES_PER_TRANSACTION = 4096


@dataclass(frozen=True, slots=True)
class PruneResult:
    """Numbers of the rows that were removed or, after a dry run, that would be."""

    changes: int
    sessions: int
    contents: int
    freed: int  # bytes by which the file shrank; after a dry run, the stored bytes of the contents


def prune_journal(
    journal: Journal, *, before_ms: int, keep_last: int = 0, include_refused: bool = False, dry_run: bool = False
) -> PruneResult:
    """Remove the changes recorded before `before_ms`.

    The newest `keep_last` changes are kept. Operations are removed whole or not at all. An operation with a change that
    is not settled (pending, unknown, held) is kept. So is an edit that was refused or failed and was not applied later,
    unless `include_refused`. Sessions without changes are removed if they ended, or died, before `before_ms`.
    """
    if journal.writable:
        journal.flush()
    with (
        database.translate_errors(journal.path),
        contextlib.closing(database.connect(journal.path, writable=True)) as connection,
    ):
        # A removal that a power failure undoes is repeated by the next prune. The log must not grow meanwhile.
        for setting in ("synchronous = NORMAL", "wal_autocheckpoint = 4096", "cache_size = -65536"):
            connection.execute(f"PRAGMA {setting}")
        size = _measure_disk_usage(journal)
        change_count = _collect_changes(connection, before_ms, keep_last, include_refused)
        newest_change_id = _collect_blobs(connection)
        content_count, stored_bytes = connection.execute(
            "SELECT count(*), coalesce(sum(stored), 0) FROM temp.unused"
        ).fetchone()
        sessions = _collect_sessions(journal, connection, before_ms)
        if dry_run:
            return PruneResult(change_count, len(sessions), content_count, stored_bytes)
        _remove_changes(connection)
        _remove_blobs(connection, newest_change_id)
        with _begin_immediate(connection):
            connection.executemany(
                "DELETE FROM sessions WHERE id = ? AND NOT EXISTS (SELECT 1 FROM changes WHERE session = sessions.id)",
                [(session,) for session in sessions],
            )
            for sql in fingerprint_rows.DELETE_ORPHANS_SQL:
                connection.execute(sql)
        _vacuum(connection)
        freed = max(0, size - _measure_disk_usage(journal))
        return PruneResult(change_count, len(sessions), content_count, freed)


def _collect_changes(connection: sqlite3.Connection, before_ms: int, keep_last: int, include_refused: bool) -> int:
    """Collect the changes to remove in temp.doomed, and return their number.

    A row is an operation, as a range of ids.
    """
    highest = (1 << 63) - 1
    if keep_last:
        row = connection.execute(
            "SELECT id FROM changes ORDER BY id DESC LIMIT 1 OFFSET ?", (keep_last - 1,)
        ).fetchone()
        highest = row[0] - 1 if row else 0
    connection.execute("CREATE TEMP TABLE doomed (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, changes INTEGER)")
    connection.execute(
        """
        INSERT INTO temp.doomed
        SELECT min(id), max(id), count(*) FROM changes GROUP BY group_id
        HAVING max(at) < :before AND max(id) <= :highest AND NOT max(
            state IN ('pending', 'unknown', 'held') OR (
                (state = 'refused' OR (state = 'failed' AND op IN ('create', 'write', 'append') AND NOT EXISTS (
                    SELECT 1 FROM changes AS again
                    WHERE again."key" = changes."key" AND again.field IS changes.field AND again.id > changes.id
                        AND again.state = 'applied' AND again.new_kind = changes.new_kind
                        AND again.new_blob IS changes.new_blob AND again.new_offset IS changes.new_offset
                )))
                AND NOT :refused AND id NOT IN (
                    SELECT applied.applies FROM changes AS applied
                    WHERE applied.applies IS NOT NULL AND applied.state = 'applied'
                )
            )
        )
        """,
        {"before": before_ms, "highest": highest, "refused": include_refused},
    )
    return int(connection.execute("SELECT coalesce(sum(changes), 0) FROM temp.doomed").fetchone()[0])


def _collect_blobs(connection: sqlite3.Connection) -> int:
    """Collect the contents to remove in temp.unused.

    They are those that no other change uses. Returns the id of the newest change that was examined.
    """
    newest = connection.execute("SELECT coalesce(max(id), 0) FROM changes").fetchone()[0]
    connection.execute("CREATE TEMP TABLE unused (id INTEGER PRIMARY KEY, stored INTEGER NOT NULL)")
    connection.execute("CREATE TEMP TABLE used (id INTEGER PRIMARY KEY)")
    for column in ("prior_blob", "prior_logical", "new_blob", "new_logical"):
        connection.execute(
            f"""
            INSERT OR IGNORE INTO temp.used SELECT {column} FROM changes
            WHERE {column} IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM temp.doomed
                WHERE first = (SELECT max(first) FROM temp.doomed WHERE first <= changes.id) AND last >= changes.id
            )
            """
        )
    connection.execute(
        """
        INSERT INTO temp.unused
        SELECT id, coalesce(length(data), (SELECT sum(length(data)) FROM chunks WHERE blob = blobs.id), 0) FROM blobs
        WHERE CASE WHEN digest IS NULL THEN coalesce(staged_at, 0) < ? ELSE id NOT IN (SELECT id FROM temp.used) END
        """,
        (now_ms() - STALE_STAGED_BLOB_MS,),
    )
    return int(newest)


def _collect_sessions(journal: Journal, connection: sqlite3.Connection, before_ms: int) -> list[int]:
    """Return the sessions that have ended or died and whose changes are all removed."""
    rows = connection.execute(
        """
        SELECT id, ended_at FROM sessions WHERE coalesce(ended_at, started_at) < ? AND NOT EXISTS (
            SELECT 1 FROM changes WHERE session = sessions.id AND NOT EXISTS (
                SELECT 1 FROM temp.doomed
                WHERE first = (SELECT max(first) FROM temp.doomed WHERE first <= changes.id) AND last >= changes.id
            )
        )
        """,
        (before_ms,),
    ).fetchall()
    return [id for id, ended_at in rows if ended_at is not None or journal.get_session(id).has_died]


def _remove_changes(connection: sqlite3.Connection) -> None:
    ranges = connection.execute("SELECT first, last FROM temp.doomed ORDER BY first").fetchall()
    for batch in chunked(ranges, MAX_ROWS_PER_TRANSACTION):
        with _begin_immediate(connection):
            connection.executemany("DELETE FROM changes WHERE id BETWEEN ? AND ?", batch)


def _remove_blobs(connection: sqlite3.Connection, newest_change_id: int) -> None:
    """Remove the collected contents, except those that a newer change uses.

    A change is newer if its id is greater than `newest_change_id`.
    """
    ids = [id for (id,) in connection.execute("SELECT id FROM temp.unused ORDER BY id")]
    for batch in chunked(ids, MAX_ROWS_PER_TRANSACTION):
        with _begin_immediate(connection):
            rows = connection.execute(
                "SELECT prior_blob, prior_logical, new_blob, new_logical FROM changes WHERE id > ?", (newest_change_id,)
            )
            used = {blob for row in rows for blob in row}
            unused = [(id,) for id in batch if id not in used]
            for sql in blobs.DELETE_BLOB_SQL:
                connection.executemany(sql, unused)


def _vacuum(connection: sqlite3.Connection) -> None:
    """Shrink the file by its free pages, as far as other processes' locks allow."""
    while True:
        (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
        if not free_pages:
            break
        # Connection.execute would free only one page: it runs the pragma until its first row.
        connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES_PER_TRANSACTION})")
        if connection.execute("PRAGMA freelist_count").fetchone()[0] >= free_pages:
            break
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


@contextlib.contextmanager
def _begin_immediate(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def _measure_disk_usage(journal: Journal) -> int:
    """Return the bytes of the database and its write-ahead log."""
    files = (journal.path, journal.path.with_name(journal.path.name + "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())

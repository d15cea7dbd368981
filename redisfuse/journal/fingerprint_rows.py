"""Rows of fingerprints: what the server of a session is recognized by."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from redisfuse.journal.models import ServerFingerprint
from redisfuse.journal.reader import JournalReader

DELETE_ORPHANS_SQL = (
    "DELETE FROM fingerprints WHERE session NOT IN (SELECT id FROM sessions)",
    "DELETE FROM sampled_keys WHERE session NOT IN (SELECT id FROM sessions)",
)

_CHANGES_SINCE = """
FROM changes WHERE {0} AND state IN ('pending', 'applied', 'unknown')
    AND +session IN (SELECT id FROM sessions WHERE server = ?)
"""


def insert_fingerprint(connection: sqlite3.Connection, session_id: int, fingerprint: ServerFingerprint) -> None:
    """Insert the fingerprint of a session's server."""
    connection.execute(
        "INSERT INTO fingerprints (session, replication_id, key_count) VALUES (?, ?, ?)",
        (session_id, fingerprint.replication_id, fingerprint.key_count),
    )
    connection.executemany(
        'INSERT INTO sampled_keys (session, "key", digest) VALUES (?, ?, ?)',
        [(session_id, key, digest) for key, digest in fingerprint.sampled_keys.items()],
    )


def fetch_fingerprint(reader: JournalReader, session_id: int) -> ServerFingerprint | None:
    """Return the fingerprint of a session's server; None if none was recorded."""
    rows = reader.query("SELECT replication_id, key_count FROM fingerprints WHERE session = ?", (session_id,))
    if not rows:
        return None
    replication_id, key_count = rows[0]
    sampled_keys = reader.query('SELECT "key", digest FROM sampled_keys WHERE session = ?', (session_id,))
    return ServerFingerprint(replication_id, key_count, dict(sampled_keys))


def find_changed_keys(reader: JournalReader, server_name: str, keys: Iterable[bytes], since_ms: int) -> set[bytes]:
    """Return the keys that were, or may have been, changed since a time."""
    sql = "SELECT 1 " + _CHANGES_SINCE.format('"key" = ? AND +at >= ?') + " LIMIT 1"
    return {key for key in keys if reader.query(sql, (key, since_ms, server_name))}


def count_changes(reader: JournalReader, server_name: str, since_ms: int) -> int:
    """Return the number of the changes on a server since a time."""
    ((count,),) = reader.query(f"SELECT count(*) {_CHANGES_SINCE.format('at >= ?')}", (since_ms, server_name))
    assert isinstance(count, int)
    return count


def add_recognized_run(connection: sqlite3.Connection, run_id: str, earlier: str) -> None:
    """Record that a run of a server has the data of an earlier one."""
    connection.execute("INSERT OR IGNORE INTO recognized_runs (run_id, earlier) VALUES (?, ?)", (run_id, earlier))


def is_recognized_run(reader: JournalReader, run_id: str, earlier: str) -> bool:
    """Return whether a run is recorded to have the data of an earlier one.

    It may be recorded through runs in between.
    """
    sql = """
        WITH RECURSIVE runs(run_id) AS (
            SELECT ?
            UNION SELECT recognized_runs.earlier FROM runs JOIN recognized_runs USING (run_id)
        )
        SELECT 1 FROM runs WHERE run_id = ?
    """
    return bool(reader.query(sql, (run_id, earlier)))

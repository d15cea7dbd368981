"""Rows of sessions: the server, mount, user, host and process of changes."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from typing import Any

from redisfuse.journal import fingerprint_rows
from redisfuse.journal.models import JournalSession, ServerIdentity, SessionMetadata
from redisfuse.journal.reader import JournalReader

_COLUMNS = (
    *("server", "scheme", "server_host", "server_port", "unix_path", "db", "username", "url", "run_id", "version"),
    *("maker", "mountpoint", "user", "host", "pid", "process", "options", "started_at"),
)
_SELECT = f"SELECT id, ended_at, {', '.join(_COLUMNS)} FROM sessions"


def insert_session(connection: sqlite3.Connection, metadata: SessionMetadata, timestamp_ms: int) -> int:
    """Insert a session that begins now and return its id."""
    server = metadata.server
    values = (
        *(server.name, server.scheme, server.host, server.port, server.unix_path, server.db, server.username),
        *(server.redacted_url, metadata.run_id, metadata.server_version, metadata.vendor),
        *(_path_to_text(metadata.mountpoint), metadata.user, metadata.host, metadata.pid),
        *(metadata.process_identity, json.dumps(dict(metadata.options), default=str, sort_keys=True), timestamp_ms),
    )
    inserted = connection.execute(
        f"INSERT INTO sessions ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})", values
    )
    assert inserted.lastrowid is not None
    if metadata.fingerprint is not None:
        fingerprint_rows.insert_fingerprint(connection, inserted.lastrowid, metadata.fingerprint)
    return inserted.lastrowid


def end_session(connection: sqlite3.Connection, session_id: int, timestamp_ms: int) -> None:
    """Record the end of a session. One that ended already keeps its time."""
    connection.execute("UPDATE sessions SET ended_at = ? WHERE id = ? AND ended_at IS NULL", (timestamp_ms, session_id))


def fetch_session(reader: JournalReader, session_id: int) -> JournalSession | None:
    """Return one session, or None."""
    rows = reader.query(f"{_SELECT} WHERE id = ?", (session_id,))
    return _decode_session(rows[0]) if rows else None


def fetch_newest_session(reader: JournalReader, server_name: str) -> JournalSession | None:
    """Return the newest session of a server, or None."""
    rows = reader.query(f"{_SELECT} WHERE server = ? ORDER BY id DESC LIMIT 1", (server_name,))
    return _decode_session(rows[0]) if rows else None


def iter_newest_sessions(reader: JournalReader, limit: int | None = None) -> Iterator[tuple[JournalSession, int]]:
    """Yield sessions, newest first, each with the number of its changes."""
    for row in reader.query(f"{_SELECT} ORDER BY id DESC LIMIT ?", (-1 if limit is None else limit,)):
        ((change_count,),) = reader.query("SELECT count(*) FROM changes WHERE session = ?", (row[0],))
        yield _decode_session(row), change_count


def _decode_session(row: tuple[Any, ...]) -> JournalSession:
    id, ended_at, _, scheme, host, port, unix_path, db, username, url, run_id, version, maker, *rest = row
    mountpoint, user, machine, pid, process, options, started_at = rest
    server = ServerIdentity(scheme, host, port, unix_path, db, username, url)
    metadata = SessionMetadata(
        *(server, run_id, version, maker, mountpoint, user, machine, pid, process), json.loads(options)
    )
    return JournalSession(id, metadata, started_at, ended_at)


def _path_to_text(path: str | None) -> str | None:
    """Return a path as text; bytes that are not UTF-8 become escapes."""
    return None if path is None else os.fsencode(path).decode("utf-8", "backslashreplace")

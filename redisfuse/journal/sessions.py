"""Rows of sessions: who changed what from where."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from typing import Any

from redisfuse.journal.blobs import QueryFunction
from redisfuse.journal.models import JournalSession, ServerIdentity, SessionMetadata

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
        *(
            server.redacted_url,
            metadata.run_id,
            metadata.server_version,
            metadata.vendor,
            _path_to_text(metadata.mountpoint),
            metadata.user,
            metadata.host,
            metadata.pid,
        ),
        *(metadata.process_identity, json.dumps(dict(metadata.options), default=str, sort_keys=True), timestamp_ms),
    )
    row = connection.execute(
        f"INSERT INTO sessions ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})", values
    )
    assert row.lastrowid is not None
    return row.lastrowid


def end_session(connection: sqlite3.Connection, session_id: int, timestamp_ms: int) -> None:
    """Note that a session ended; one that ended already keeps its time."""
    connection.execute("UPDATE sessions SET ended_at = ? WHERE id = ? AND ended_at IS NULL", (timestamp_ms, session_id))


def fetch_session(query: QueryFunction, session_id: int) -> JournalSession | None:
    """One session."""
    rows = query(f"{_SELECT} WHERE id = ?", (session_id,))
    return _decode_session(rows[0]) if rows else None


def iter_newest_sessions(query: QueryFunction, limit: int | None = None) -> Iterator[tuple[JournalSession, int]]:
    """Sessions, each with the number of its changes."""
    for row in query(f"{_SELECT} ORDER BY id DESC LIMIT ?", (-1 if limit is None else limit,)):
        ((changes,),) = query("SELECT count(*) FROM changes WHERE session = ?", (row[0],))
        yield _decode_session(row), changes


def _decode_session(row: tuple[Any, ...]) -> JournalSession:
    id, ended_at, _, scheme, host, port, unix_path, db, username, url, run_id, version, maker, *rest = row
    mountpoint, user, machine, pid, process, options, started_at = rest
    server = ServerIdentity(scheme, host, port, unix_path, db, username, url)
    info = SessionMetadata(server, run_id, version, maker, mountpoint, user, machine, pid, process, json.loads(options))
    return JournalSession(id, info, started_at, ended_at)


def _path_to_text(path: str | None) -> str | None:
    """A path as text that SQLite takes: bytes that are not UTF-8 are shown as escapes."""
    return None if path is None else os.fsencode(path).decode("utf-8", "backslashreplace")

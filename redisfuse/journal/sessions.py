"""Rows of sessions: who changed what from where."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from typing import Any

from redisfuse.journal.blobs import Query
from redisfuse.journal.models import ServerIdentity, Session, SessionInfo

_COLUMNS = (
    *("server", "scheme", "server_host", "server_port", "unix_path", "db", "username", "url", "run_id", "version"),
    *("maker", "mountpoint", "user", "host", "pid", "process", "options", "started_at"),
)
_SELECT = f"SELECT id, ended_at, {', '.join(_COLUMNS)} FROM sessions"


def insert(connection: sqlite3.Connection, info: SessionInfo, at: int) -> int:
    """Insert a session that begins now and return its id."""
    server = info.server
    values = (
        *(server.name, server.scheme, server.host, server.port, server.unix_path, server.db, server.username),
        *(server.url, info.run_id, info.version, info.maker, _text(info.mountpoint), info.user, info.host, info.pid),
        *(info.process, json.dumps(dict(info.options), default=str, sort_keys=True), at),
    )
    row = connection.execute(
        f"INSERT INTO sessions ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})", values
    )
    assert row.lastrowid is not None
    return row.lastrowid


def end(connection: sqlite3.Connection, session: int, at: int) -> None:
    """Note that a session ended; one that ended already keeps its time."""
    connection.execute("UPDATE sessions SET ended_at = ? WHERE id = ? AND ended_at IS NULL", (at, session))


def by_id(query: Query, session: int) -> Session | None:
    """One session."""
    rows = query(f"{_SELECT} WHERE id = ?", (session,))
    return _session(rows[0]) if rows else None


def newest_first(query: Query, limit: int | None = None) -> Iterator[tuple[Session, int]]:
    """Sessions, each with the number of its changes."""
    for row in query(f"{_SELECT} ORDER BY id DESC LIMIT ?", (-1 if limit is None else limit,)):
        ((changes,),) = query("SELECT count(*) FROM changes WHERE session = ?", (row[0],))
        yield _session(row), changes


def _session(row: tuple[Any, ...]) -> Session:
    id, ended_at, _, scheme, host, port, unix_path, db, username, url, run_id, version, maker, *rest = row
    mountpoint, user, machine, pid, process, options, started_at = rest
    server = ServerIdentity(scheme, host, port, unix_path, db, username, url)
    info = SessionInfo(server, run_id, version, maker, mountpoint, user, machine, pid, process, json.loads(options))
    return Session(id, info, started_at, ended_at)


def _text(path: str | None) -> str | None:
    """A path as text that SQLite takes: bytes that are not UTF-8 are shown as escapes."""
    return None if path is None else os.fsencode(path).decode("utf-8", "backslashreplace")

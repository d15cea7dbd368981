"""Is the journal what it should be: its schema, its contents, its states. One line for each thing that is wrong."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

from redisfuse.errors import JournalError, NotFoundError
from redisfuse.journal import blobs, database
from redisfuse.journal.change_rows import ChangeFilter
from redisfuse.journal.journal import Journal

BLOB_COLUMNS = ("prior_blob", "prior_logical", "new_blob", "new_logical")
MAX_PROBLEMS_PER_CHECK = 20  # problems of one kind that are named; the rest are counted


def find_problems(journal: Journal) -> Iterator[str]:
    """What is wrong, in words for the user; nothing if all is well."""
    for look in (_check_file, _check_schema, _check_blobs, _check_references, _check_outcomes):
        count = 0
        try:
            for problem in look(journal):
                count += 1
                if count <= MAX_PROBLEMS_PER_CHECK:
                    yield problem
        except JournalError as error:  # too damaged to look further
            yield str(error)
        if count > MAX_PROBLEMS_PER_CHECK:
            yield f"… and {count - MAX_PROBLEMS_PER_CHECK} more like it"


def _check_file(journal: Journal) -> Iterator[str]:
    for (line,) in journal.query("PRAGMA integrity_check(100)"):
        if line != "ok":
            yield f"the database is damaged: {line}"


def _check_schema(journal: Journal) -> Iterator[str]:
    """Tables, indexes and views against those that the migrations make."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        database.migrate(fresh)
        expected = _normalize_schema(fresh.execute(_SELECT_SCHEMA).fetchall())
    found = _normalize_schema(journal.query(_SELECT_SCHEMA))
    for name, sql in expected.items():
        if name not in found:
            yield f"the schema lacks {name}"
        elif found[name] != sql:
            yield f"the schema of {name} is not what the migrations made"


_SELECT_SCHEMA = "SELECT type || ' ' || name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' AND sql IS NOT NULL"


def _normalize_schema(rows: list[tuple[Any, ...]]) -> dict[str, str]:
    return {name: " ".join(sql.split()) for name, sql in rows}


def _check_blobs(journal: Journal) -> Iterator[str]:
    """Every content against its digest."""
    last = 0
    while rows := journal.query(
        "SELECT id, size, digest FROM blobs WHERE id > ? AND digest IS NOT NULL ORDER BY id LIMIT 1000", (last,)
    ):
        for last, size, digest in rows:
            try:
                for _ in blobs.read_chunks(journal.query, last, size, digest):
                    pass
            except JournalError as error:
                yield str(error)


def _check_references(journal: Journal) -> Iterator[str]:
    for column in BLOB_COLUMNS:
        sql = f"SELECT id, {column} FROM changes WHERE {column} IS NOT NULL AND {column} NOT IN (SELECT id FROM blobs)"
        for id, blob in journal.query(sql):
            yield f"change {id}: its {column.replace('_', ' ')} {blob} is missing"
    for id, session in journal.query(
        "SELECT min(id), session FROM changes WHERE session NOT IN (SELECT id FROM sessions) GROUP BY session"
    ):
        yield f"change {id} and later: their session {session} is missing"
    for (blob,) in journal.query("SELECT DISTINCT blob FROM chunks WHERE blob NOT IN (SELECT id FROM blobs)"):
        yield f"chunks of content {blob} are left without their content"


def _check_outcomes(journal: Journal) -> Iterator[str]:
    """Changes that are not settled although nobody works on them any more."""
    over: dict[int, bool] = {}
    for change in journal.find_changes(ChangeFilter(outcomes=("pending",), oldest_first=True)):
        if change.session_id not in over:
            try:
                session = journal.get_session(change.session_id)
                over[change.session_id] = session.ended_at is not None or session.has_died
            except NotFoundError:
                over[change.session_id] = True
        if over[change.session_id]:
            yield f"change {change.id} is pending and session {change.session_id} is over: redisfuse recover settles it"
    for change in journal.find_changes(ChangeFilter(outcomes=("unknown",), oldest_first=True)):
        yield f"change {change.id} is unknown: look at it with redisfuse show {change.id}"

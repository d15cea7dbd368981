"""Checks of a journal: file, schema, contents, references and states.

Each problem is one line.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

from redisfuse.errors import JournalError, NotFoundError
from redisfuse.journal import blobs, database
from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.journal import Journal

BLOB_COLUMNS = ("prior_blob", "prior_logical", "new_blob", "new_logical")
MAX_PROBLEMS_PER_CHECK = 20  # that are listed; the rest are counted


def find_problems(journal: Journal) -> Iterator[str]:
    """Yield a line for each problem; nothing if the journal is sound."""
    for check in (_check_file, _check_schema, _check_blobs, _check_references, _check_outcomes):
        count = 0
        try:
            for problem in check(journal):
                count += 1
                if count <= MAX_PROBLEMS_PER_CHECK:
                    yield problem
        except JournalError as error:  # too damaged for this check to continue
            yield str(error)
        if count > MAX_PROBLEMS_PER_CHECK:
            yield f"… and {count - MAX_PROBLEMS_PER_CHECK} more like it"


def _check_file(journal: Journal) -> Iterator[str]:
    for (line,) in journal.query("PRAGMA integrity_check(100)"):
        if line != "ok":
            yield f"the database is damaged: {line}"


def _check_schema(journal: Journal) -> Iterator[str]:
    """Compare tables, indexes and views with those that the migrations create."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as empty:
        database.migrate(empty)
        expected = _normalize_schema(empty.execute(_SELECT_SCHEMA).fetchall())
    actual = _normalize_schema(journal.query(_SELECT_SCHEMA))
    for name, sql in expected.items():
        if name not in actual:
            yield f"the schema lacks {name}"
        elif actual[name] != sql:
            yield f"the schema of {name} differs from the one that the migrations create"


_SELECT_SCHEMA = "SELECT type || ' ' || name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' AND sql IS NOT NULL"


def _normalize_schema(rows: list[tuple[Any, ...]]) -> dict[str, str]:
    return {name: " ".join(sql.split()) for name, sql in rows}


def _check_blobs(journal: Journal) -> Iterator[str]:
    """Compare every content with its digest."""
    last = 0
    while rows := journal.query(
        "SELECT id, size, digest FROM blobs WHERE id > ? AND digest IS NOT NULL ORDER BY id LIMIT 1000", (last,)
    ):
        for last, size, digest in rows:
            try:
                for _ in blobs.read_chunks(journal.reader, last, size, digest):
                    pass
            except JournalError as error:
                yield str(error)


def _check_references(journal: Journal) -> Iterator[str]:
    """Find references to contents, sessions and blobs that are missing."""
    for column in BLOB_COLUMNS:
        sql = f"SELECT id, {column} FROM changes WHERE {column} IS NOT NULL AND {column} NOT IN (SELECT id FROM blobs)"
        for id, blob in journal.query(sql):
            yield f"change {id}: {column.replace('_', ' ')} {blob} is missing"
    for id, session in journal.query(
        "SELECT min(id), session FROM changes WHERE session NOT IN (SELECT id FROM sessions) GROUP BY session"
    ):
        yield f"changes from {id} on: session {session} is missing"
    for table in ("fingerprints", "sampled_keys"):
        sql = f"SELECT DISTINCT session FROM {table} WHERE session NOT IN (SELECT id FROM sessions)"
        for (session,) in journal.query(sql):
            yield f"{table} has rows of session {session}, which is missing"
    for (blob,) in journal.query("SELECT DISTINCT blob FROM chunks WHERE blob NOT IN (SELECT id FROM blobs)"):
        yield f"blob {blob} has chunks, but blobs has no row of it"


def _check_outcomes(journal: Journal) -> Iterator[str]:
    """Find changes that are not settled although their session has ended or died."""
    has_ended: dict[int, bool] = {}
    for change in journal.find_changes(ChangeFilter(outcomes=("pending", "held"), oldest_first=True)):
        if change.session_id not in has_ended:
            try:
                session = journal.get_session(change.session_id)
                has_ended[change.session_id] = session.ended_at is not None or session.has_died
            except NotFoundError:
                has_ended[change.session_id] = True
        if has_ended[change.session_id]:
            yield (
                f"change {change.id} is {change.outcome} although its session has ended: "
                "settle it with redisfuse recover"
            )
    for change in journal.find_changes(ChangeFilter(outcomes=("unknown",), oldest_first=True)):
        yield f"change {change.id} is unknown: look at it with redisfuse show {change.id}"

"""Rows of changes: insertion, decoding, and quick search among millions.

Every query uses an index (tests/unit/test_journal_plans.py examines the plans). Rows are ordered by id, never by time,
because a clock can be set back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any

from redisfuse.journal import blobs
from redisfuse.journal.models import Blob, Change, ChangeIntent, Outcome, State
from redisfuse.journal.reader import JournalReader
from redisfuse.text import compile_glob, escape_text_if_needed

MAX_CHANGE_ID = (1 << 63) - 1
ROWS_PER_PAGE = 500  # fetched by one query
ROWS_IN_FIRST_PAGE = 20  # fewer, so that the first rows arrive soon
MAX_SCANNED_ROWS = 5000  # newest rows scanned in order before an index is used that returns them out of order

_STATE_COLUMNS = (
    *("kind", "type", "size", "blob", "logical", "offset", "total", "expires_at", "field_expires_at"),
    *("version", "note"),
)
_COLUMNS = (
    *("id", "group_id", "session", "at", "op", "path", "path_text", "new_path", '"key"', "key_text", "field"),
    *("field_text", "state", "error", "reverts", "applies", "connection"),
    *(f"prior_{column}" for column in _STATE_COLUMNS),
    *(f"new_{column}" for column in _STATE_COLUMNS),
)
_PLACEHOLDERS = ", ".join("?" * (len(_COLUMNS) - 2))
_INSERT = f"INSERT INTO changes ({', '.join(_COLUMNS)}) VALUES (?, ?, {_PLACEHOLDERS})"
# The first change of a group has its own id, which AUTOINCREMENT assigns, as its group.
_NEXT_ID = "(SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'changes')"
_INSERT_FIRST = f"INSERT INTO changes ({', '.join(_COLUMNS[1:])}) VALUES ({_NEXT_ID}, {_PLACEHOLDERS})"

_STATE_SELECTION = (
    "c.{0}_kind, c.{0}_type, {0}b.id, {0}b.size, {0}b.digest, {0}l.id, {0}l.size, {0}l.digest, c.{0}_offset, "
    "c.{0}_total, c.{0}_expires_at, c.{0}_field_expires_at, c.{0}_version, c.{0}_note"
)
_STATE_SELECTION_WIDTH = 14
_SELECT = f"""
SELECT c.id, c.session, c.group_id, c.at, c.path, c.op, c."key", c.field, c.state, c.error, c.reverts, c.applies,
       c.new_path, c.settled_at, c.connection, s.server,
       {_STATE_SELECTION.format("prior")}, {_STATE_SELECTION.format("new")}
FROM changes AS c
LEFT JOIN sessions AS s ON s.id = c.session
LEFT JOIN blobs AS priorb ON priorb.id = c.prior_blob
LEFT JOIN blobs AS priorl ON priorl.id = c.prior_logical
LEFT JOIN blobs AS newb ON newb.id = c.new_blob
LEFT JOIN blobs AS newl ON newl.id = c.new_logical
"""
_CHANGE_SELECTION_WIDTH = 16  # columns before the states


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """Conditions that a change must all meet. Without any, all changes do."""

    session_id: int | None = None
    server_name: str | None = None  # ServerIdentity.name
    key_glob: bytes | None = None  # a glob as KEYS takes it: * ? [a-z], with \ as the escape character
    path: bytes | None = None  # this path and everything below it
    since: int | None = None  # ms, inclusive
    until: int | None = None  # ms, exclusive
    outcomes: tuple[Outcome, ...] = ()
    ops: tuple[str, ...] = ()
    limit: int | None = None  # the newest, also with oldest_first
    before_id: int = MAX_CHANGE_ID  # only ids less than this
    oldest_first: bool = False  # instead of newest first


# -- writing ---------------------------------------------------------------------------------------------------------


def insert_changes(
    connection: sqlite3.Connection,
    session_id: int,
    intents: Sequence[ChangeIntent],
    blob_ids: dict[bytes, int],
    *,
    outcome: Outcome,
    error: str | None,
    recorded_at: int,
    grouping: bool | Sequence[int],
    connection_id: str | None = None,
) -> list[int]:
    """Insert one row for each intent, with consecutive ids, and return the ids.

    Held changes that they supersede are removed.

    `blob_ids`: blobs.id by digest. `connection_id`: the connection that is to execute the changes. `grouping`: whether
    all are one operation, or the sizes of several operations.
    """
    if not intents:
        return []
    connection.executemany(DELETE_HELD_SQL, [(intent.supersedes,) for intent in intents if intent.supersedes])
    rows = [
        (
            *(session_id, recorded_at, intent.op, intent.path, escape_text_if_needed(intent.path), intent.new_path),
            *(intent.key, escape_text_if_needed(intent.key), intent.field, escape_text_if_needed(intent.field)),
            *(outcome, error, intent.reverts, intent.applies, connection_id),
            *_encode_state(intent.prior, blob_ids),
            *_encode_state(intent.new, blob_ids),
        )
        for intent in intents
    ]
    first = connection.execute(_INSERT_FIRST, rows[0]).lastrowid
    assert first is not None
    ids = list(range(first, first + len(rows)))
    if len(rows) > 1:
        numbered = zip(ids, _iter_group_ids(first, len(rows), grouping), rows, strict=True)
        connection.executemany(_INSERT, [(id, group, *row) for id, group, row in islice(numbered, 1, None)])
    return ids


def join_group(connection: sqlite3.Connection, change_ids: Sequence[int], group_id: int) -> None:
    """Add changes with consecutive ids to the operation of another one.

    Does nothing if a change of another operation has an id between them: the ids of a group are consecutive.
    """
    connection.execute(
        """
        UPDATE changes SET (group_id, at) = (SELECT group_id, at FROM changes WHERE id = :group)
        WHERE id BETWEEN :first AND :last AND (SELECT group_id FROM changes WHERE id = :first - 1)
            = (SELECT group_id FROM changes WHERE id = :group)
        """,
        {"group": group_id, "first": change_ids[0], "last": change_ids[-1]},
    )


def _iter_group_ids(first_id: int, row_count: int, grouping: bool | Sequence[int]) -> Iterator[int]:
    """Yield the group of each row: the id of the first change of its operation."""
    sizes = grouping if not isinstance(grouping, bool) else [row_count] if grouping else [1] * row_count
    for size in sizes:
        yield from repeat(first_id, size)
        first_id += size


def _encode_state(state: State, blob_ids: dict[bytes, int]) -> tuple[Any, ...]:
    is_slice = state.kind == "slice"
    return (
        state.kind,
        state.type.decode("utf-8", "backslashreplace"),
        state.size,
        blob_ids[state.content.digest] if state.content else None,
        blob_ids[state.portable_copy.digest] if state.portable_copy else None,
        state.offset if is_slice else None,
        state.total_size if is_slice else None,
        state.expires_at,
        state.field_expires_at,
        state.dump_version,
        state.note,
    )


UPDATE_OUTCOME_SQL = "UPDATE changes SET state = ?, error = ?, settled_at = ? WHERE id = ?"
"""Statement that records the outcome of a change: state, error, time in ms, id."""

UPDATE_CONNECTION_SQL = "UPDATE changes SET connection = ? WHERE id = ?"
"""Statement that records the connection that is to execute a change: its identity, id."""

DELETE_HELD_SQL = "DELETE FROM changes WHERE id = ? AND state = 'held'"
"""Statement that removes a held change, which was written as another one, or whose file was removed: id."""


# -- reading ---------------------------------------------------------------------------------------------------------


def fetch_change(reader: JournalReader, change_id: int) -> Change | None:
    """Return one change, or None."""
    rows = reader.query(f"{_SELECT} WHERE c.id = ?", (change_id,))
    return _decode_change(reader, rows[0]) if rows else None


def fetch_group(reader: JournalReader, group_id: int) -> list[Change]:
    """Return the changes of one operation, in order.

    Their ids are consecutive and begin with the group's.
    """
    changes: list[Change] = []
    while True:
        after = changes[-1].id if changes else group_id - 1
        rows = reader.query(f"{_SELECT} WHERE c.id > ? ORDER BY c.id LIMIT ?", (after, ROWS_PER_PAGE))
        for row in rows:
            change = _decode_change(reader, row)
            if change.group_id != group_id:
                return changes
            changes.append(change)
        if len(rows) < ROWS_PER_PAGE:
            return changes


def find_changes(reader: JournalReader, change_filter: ChangeFilter) -> Iterator[Change]:
    """Yield the changes that match a filter, fetched a page at a time.

    The newest is first, unless `oldest_first` is set.
    """
    ids = _find_ids(reader, change_filter)
    if change_filter.oldest_first:
        ids = reversed(list(ids))
    page: list[int] = []
    is_first = True
    for id in ids:
        page.append(id)
        if len(page) == (ROWS_IN_FIRST_PAGE if is_first else ROWS_PER_PAGE):
            yield from _fetch_changes(reader, page)
            page, is_first = [], False
    if page:
        yield from _fetch_changes(reader, page)


def _fetch_changes(reader: JournalReader, change_ids: list[int]) -> Iterator[Change]:
    rows = reader.query(f"{_SELECT} WHERE c.id IN ({', '.join('?' * len(change_ids))})", tuple(change_ids))
    row_by_id = {row[0]: row for row in rows}
    for id in change_ids:
        if id in row_by_id:
            yield _decode_change(reader, row_by_id[id])


def _find_ids(reader: JournalReader, change_filter: ChangeFilter) -> Iterator[int]:
    """Yield ids, newest first, up to the filter's limit."""
    return islice(_iter_ids(reader, change_filter), change_filter.limit)


def _iter_ids(reader: JournalReader, change_filter: ChangeFilter) -> Iterator[int]:
    """Yield ids, newest first.

    An index on one exact value returns its ids in order. An index on a range (keys, paths, times) does not. There, the
    newest rows are scanned first, which soon satisfies a range that matches much, and the index finds the rest.
    """
    where, values = _build_conditions(change_filter)
    highest = change_filter.before_id - 1
    index_range = _build_index_range(change_filter)
    has_time = change_filter.since is not None or change_filter.until is not None
    if not index_range and not has_time:
        yield from _iter_ids_in_range(reader, where, values, 0, highest)
        return
    since = 0 if change_filter.since is None else change_filter.since
    until = MAX_CHANGE_ID if change_filter.until is None else change_filter.until
    if has_time:
        where = ["+at >= ? AND +at < ?", *where]
        values = [since, until, *values]
    newest = max(0, _fetch_highest_id(reader, highest) - MAX_SCANNED_ROWS)
    if index_range:
        column, condition, range_values = index_range
        values = [*range_values, *values]
        yield from _iter_ids_in_range(
            reader, [condition.replace(column, f"+{column}"), *where], values, newest + 1, highest
        )
        conditions = " AND ".join([condition, *where, "+id <= ?"])
        table = f"changes INDEXED BY changes_{column.strip(chr(34))}"
        sql = f"SELECT id FROM {table} WHERE {conditions} ORDER BY id DESC LIMIT ?"
        # An upper bound: the scan above may have yielded some already.
        limit = -1 if change_filter.limit is None else change_filter.limit
        yield from (id for (id,) in reader.query(sql, (*values, newest, limit)))
        return
    yield from _iter_ids_in_range(reader, where, values, newest + 1, highest)
    ((low, high),) = reader.query("SELECT min(id), max(id) FROM changes WHERE at >= ? AND at < ?", (since, until))
    if low is not None:
        yield from _iter_ids_in_range(reader, where, values, low, min(newest, high))


def _iter_ids_in_range(
    reader: JournalReader, conditions: list[str], values: list[Any], lowest_id: int, highest_id: int
) -> Iterator[int]:
    """Yield the ids that meet the conditions, from the highest to the lowest."""
    sql = f"SELECT id FROM changes WHERE {' AND '.join([*conditions, 'id >= ? AND id <= ?'])} ORDER BY id DESC LIMIT ?"
    while highest_id >= lowest_id:
        rows = reader.query(sql, (*values, lowest_id, highest_id, ROWS_PER_PAGE))
        for (id,) in rows:
            yield id
        if len(rows) < ROWS_PER_PAGE:
            return
        highest_id = rows[-1][0] - 1


def _fetch_highest_id(reader: JournalReader, highest_id: int) -> int:
    ((highest_existing,),) = reader.query("SELECT max(id) FROM changes WHERE id <= ?", (highest_id,))
    return highest_existing or 0


def _build_conditions(change_filter: ChangeFilter) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []
    if change_filter.session_id is not None:
        where.append("session = ?")
        values.append(change_filter.session_id)
    if change_filter.server_name is not None:
        where.append("+session IN (SELECT id FROM sessions WHERE server = ?)")
        values.append(change_filter.server_name)
    if change_filter.outcomes:
        where.append(f"state IN ({', '.join('?' * len(change_filter.outcomes))})")
        values += change_filter.outcomes
        if "applied" not in change_filter.outcomes:
            where.append("state <> 'applied'")  # the condition of the partial index, so that SQLite uses it
    if change_filter.ops:
        where.append(f"op IN ({', '.join('?' * len(change_filter.ops))})")
        values += change_filter.ops
    if change_filter.key_glob is not None:
        exact, pattern = compile_glob(change_filter.key_glob)
        if pattern is None:
            where.append('"key" = ?')
            values.append(exact)
        else:
            where.append('redis_glob(?, "key")')
            values.append(change_filter.key_glob)
    return where, values


def _build_index_range(change_filter: ChangeFilter) -> tuple[str, str, list[bytes]] | None:
    """Return the column, condition and values of a range that has an index.

    None if the filter has no such range.
    """
    if change_filter.path is not None:
        path = change_filter.path.strip(b"/")
        if path:
            return "path", "(path = ? OR (path >= ? AND path < ?))", [path, path + b"/", path + b"0"]  # 0 follows /
    if change_filter.key_glob is not None:
        prefix, pattern = compile_glob(change_filter.key_glob)
        if pattern is not None:
            return '"key"', '("key" >= ? AND "key" < ?)', [prefix, _prefix_upper_bound(prefix)]
    return None


def _prefix_upper_bound(prefix: bytes) -> bytes:
    """Return the least bytes greater than everything that begins with `prefix`.

    A prefix of only 0xFF bytes has none; it gets 64 more of them, which few keys exceed.
    """
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else prefix + b"\xff" * 64


def _decode_change(reader: JournalReader, row: tuple[Any, ...]) -> Change:
    (id, session, group, at, path, op, key, field, state, error, reverts, applies, new_path, *rest) = row[
        :_CHANGE_SELECTION_WIDTH
    ]
    settled, connection, server = rest
    return Change(
        id=id,
        session_id=session,
        group_id=group,
        recorded_at=at,
        path=path,
        op=op,
        key=key,
        field=field,
        prior=_decode_state(reader, row[_CHANGE_SELECTION_WIDTH : _CHANGE_SELECTION_WIDTH + _STATE_SELECTION_WIDTH]),
        new=_decode_state(reader, row[_CHANGE_SELECTION_WIDTH + _STATE_SELECTION_WIDTH :]),
        outcome=state,
        error=error,
        reverts=reverts,
        applies=applies,
        new_path=new_path,
        settled_at=settled,
        connection_id=connection,
        server_name=server or "",
    )


def _decode_state(reader: JournalReader, row: Sequence[Any]) -> State:
    kind, type, blob, size, digest, logical, logical_size, logical_digest, offset, total, *rest = row
    expires_at, field_expires_at, version, note = rest
    content: Blob | None = None if blob is None else blobs.open_blob(reader, blob, size, digest)
    copy = None if logical is None else blobs.open_blob(reader, logical, logical_size, logical_digest)
    return State(
        kind, type.encode(), content, copy, offset or 0, total or 0, expires_at, field_expires_at, version, note
    )

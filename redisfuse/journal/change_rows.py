"""Rows of changes: writing them, reading them back as they were, and finding them quickly among millions.

Every query goes by an index (tests look at the plans). Rows are ordered by id, never by time: clocks go back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any

from redisfuse.journal import blobs
from redisfuse.journal.models import Blob, Change, ChangeIntent, Outcome, State
from redisfuse.text import compile_glob, escape_text_if_needed

MAX_CHANGE_ID = (1 << 63) - 1
ROWS_PER_PAGE = 500  # rows read at once
MAX_SCANNED_ROWS = 5000  # rows looked through one by one before an index is asked that does not give them in order

_STATE_COLUMNS = (
    *("kind", "type", "size", "blob", "logical", "offset", "total", "expires_at", "field_expires_at"),
    *("version", "note"),
)
_COLUMNS = (
    *("id", "group_id", "session", "at", "op", "path", "path_text", "new_path", '"key"', "key_text", "field"),
    *("field_text", "state", "error", "reverts", "applies"),
    *(f"prior_{column}" for column in _STATE_COLUMNS),
    *(f"new_{column}" for column in _STATE_COLUMNS),
)
_PLACEHOLDERS = ", ".join("?" * (len(_COLUMNS) - 2))
_INSERT = f"INSERT INTO changes ({', '.join(_COLUMNS)}) VALUES (?, ?, {_PLACEHOLDERS})"
# The first of a group has its own id as its group: the one that AUTOINCREMENT gives it.
_NEXT_ID = "(SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'changes')"
_INSERT_FIRST = f"INSERT INTO changes ({', '.join(_COLUMNS[1:])}) VALUES ({_NEXT_ID}, {_PLACEHOLDERS})"

_STATE_SELECTION = (
    "c.{0}_kind, c.{0}_type, {0}b.id, {0}b.size, {0}b.digest, {0}l.id, {0}l.size, {0}l.digest, c.{0}_offset, "
    "c.{0}_total, c.{0}_expires_at, c.{0}_field_expires_at, c.{0}_version, c.{0}_note"
)
_STATE_SELECTION_WIDTH = 14
_SELECT = f"""
SELECT c.id, c.session, c.group_id, c.at, c.path, c.op, c."key", c.field, c.state, c.error, c.reverts, c.applies,
       c.new_path, c.settled_at, s.server, {_STATE_SELECTION.format("prior")}, {_STATE_SELECTION.format("new")}
FROM changes AS c
LEFT JOIN sessions AS s ON s.id = c.session
LEFT JOIN blobs AS priorb ON priorb.id = c.prior_blob
LEFT JOIN blobs AS priorl ON priorl.id = c.prior_logical
LEFT JOIN blobs AS newb ON newb.id = c.new_blob
LEFT JOIN blobs AS newl ON newl.id = c.new_logical
"""
_CHANGE_SELECTION_WIDTH = 15  # columns before the states


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """Which changes are wanted, all conditions together. Nothing given: all."""

    session_id: int | None = None
    server_name: str | None = None  # ServerIdentity.name
    key_glob: bytes | None = None  # a glob as Redis has them: * ? [a-z] and \ to escape_text
    path: bytes | None = None  # this path, or anything below it
    since: int | None = None  # ms, inclusive
    until: int | None = None  # ms, exclusive
    outcomes: tuple[Outcome, ...] = ()
    ops: tuple[str, ...] = ()
    limit: int | None = None
    before_id: int = MAX_CHANGE_ID  # only ids less than this
    oldest_first: bool = False  # the order in which they were made, instead of newest first


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
) -> list[int]:
    """Insert a row an intent, with consecutive ids, and return these. `contents`: digest → blobs.id.

    `grouped`: whether all are one operation; or how many of them belong to each of several.
    """
    if not intents:
        return []
    rows = [
        (
            *(session_id, recorded_at, intent.op, intent.path, escape_text_if_needed(intent.path), intent.new_path),
            *(intent.key, escape_text_if_needed(intent.key), intent.field, escape_text_if_needed(intent.field)),
            *(outcome, error, intent.reverts, intent.applies),
            *_encode_state(intent.prior, blob_ids),
            *_encode_state(intent.new, blob_ids),
        )
        for intent in intents
    ]
    first = connection.execute(_INSERT_FIRST, rows[0]).lastrowid
    assert first is not None
    ids = list(range(first, first + len(rows)))
    if len(rows) > 1:
        found = zip(ids, _iter_group_ids(first, len(rows), grouping), rows, strict=True)
        connection.executemany(_INSERT, [(id, group, *row) for id, group, row in islice(found, 1, None)])
    return ids


def join_group(connection: sqlite3.Connection, change_ids: Sequence[int], group_id: int) -> None:
    """Make changes with consecutive ids a part of the operation of another one, unless somebody's came between."""
    connection.execute(
        """
        UPDATE changes SET (group_id, at) = (SELECT group_id, at FROM changes WHERE id = :group)
        WHERE id BETWEEN :first AND :last AND (SELECT group_id FROM changes WHERE id = :first - 1)
            = (SELECT group_id FROM changes WHERE id = :group)
        """,
        {"group": group_id, "first": change_ids[0], "last": change_ids[-1]},
    )


def _iter_group_ids(first_id: int, row_count: int, grouping: bool | Sequence[int]) -> Iterator[int]:
    """The group of each row: the id of its operation's first."""
    sizes = grouping if not isinstance(grouping, bool) else [row_count] if grouping else [1] * row_count
    for size in sizes:
        yield from repeat(first_id, size)
        first_id += size


def _encode_state(state: State, blob_ids: dict[bytes, int]) -> tuple[Any, ...]:
    sliced = state.kind == "slice"
    return (
        state.kind,
        state.type.decode("utf-8", "backslashreplace"),
        state.size,
        blob_ids[state.content.digest] if state.content else None,
        blob_ids[state.portable_copy.digest] if state.portable_copy else None,
        state.offset if sliced else None,
        state.total_size if sliced else None,
        state.expires_at,
        state.field_expires_at,
        state.dump_version,
        state.note,
    )


# Sets what became of a change: state, error, time in ms, id.
UPDATE_OUTCOME_SQL = "UPDATE changes SET state = ?, error = ?, settled_at = ? WHERE id = ?"


# -- reading ---------------------------------------------------------------------------------------------------------


def fetch_change(query: blobs.QueryFunction, change_id: int) -> Change | None:
    """One change."""
    rows = query(f"{_SELECT} WHERE c.id = ?", (change_id,))
    return _decode_change(query, rows[0]) if rows else None


def fetch_group(query: blobs.QueryFunction, group_id: int) -> list[Change]:
    """The changes of one operation, in their order: they have consecutive ids, beginning with the group's."""
    found: list[Change] = []
    while True:
        after = found[-1].id if found else group_id - 1
        rows = query(f"{_SELECT} WHERE c.id > ? ORDER BY c.id LIMIT ?", (after, ROWS_PER_PAGE))
        for row in rows:
            change = _decode_change(query, row)
            if change.group_id != group_id:
                return found
            found.append(change)
        if len(rows) < ROWS_PER_PAGE:
            return found


def find_changes(query: blobs.QueryFunction, change_filter: ChangeFilter) -> Iterator[Change]:
    """The changes that a filter wants, read a page at a time; newest first unless it says otherwise."""
    ids = _find_ids(query, change_filter)
    if change_filter.oldest_first:
        ids = reversed(list(ids))
    page: list[int] = []
    first = True
    for id in ids:
        page.append(id)
        if len(page) == (20 if first else ROWS_PER_PAGE):  # the first rows soon
            yield from _fetch_changes(query, page)
            page, first = [], False
    if page:
        yield from _fetch_changes(query, page)


def find_change_ids(query: blobs.QueryFunction, change_filter: ChangeFilter) -> list[int]:
    """The ids only, in the same order."""
    ids = list(_find_ids(query, change_filter))
    return ids[::-1] if change_filter.oldest_first else ids


def _fetch_changes(query: blobs.QueryFunction, change_ids: list[int]) -> Iterator[Change]:
    rows = query(f"{_SELECT} WHERE c.id IN ({', '.join('?' * len(change_ids))})", tuple(change_ids))
    found = {row[0]: row for row in rows}
    for id in change_ids:
        if id in found:
            yield _decode_change(query, found[id])


def _find_ids(query: blobs.QueryFunction, change_filter: ChangeFilter) -> Iterator[int]:
    """Ids, newest first, at most as many as wanted."""
    return islice(_iter_ids(query, change_filter), change_filter.limit)


def _iter_ids(query: blobs.QueryFunction, change_filter: ChangeFilter) -> Iterator[int]:
    """Ids, newest first.

    An index on one exact value gives its ids in order. One on a range (keys, paths, times) does not: then the newest
    rows are looked through first (a range that matches much is soon satisfied), and the index gives the rest.
    """
    where, values = _build_conditions(change_filter)
    highest = change_filter.before_id - 1
    ranged = _build_index_range(change_filter)
    timed = change_filter.since is not None or change_filter.until is not None
    if not ranged and not timed:
        yield from _iter_ids_in_range(query, where, values, 0, highest)
        return
    since = 0 if change_filter.since is None else change_filter.since
    until = MAX_CHANGE_ID if change_filter.until is None else change_filter.until
    if timed:
        where = ["+at >= ? AND +at < ?", *where]
        values = [since, until, *values]
    newest = max(0, _fetch_highest_id(query, highest) - MAX_SCANNED_ROWS)
    if ranged:
        column, condition, more = ranged
        values = [*more, *values]
        yield from _iter_ids_in_range(
            query, [condition.replace(column, f"+{column}"), *where], values, newest + 1, highest
        )
        conditions = " AND ".join([condition, *where, "+id <= ?"])
        table = f"changes INDEXED BY changes_{column.strip(chr(34))}"
        sql = f"SELECT id FROM {table} WHERE {conditions} ORDER BY id DESC LIMIT ?"
        limit = -1 if change_filter.limit is None else change_filter.limit  # no more than all that are wanted
        yield from (id for (id,) in query(sql, (*values, newest, limit)))
        return
    yield from _iter_ids_in_range(query, where, values, newest + 1, highest)
    ((low, high),) = query("SELECT min(id), max(id) FROM changes WHERE at >= ? AND at < ?", (since, until))
    if low is not None:
        yield from _iter_ids_in_range(query, where, values, low, min(newest, high))


def _iter_ids_in_range(
    query: blobs.QueryFunction, conditions: list[str], values: list[Any], lowest_id: int, highest_id: int
) -> Iterator[int]:
    """Ids from `highest` down to `lowest` that satisfy the conditions, a page at a time."""
    sql = f"SELECT id FROM changes WHERE {' AND '.join([*conditions, 'id >= ? AND id <= ?'])} ORDER BY id DESC LIMIT ?"
    while highest_id >= lowest_id:
        rows = query(sql, (*values, lowest_id, highest_id, ROWS_PER_PAGE))
        for (id,) in rows:
            yield id
        if len(rows) < ROWS_PER_PAGE:
            return
        highest_id = rows[-1][0] - 1


def _fetch_highest_id(query: blobs.QueryFunction, highest_id: int) -> int:
    ((found,),) = query("SELECT max(id) FROM changes WHERE id <= ?", (highest_id,))
    return found or 0


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
            where.append("state <> 'applied'")  # says to SQLite that the partial index has them all
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
    """(column, condition, its values) of the one range that an index can help with."""
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
    """The least bytes greater than everything that begins with `prefix` (nearly: keys end before 64 bytes of 0xFF)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else prefix + b"\xff" * 64


def _decode_change(query: blobs.QueryFunction, row: tuple[Any, ...]) -> Change:
    (id, session, group, at, path, op, key, field, state, error, reverts, applies, new_path, settled, server) = row[
        :_CHANGE_SELECTION_WIDTH
    ]
    return Change(
        id=id,
        session_id=session,
        group_id=group,
        recorded_at=at,
        path=path,
        op=op,
        key=key,
        field=field,
        prior=_decode_state(query, row[_CHANGE_SELECTION_WIDTH : _CHANGE_SELECTION_WIDTH + _STATE_SELECTION_WIDTH]),
        new=_decode_state(query, row[_CHANGE_SELECTION_WIDTH + _STATE_SELECTION_WIDTH :]),
        outcome=state,
        error=error,
        reverts=reverts,
        applies=applies,
        new_path=new_path,
        settled_at=settled,
        server_name=server or "",
    )


def _decode_state(query: blobs.QueryFunction, row: Sequence[Any]) -> State:
    kind, type, blob, size, digest, logical, logical_size, logical_digest, offset, total, *rest = row
    expires_at, field_expires_at, version, note = rest
    content: Blob | None = None if blob is None else blobs.open_blob(query, blob, size, digest)
    copy = None if logical is None else blobs.open_blob(query, logical, logical_size, logical_digest)
    return State(
        kind, type.encode(), content, copy, offset or 0, total or 0, expires_at, field_expires_at, version, note
    )

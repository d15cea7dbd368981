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
from redisfuse.journal.models import Change, Content, Intent, Outcome, State
from redisfuse.text import compile_glob, escape_text_if_needed

MAX_ID = (1 << 63) - 1
PAGE = 500  # rows read at once
NEWEST = 5000  # rows looked through one by one before an index is asked that does not give them in order

_STATE = (
    *("kind", "type", "size", "blob", "logical", "offset", "total", "expires_at", "field_expires_at"),
    *("version", "note"),
)
_COLUMNS = (
    *("id", "group_id", "session", "at", "op", "path", "path_text", "new_path", '"key"', "key_text", "field"),
    *("field_text", "state", "error", "reverts", "applies"),
    *(f"prior_{column}" for column in _STATE),
    *(f"new_{column}" for column in _STATE),
)
_VALUES = ", ".join("?" * (len(_COLUMNS) - 2))
_INSERT = f"INSERT INTO changes ({', '.join(_COLUMNS)}) VALUES (?, ?, {_VALUES})"
# The first of a group has its own id as its group: the one that AUTOINCREMENT gives it.
_NEXT = "(SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'changes')"
_INSERT_FIRST = f"INSERT INTO changes ({', '.join(_COLUMNS[1:])}) VALUES ({_NEXT}, {_VALUES})"

_READ_STATE = (
    "c.{0}_kind, c.{0}_type, {0}b.id, {0}b.size, {0}b.digest, {0}l.id, {0}l.size, {0}l.digest, c.{0}_offset, "
    "c.{0}_total, c.{0}_expires_at, c.{0}_field_expires_at, c.{0}_version, c.{0}_note"
)
_READ_WIDTH = 14
_SELECT = f"""
SELECT c.id, c.session, c.group_id, c.at, c.path, c.op, c."key", c.field, c.state, c.error, c.reverts, c.applies,
       c.new_path, c.settled_at, s.server, {_READ_STATE.format("prior")}, {_READ_STATE.format("new")}
FROM changes AS c
LEFT JOIN sessions AS s ON s.id = c.session
LEFT JOIN blobs AS priorb ON priorb.id = c.prior_blob
LEFT JOIN blobs AS priorl ON priorl.id = c.prior_logical
LEFT JOIN blobs AS newb ON newb.id = c.new_blob
LEFT JOIN blobs AS newl ON newl.id = c.new_logical
"""
_FACTS = 15  # columns before the states


@dataclass(frozen=True, slots=True)
class Filter:
    """Which changes are wanted, all conditions together. Nothing given: all."""

    session: int | None = None
    server: str | None = None  # ServerIdentity.name
    key: bytes | None = None  # a glob as Redis has them: * ? [a-z] and \ to escape_text
    path: bytes | None = None  # this path, or anything below it
    since: int | None = None  # ms, inclusive
    until: int | None = None  # ms, exclusive
    states: tuple[Outcome, ...] = ()
    ops: tuple[str, ...] = ()
    limit: int | None = None
    before: int = MAX_ID  # only ids less than this
    oldest_first: bool = False  # the order in which they were made, instead of newest first


# -- writing ---------------------------------------------------------------------------------------------------------


def insert(
    connection: sqlite3.Connection,
    session: int,
    intents: Sequence[Intent],
    contents: dict[bytes, int],
    *,
    state: Outcome,
    error: str | None,
    at: int,
    grouped: bool | Sequence[int],
) -> list[int]:
    """Insert a row an intent, with consecutive ids, and return these. `contents`: digest → blobs.id.

    `grouped`: whether all are one operation; or how many of them belong to each of several.
    """
    if not intents:
        return []
    rows = [
        (
            *(session, at, intent.op, intent.path, escape_text_if_needed(intent.path), intent.new_path),
            *(intent.key, escape_text_if_needed(intent.key), intent.field, escape_text_if_needed(intent.field)),
            *(state, error, intent.reverts, intent.applies),
            *_state_columns(intent.prior, contents),
            *_state_columns(intent.new, contents),
        )
        for intent in intents
    ]
    first = connection.execute(_INSERT_FIRST, rows[0]).lastrowid
    assert first is not None
    ids = list(range(first, first + len(rows)))
    if len(rows) > 1:
        found = zip(ids, _groups(first, len(rows), grouped), rows, strict=True)
        connection.executemany(_INSERT, [(id, group, *row) for id, group, row in islice(found, 1, None)])
    return ids


def join(connection: sqlite3.Connection, ids: Sequence[int], group: int) -> None:
    """Make changes with consecutive ids a part of the operation of another one, unless somebody's came between."""
    connection.execute(
        """
        UPDATE changes SET (group_id, at) = (SELECT group_id, at FROM changes WHERE id = :group)
        WHERE id BETWEEN :first AND :last AND (SELECT group_id FROM changes WHERE id = :first - 1)
            = (SELECT group_id FROM changes WHERE id = :group)
        """,
        {"group": group, "first": ids[0], "last": ids[-1]},
    )


def _groups(first: int, rows: int, grouped: bool | Sequence[int]) -> Iterator[int]:
    """The group of each row: the id of its operation's first."""
    sizes = grouped if not isinstance(grouped, bool) else [rows] if grouped else [1] * rows
    for size in sizes:
        yield from repeat(first, size)
        first += size


def _state_columns(state: State, contents: dict[bytes, int]) -> tuple[Any, ...]:
    sliced = state.kind == "slice"
    return (
        state.kind,
        state.type.decode("utf-8", "backslashreplace"),
        state.size,
        contents[state.content.digest] if state.content else None,
        contents[state.logical.digest] if state.logical else None,
        state.offset if sliced else None,
        state.total if sliced else None,
        state.expires_at,
        state.field_expires_at,
        state.version,
        state.note,
    )


# Sets what became of a change: state, error, time in ms, id.
SETTLE = "UPDATE changes SET state = ?, error = ?, settled_at = ? WHERE id = ?"


# -- reading ---------------------------------------------------------------------------------------------------------


def by_id(query: blobs.Query, id: int) -> Change | None:
    """One change."""
    rows = query(f"{_SELECT} WHERE c.id = ?", (id,))
    return _change(query, rows[0]) if rows else None


def of_group(query: blobs.Query, group: int) -> list[Change]:
    """The changes of one operation, in their order: they have consecutive ids, beginning with the group's."""
    found: list[Change] = []
    while True:
        after = found[-1].id if found else group - 1
        rows = query(f"{_SELECT} WHERE c.id > ? ORDER BY c.id LIMIT ?", (after, PAGE))
        for row in rows:
            change = _change(query, row)
            if change.group != group:
                return found
            found.append(change)
        if len(rows) < PAGE:
            return found


def matching(query: blobs.Query, wanted: Filter) -> Iterator[Change]:
    """The changes that a filter wants, read a page at a time; newest first unless it says otherwise."""
    ids = _ids(query, wanted)
    if wanted.oldest_first:
        ids = reversed(list(ids))
    page: list[int] = []
    first = True
    for id in ids:
        page.append(id)
        if len(page) == (20 if first else PAGE):  # the first rows soon
            yield from _fetch(query, page)
            page, first = [], False
    if page:
        yield from _fetch(query, page)


def matching_ids(query: blobs.Query, wanted: Filter) -> list[int]:
    """The ids only, in the same order."""
    ids = list(_ids(query, wanted))
    return ids[::-1] if wanted.oldest_first else ids


def _fetch(query: blobs.Query, ids: list[int]) -> Iterator[Change]:
    rows = query(f"{_SELECT} WHERE c.id IN ({', '.join('?' * len(ids))})", tuple(ids))
    found = {row[0]: row for row in rows}
    for id in ids:
        if id in found:
            yield _change(query, found[id])


def _ids(query: blobs.Query, wanted: Filter) -> Iterator[int]:
    """Ids, newest first, at most as many as wanted."""
    return islice(_all_ids(query, wanted), wanted.limit)


def _all_ids(query: blobs.Query, wanted: Filter) -> Iterator[int]:
    """Ids, newest first.

    An index on one exact value gives its ids in order. One on a range (keys, paths, times) does not: then the newest
    rows are looked through first (a range that matches much is soon satisfied), and the index gives the rest.
    """
    where, values = _conditions(wanted)
    highest = wanted.before - 1
    ranged = _range(wanted)
    timed = wanted.since is not None or wanted.until is not None
    if not ranged and not timed:
        yield from _walk(query, where, values, 0, highest)
        return
    since = 0 if wanted.since is None else wanted.since
    until = MAX_ID if wanted.until is None else wanted.until
    if timed:
        where = ["+at >= ? AND +at < ?", *where]
        values = [since, until, *values]
    newest = max(0, _highest(query, highest) - NEWEST)
    if ranged:
        column, condition, more = ranged
        values = [*more, *values]
        yield from _walk(query, [condition.replace(column, f"+{column}"), *where], values, newest + 1, highest)
        conditions = " AND ".join([condition, *where, "+id <= ?"])
        table = f"changes INDEXED BY changes_{column.strip(chr(34))}"
        sql = f"SELECT id FROM {table} WHERE {conditions} ORDER BY id DESC LIMIT ?"
        limit = -1 if wanted.limit is None else wanted.limit  # no more than all that are wanted
        yield from (id for (id,) in query(sql, (*values, newest, limit)))
        return
    yield from _walk(query, where, values, newest + 1, highest)
    ((low, high),) = query("SELECT min(id), max(id) FROM changes WHERE at >= ? AND at < ?", (since, until))
    if low is not None:
        yield from _walk(query, where, values, low, min(newest, high))


def _walk(query: blobs.Query, where: list[str], values: list[Any], lowest: int, highest: int) -> Iterator[int]:
    """Ids from `highest` down to `lowest` that satisfy the conditions, a page at a time."""
    sql = f"SELECT id FROM changes WHERE {' AND '.join([*where, 'id >= ? AND id <= ?'])} ORDER BY id DESC LIMIT ?"
    while highest >= lowest:
        rows = query(sql, (*values, lowest, highest, PAGE))
        for (id,) in rows:
            yield id
        if len(rows) < PAGE:
            return
        highest = rows[-1][0] - 1


def _highest(query: blobs.Query, highest: int) -> int:
    ((found,),) = query("SELECT max(id) FROM changes WHERE id <= ?", (highest,))
    return found or 0


def _conditions(wanted: Filter) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []
    if wanted.session is not None:
        where.append("session = ?")
        values.append(wanted.session)
    if wanted.server is not None:
        where.append("+session IN (SELECT id FROM sessions WHERE server = ?)")
        values.append(wanted.server)
    if wanted.states:
        where.append(f"state IN ({', '.join('?' * len(wanted.states))})")
        values += wanted.states
        if "applied" not in wanted.states:
            where.append("state <> 'applied'")  # says to SQLite that the partial index has them all
    if wanted.ops:
        where.append(f"op IN ({', '.join('?' * len(wanted.ops))})")
        values += wanted.ops
    if wanted.key is not None:
        exact, pattern = compile_glob(wanted.key)
        if pattern is None:
            where.append('"key" = ?')
            values.append(exact)
        else:
            where.append('redis_glob(?, "key")')
            values.append(wanted.key)
    return where, values


def _range(wanted: Filter) -> tuple[str, str, list[bytes]] | None:
    """(column, condition, its values) of the one range that an index can help with."""
    if wanted.path is not None:
        path = wanted.path.strip(b"/")
        if path:
            return "path", "(path = ? OR (path >= ? AND path < ?))", [path, path + b"/", path + b"0"]  # 0 follows /
    if wanted.key is not None:
        prefix, pattern = compile_glob(wanted.key)
        if pattern is not None:
            return '"key"', '("key" >= ? AND "key" < ?)', [prefix, _after(prefix)]
    return None


def _after(prefix: bytes) -> bytes:
    """The least bytes greater than everything that begins with `prefix` (nearly: keys end before 64 bytes of 0xFF)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else prefix + b"\xff" * 64


def _change(query: blobs.Query, row: tuple[Any, ...]) -> Change:
    (id, session, group, at, path, op, key, field, state, error, reverts, applies, new_path, settled, server) = row[
        :_FACTS
    ]
    return Change(
        id=id,
        session=session,
        group=group,
        at=at,
        path=path,
        op=op,
        key=key,
        field=field,
        prior=_state(query, row[_FACTS : _FACTS + _READ_WIDTH]),
        new=_state(query, row[_FACTS + _READ_WIDTH :]),
        state=state,
        error=error,
        reverts=reverts,
        applies=applies,
        new_path=new_path,
        settled_at=settled,
        server=server or "",
    )


def _state(query: blobs.Query, row: Sequence[Any]) -> State:
    kind, type, blob, size, digest, logical, logical_size, logical_digest, offset, total, *rest = row
    expires_at, field_expires_at, version, note = rest
    content: Content | None = None if blob is None else blobs.stored(query, blob, size, digest)
    copy = None if logical is None else blobs.stored(query, logical, logical_size, logical_digest)
    return State(
        kind, type.encode(), content, copy, offset or 0, total or 0, expires_at, field_expires_at, version, note
    )

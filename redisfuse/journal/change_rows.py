"""Rows of changes: insertion and decoding.

Rows are ordered by id, never by time, because a clock can be set back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

from redisfuse.journal import blobs
from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.change_search import ROWS_PER_PAGE, find_ids, iter_pages
from redisfuse.journal.content import Blob
from redisfuse.journal.models import Change, ChangeIntent, Outcome, State
from redisfuse.journal.processes import OperationTracker
from redisfuse.journal.reader import JournalReader
from redisfuse.text import escape_text_if_needed

_STATE_COLUMNS = (
    *("kind", "type", "size", "blob", "logical", "offset", "total", "expires_at", "field_expires_at"),
    *("version", "note"),
)
_COLUMNS = (
    *("id", "group_id", "session", "at", "op", "path", "path_text", "new_path", '"key"', "key_text", "field"),
    *("field_text", "state", "error", "reverts", "applies", "connection", "reverts_through", "pid", "command"),
    *("operation", "reverts_part"),
    *(f"prior_{column}" for column in _STATE_COLUMNS),
    *(f"new_{column}" for column in _STATE_COLUMNS),
)
_INSERT = f"INSERT INTO changes ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_SELECT_NEXT_ID = "SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'changes'"

_STATE_SELECTION = (
    "c.{0}_kind, c.{0}_type, {0}b.id, {0}b.size, {0}b.digest, {0}l.id, {0}l.size, {0}l.digest, c.{0}_offset, "
    "c.{0}_total, c.{0}_expires_at, c.{0}_field_expires_at, c.{0}_version, c.{0}_note"
)
_STATE_SELECTION_WIDTH = 14
_SELECT = f"""
SELECT c.id, c.session, c.group_id, c.at, c.path, c.op, c."key", c.field, c.state, c.error, c.reverts, c.applies,
       c.new_path, c.settled_at, c.connection, coalesce(c.operation, c.group_id), c.pid, c.command, c.reverts_through,
       c.reverts_part, s.server,
       {_STATE_SELECTION.format("prior")}, {_STATE_SELECTION.format("new")}
FROM changes AS c
LEFT JOIN sessions AS s ON s.id = c.session
LEFT JOIN blobs AS priorb ON priorb.id = c.prior_blob
LEFT JOIN blobs AS priorl ON priorl.id = c.prior_logical
LEFT JOIN blobs AS newb ON newb.id = c.new_blob
LEFT JOIN blobs AS newl ON newl.id = c.new_logical
"""
_CHANGE_SELECTION_WIDTH = 21  # columns before the states


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
    operations: OperationTracker,
    connection_id: str | None = None,
) -> list[int]:
    """Insert one row for each intent, with consecutive ids, and return the ids.

    Held changes that they supersede are removed.

    `blob_ids`: blobs.id by digest. `connection_id`: the connection that is to execute the changes. `grouping`: whether
    all are one group, or the sizes of several groups. `operations` assigns the groups to operations of processes.
    """
    if not intents:
        return []
    processes = [
        (intent.process.pid, intent.process.command) if intent.process else _fetch_held_process(connection, intent)
        for intent in intents
    ]
    connection.executemany(DELETE_HELD_SQL, [(intent.supersedes,) for intent in intents if intent.supersedes])
    ((first_id,),) = connection.execute(_SELECT_NEXT_ID).fetchall()
    group_ids = list(_iter_group_ids(first_id, len(intents), grouping))
    first_of_groups = {id: intents[id - first_id].process for id in group_ids}
    assigned = operations.assign(connection, list(first_of_groups.items()), recorded_at)
    operation_by_group = dict(zip(first_of_groups, assigned, strict=True))
    rows = [
        (
            *(id, group_id, session_id, recorded_at, intent.op, intent.path, escape_text_if_needed(intent.path)),
            *(intent.new_path, intent.key, escape_text_if_needed(intent.key), intent.field),
            *(escape_text_if_needed(intent.field), outcome, error, intent.reverts, intent.applies, connection_id),
            *(intent.reverts_through, *process, operation_by_group[group_id], intent.reverts_part),
            *_encode_state(intent.prior, blob_ids),
            *_encode_state(intent.new, blob_ids),
        )
        for id, (group_id, intent, process) in enumerate(zip(group_ids, intents, processes, strict=True), first_id)
    ]
    connection.executemany(_INSERT, rows)
    return [row[0] for row in rows]


def insert_applied_changes(
    connection: sqlite3.Connection,
    session_id: int,
    intents: Sequence[ChangeIntent],
    *,
    recorded_at: int,
    operations: OperationTracker,
    group_id: int | None,
) -> list[int]:
    """Insert changes without contents that this transaction makes; return their ids.

    They are one operation: that of the change `group_id`, or (None) one of their own.
    """
    change_ids = insert_changes(
        *(connection, session_id, intents, {}),
        outcome="applied",
        error=None,
        recorded_at=recorded_at,
        grouping=True,
        operations=operations,
    )
    if group_id is not None:
        _join_group(connection, change_ids, group_id)
    return change_ids


def _fetch_held_process(connection: sqlite3.Connection, intent: ChangeIntent) -> tuple[int | None, str | None]:
    """Return the pid and name of the process that wrote a superseded held change."""
    row = None
    if intent.supersedes is not None:
        row = connection.execute("SELECT pid, command FROM changes WHERE id = ?", (intent.supersedes,)).fetchone()
    return row or (None, None)


def _join_group(connection: sqlite3.Connection, change_ids: Sequence[int], group_id: int) -> None:
    """Add changes with consecutive ids to the operation of another one.

    Does nothing if a change of another operation has an id between them: the ids of a group are consecutive.
    """
    connection.execute(
        """
        UPDATE changes SET (group_id, operation, at) = (SELECT group_id, operation, at FROM changes WHERE id = :group)
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
    for page in iter_pages(find_ids(reader, change_filter)):
        yield from fetch_changes(reader, page)


def fetch_changes(reader: JournalReader, change_ids: list[int]) -> Iterator[Change]:
    """Yield the changes with these ids that exist, in this order.

    There are at most some thousands.
    """
    rows = reader.query(f"{_SELECT} WHERE c.id IN ({', '.join('?' * len(change_ids))})", tuple(change_ids))
    row_by_id = {row[0]: row for row in rows}
    for id in change_ids:
        if id in row_by_id:
            yield _decode_change(reader, row_by_id[id])


def overlaps(later: Change, change: Change) -> bool:
    """Return whether two changes of one key affect the same datum.

    Changes of two different fields do not.
    """
    return later.field is None or change.field is None or later.field == change.field


def _decode_change(reader: JournalReader, row: tuple[Any, ...]) -> Change:
    (id, session, group, at, path, op, key, field, state, error, reverts, applies, new_path, *rest) = row[
        :_CHANGE_SELECTION_WIDTH
    ]
    settled, connection, operation, pid, command, reverts_through, reverts_part, server = rest
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
        operation_id=operation,
        pid=pid,
        command=command,
        reverts_through=reverts_through,
        reverts_part=reverts_part,
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

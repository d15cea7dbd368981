"""Operations: the changes that one process made within a moment, in numbers.

`rm -r` of 5000 keys is one operation. `processes` assigns changes to operations when they are recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from redisfuse.journal.change_filter import (
    MAX_CHANGE_ID,
    OPERATION,
    ChangeFilter,
    SqlCondition,
    all_of,
    build_conditions,
)
from redisfuse.journal.change_search import find_ids, iter_pages
from redisfuse.journal.models import Outcome
from redisfuse.journal.reader import JournalReader
from redisfuse.journal.reversals import ReversalIndex


@dataclass(frozen=True, slots=True)
class OperationSummary:
    """The changes of one operation that meet a filter, in numbers."""

    id: int  # of the first change of the operation, whether it meets the filter or not
    session_id: int
    first_id: int
    last_id: int
    change_count: int
    key_count: int
    started_at: int  # ms
    ended_at: int  # ms
    ops: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    path: bytes  # of all changes or, if `is_directory`, the directory that contains them
    is_directory: bool
    new_path: bytes | None  # of renames, likewise
    key: bytes | None  # None: there are several
    field: bytes | None
    prior_bytes: int | None  # of all values; None: there were none
    new_bytes: int | None
    reverted_count: int  # changes that were taken back
    partly_reverted_count: int  # other changes of which some places were taken back
    reverts: int | None  # the change that this one reverts, if it is a single one
    reverts_part: int | None  # the change of which this one reverts a part, if it is a single one
    applies: int | None
    pid: int | None
    command: str | None
    error: str | None


_PATH = "CAST(path || '/' AS BLOB)"  # with the slash, a directory is sorted right before what it contains
_SUMMARY = f"""
SELECT session, min(id), max(id), count(*), count(DISTINCT "key"), min(at), max(at), group_concat(DISTINCT op),
       group_concat(DISTINCT state), min({_PATH}), max({_PATH}), min(new_path), max(new_path), min("key"), min(field),
       max(field), sum(prior_size), sum(new_size), min(reverts), min(reverts_part), min(applies), max(pid),
       max(command), min(error)
FROM changes WHERE {OPERATION} = ?"""


def find_operations(reader: JournalReader, change_filter: ChangeFilter) -> Iterator[OperationSummary]:
    """Yield the operations with changes that meet a filter, newest first.

    The limit of the filter is that of the operations. They are ordered by the newest of their changes. `before_id` is
    compared with that: an operation with a newer change is on an earlier page.
    """
    return islice(_iter_summaries(reader, change_filter), change_filter.limit)


def _iter_summaries(reader: JournalReader, change_filter: ChangeFilter) -> Iterator[OperationSummary]:
    reversals = ReversalIndex(reader)
    conditions = build_conditions(replace(change_filter, before_id=MAX_CHANGE_ID))
    for operation_id in _iter_operation_ids(reader, change_filter):
        summary = _summarize(reader, reversals, operation_id, conditions)
        if summary.last_id < change_filter.before_id:
            yield summary


def _iter_operation_ids(reader: JournalReader, change_filter: ChangeFilter) -> Iterator[int]:
    seen: set[int] = set()
    sql = f"SELECT {OPERATION} FROM json_each(?) AS wanted CROSS JOIN changes ON changes.id = wanted.value"
    for page in iter_pages(find_ids(reader, replace(change_filter, limit=None))):
        for (operation_id,) in reader.query(sql, (json.dumps(page),)):
            if operation_id not in seen:
                seen.add(operation_id)
                yield operation_id


def _summarize(
    reader: JournalReader, reversals: ReversalIndex, operation_id: int, conditions: list[SqlCondition]
) -> OperationSummary:
    where = all_of([SqlCondition(f"{OPERATION} = ?", (operation_id,)), *conditions])
    more = all_of(conditions).sql if conditions else "1"
    ((session, first, last, count, keys, started, ended, ops, states, low, high, *rest),) = reader.query(
        f"{_SUMMARY} AND {more}", where.values
    )
    new_low, new_high, key, field, last_field, prior, new, reverts, reverts_part, applies, pid, command, error = rest
    rows = reader.query(f"SELECT id FROM changes WHERE {where.sql} AND +state = 'applied'", where.values)
    applied = [id for (id,) in rows]
    reverted = reversals.find_reverted(applied)
    return OperationSummary(
        id=operation_id,
        session_id=session,
        first_id=first,
        last_id=last,
        change_count=count,
        key_count=keys,
        started_at=started,
        ended_at=ended,
        ops=tuple(ops.split(",")),
        outcomes=tuple(states.split(",")),
        path=_find_directory(low, high),
        is_directory=low != high,
        new_path=None if new_low is None else _find_directory(new_low + b"/", new_high + b"/"),
        key=key if keys == 1 else None,
        field=field if keys == 1 and field == last_field else None,
        prior_bytes=prior,
        new_bytes=new,
        reverted_count=len(reverted),
        partly_reverted_count=len(reversals.find_partly_reverting_ids(id for id in applied if id not in reverted)),
        reverts=reverts if count == 1 else None,
        reverts_part=reverts_part if count == 1 else None,
        applies=applies if count == 1 else None,
        pid=pid,
        command=command,
        error=error,
    )


def _find_directory(low: bytes, high: bytes) -> bytes:
    """Return the directory that contains two paths, or that is one of them.

    Both end in a slash. It contains all paths that are sorted between them, too. Empty: the mount point.
    """
    length = next((at for at, (left, right) in enumerate(zip(low, high, strict=False)) if left != right), len(low))
    return low[:length].rpartition(b"/")[0]

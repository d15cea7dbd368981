"""The selection of changes: conditions as one value, and as SQL."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redisfuse.journal.models import Outcome
from redisfuse.text import compile_glob, find_glob_literal

MAX_CHANGE_ID = (1 << 63) - 1

OPERATION = "coalesce(operation, group_id)"
"""The SQL of a row's operation, which has an index."""


@dataclass(frozen=True, slots=True)
class IdRange:
    """The ids from `first` to `last`, both included."""

    first: int = 0
    last: int = MAX_CHANGE_ID


@dataclass(frozen=True, slots=True)
class KeySpan:
    """The changes of a key or field among the ids from `first` to `last`."""

    key: bytes
    field: bytes | None = None  # None: the key and all its fields
    first: int = 0
    last: int = MAX_CHANGE_ID


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """Conditions that a change must all meet. Without any, all changes do."""

    session_id: int | None = None
    server_name: str | None = None  # ServerIdentity.name
    user: str | None = None  # of the session
    id_ranges: tuple[IdRange, ...] = ()  # any of these, or one of `operation_ids`
    operation_ids: tuple[int, ...] = ()
    key_glob: bytes | None = None  # a glob as KEYS takes it: * ? [a-z], with \ as the escape character
    key_spans: tuple[KeySpan, ...] = ()  # any of these: the history of one key (journal/key_history.py)
    path: bytes | None = None  # this path and everything below it, also if it was renamed to there
    since: int | None = None  # ms, inclusive
    until: int | None = None  # ms, exclusive
    outcomes: tuple[Outcome, ...] = ()
    ops: tuple[str, ...] = ()
    limit: int | None = None  # the newest, also with oldest_first
    before_id: int = MAX_CHANGE_ID  # only ids less than this
    oldest_first: bool = False  # instead of newest first

    @property
    def has_ids(self) -> bool:
        """Whether ids or operations are among the conditions."""
        return bool(self.id_ranges or self.operation_ids)


_ID_WORD = re.compile(r"#?(\d+)(?:(\+)|(?:-|\.\.)#?(\d*))?|\.\.#?(\d+)")


def is_id_word(word: str) -> bool:
    """Return whether a word is written as `parse_id_words` expects it."""
    return _ID_WORD.fullmatch(word) is not None


def parse_id_words(words: Iterable[str]) -> tuple[tuple[IdRange, ...], tuple[int, ...]]:
    """Return the ranges of ids, and the operations, that words name.

    `42` is one change, `42-60` and `42..60` are a range, `42..` and `..60` are open ones, and `42+` is the whole
    operation that begins with change 42. Raises ValueError.
    """
    ranges: list[IdRange] = []
    operations: list[int] = []
    for word in words:
        match = _ID_WORD.fullmatch(word)
        numbers = [int(number) for number in match.groups() if number and number != "+"] if match else []
        if match is None or max(numbers) > MAX_CHANGE_ID or (len(numbers) == 2 and numbers[0] > numbers[1]):
            raise ValueError(f"{word!r} names no changes")
        if match[2]:
            operations += numbers
        elif match[4]:
            ranges.append(IdRange(last=numbers[0]))
        elif match[3] is None:
            ranges.append(IdRange(numbers[0], numbers[0]))
        else:
            ranges.append(IdRange(numbers[0], numbers[1] if len(numbers) == 2 else MAX_CHANGE_ID))
    return merge_ranges(ranges), tuple(dict.fromkeys(operations))


def merge_ranges(ranges: Iterable[IdRange]) -> tuple[IdRange, ...]:
    """Return the same ids as ranges that neither overlap nor touch, in order."""
    merged: list[IdRange] = []
    for each in sorted(ranges, key=lambda item: item.first):
        if merged and each.first <= merged[-1].last + 1:
            merged[-1] = IdRange(merged[-1].first, max(merged[-1].last, each.last))
        else:
            merged.append(each)
    return tuple(merged)


# -- conditions ------------------------------------------------------------------------------------------------------
# A `prefix` is "+" if SQLite must not use the index of a column, else empty.


@dataclass(frozen=True, slots=True)
class SqlCondition:
    """A part of a WHERE clause, and its values."""

    sql: str
    values: tuple[Any, ...] = ()
    index: str = ""  # of a range, the index that finds its rows


def build_conditions(change_filter: ChangeFilter) -> list[SqlCondition]:
    """Return all conditions of a filter, for rows that another index finds."""
    ids = [
        SqlCondition("+id <= ?", (change_filter.before_id - 1,)) if change_filter.before_id < MAX_CHANGE_ID else None,
        any_of([in_range(each) for each in change_filter.id_ranges] + _in_operations(change_filter.operation_ids))
        if change_filter.has_ids
        else None,
        any_of([_in_span(span, "+") for span in change_filter.key_spans]) if change_filter.key_spans else None,
    ]
    paths = build_path_range(change_filter, "+")
    return [
        *(condition for condition in ids if condition),
        *build_time(change_filter),
        *([any_of(paths)] if paths else []),
        *build_equalities(change_filter, "+"),
    ]


def build_equalities(change_filter: ChangeFilter, prefix: str = "") -> list[SqlCondition]:
    conditions: list[SqlCondition] = []
    if change_filter.session_id is not None:
        conditions.append(SqlCondition(f"{prefix}session = ?", (change_filter.session_id,)))
    for column, value in (("server", change_filter.server_name), ("user", change_filter.user)):
        if value is not None:
            conditions.append(SqlCondition(f"+session IN (SELECT id FROM sessions WHERE {column} = ?)", (value,)))
    if change_filter.outcomes:
        conditions.append(one_of(f"{prefix}state", change_filter.outcomes))
        if "applied" not in change_filter.outcomes and not prefix:
            conditions.append(SqlCondition("state <> 'applied'"))  # so that SQLite uses the partial index
    if change_filter.ops:
        conditions.append(one_of(f"{prefix}op", change_filter.ops))
    if change_filter.key_glob is not None:
        exact, pattern = compile_glob(change_filter.key_glob)
        if pattern is None:
            conditions.append(SqlCondition(f'{prefix}"key" = ?', (exact,)))
        else:
            literal = find_glob_literal(change_filter.key_glob)
            if literal:  # instr spares most calls of a function in Python
                conditions.append(SqlCondition('instr("key", ?)', (literal,)))
            conditions.append(SqlCondition('redis_glob(?, "key")', (change_filter.key_glob,)))
    return conditions


def build_time(change_filter: ChangeFilter) -> list[SqlCondition]:
    if change_filter.since is None and change_filter.until is None:
        return []
    since = 0 if change_filter.since is None else change_filter.since
    return [
        SqlCondition(
            "+at >= ? AND +at < ?", (since, MAX_CHANGE_ID if change_filter.until is None else change_filter.until)
        )
    ]


def build_path_range(change_filter: ChangeFilter, prefix: str = "") -> list[SqlCondition]:
    """Return the conditions of which a path must meet one.

    The old path or the new one is in the directory.
    """
    path = (change_filter.path or b"").strip(b"/")
    if not path:
        return []
    values = (path, path + b"/", path + b"0")  # 0 follows /
    old, new = (f"{prefix}{column}" for column in ("path", "new_path"))
    return [
        SqlCondition(f"({old} = ? OR ({old} >= ? AND {old} < ?))", values, "changes_path"),
        SqlCondition(f"({new} = ? OR ({new} >= ? AND {new} < ?)) AND new_path IS NOT NULL", values, "changes_new_path"),
    ]


def build_key_range(change_filter: ChangeFilter, prefix: str = "") -> list[SqlCondition]:
    if change_filter.key_glob is None:
        return []
    literal, pattern = compile_glob(change_filter.key_glob)
    if pattern is None:
        return []
    column = f'{prefix}"key"'
    return [SqlCondition(f"({column} >= ? AND {column} < ?)", (literal, _prefix_upper_bound(literal)), "changes_key")]


def in_range(ids: IdRange) -> SqlCondition:
    return SqlCondition("(+id >= ? AND +id <= ?)", (ids.first, ids.last))


def _in_operations(operation_ids: Sequence[int]) -> list[SqlCondition]:
    return [one_of(f"+{OPERATION}", operation_ids)] if operation_ids else []


def in_key(span: KeySpan) -> SqlCondition:
    if span.field is None:
        return SqlCondition('"key" = ?', (span.key,))
    return SqlCondition('"key" = ? AND (field IS NULL OR field = ?)', (span.key, span.field))


def _in_span(span: KeySpan, prefix: str) -> SqlCondition:
    key = in_key(span)
    return SqlCondition(f"({prefix}{key.sql} AND +id >= ? AND +id <= ?)", (*key.values, span.first, span.last))


def one_of(column: str, values: Collection[Any]) -> SqlCondition:
    """Return the condition that a column has one of some values."""
    return SqlCondition(f"{column} IN ({', '.join('?' * len(values))})", tuple(values))


def all_of(conditions: Sequence[SqlCondition]) -> SqlCondition:
    """Return the condition that all of these are met; there is at least one."""
    values = tuple(value for condition in conditions for value in condition.values)
    return SqlCondition(" AND ".join(condition.sql for condition in conditions), values)


def any_of(conditions: Sequence[SqlCondition]) -> SqlCondition:
    """Return the condition that one of these is met; there is at least one."""
    values = tuple(value for condition in conditions for value in condition.values)
    return SqlCondition(f"({' OR '.join(f'({condition.sql})' for condition in conditions)})", values)


def _prefix_upper_bound(prefix: bytes) -> bytes:
    """Return the least bytes greater than everything that begins with `prefix`.

    A prefix of only 0xFF bytes has none; it gets 64 more of them, which few keys exceed.
    """
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else prefix + b"\xff" * 64

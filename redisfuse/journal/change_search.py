"""Quick search of changes: the ids of those that meet a filter.

Every query uses an index (tests/unit/test_journal_plans.py examines the plans). Ids are yielded in their order, never
by time, because a clock can be set back. The first of many is yielded before the others are read.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from heapq import merge
from itertools import groupby, islice
from typing import Any

from redisfuse.journal.change_filter import (
    OPERATION,
    ChangeFilter,
    IdRange,
    SqlCondition,
    all_of,
    any_of,
    build_conditions,
    build_equalities,
    build_key_range,
    build_path_range,
    build_time,
    in_key,
    in_range,
)
from redisfuse.journal.reader import JournalReader

ROWS_PER_PAGE = 500  # fetched by one query; the first pages have fewer
MAX_IDS_PER_PAGE = 32_000  # of many ids, each page has twice as many as the one before, up to these
MAX_SCANNED_ROWS = 5000  # rows scanned in order before an index is used that returns them out of order
MAX_ROWS_PER_MATCH = 20  # scanned rows; if more are needed, the index is used


def find_ids(reader: JournalReader, change_filter: ChangeFilter) -> Iterator[int]:
    """Yield the ids of the changes that meet all conditions, in the filter's order.

    At most as many as the limit of the filter, which are the newest. Ascending ids end at the newest change that there
    was at first, so that a reader can't follow what it writes itself.
    """
    if not change_filter.oldest_first:
        yield from islice(_iter_ids(reader, change_filter), change_filter.limit)
    elif change_filter.limit is not None:
        yield from reversed(list(find_ids(reader, replace(change_filter, oldest_first=False))))
    else:
        yield from _iter_ids(reader, until_newest(reader, change_filter))


def iter_pages(ids: Iterator[int]) -> Iterator[list[int]]:
    """Yield ids in pages.

    The first has one, and each has twice as many as the one before, up to ROWS_PER_PAGE. So the first rows can be read
    before the search for the others is complete.
    """
    size = 1
    while page := list(islice(ids, size)):
        yield page
        size = min(2 * size, ROWS_PER_PAGE)


def until_newest(reader: JournalReader, change_filter: ChangeFilter) -> ChangeFilter:
    """Return a filter that leaves out changes that are recorded from now on."""
    highest = _fetch_highest_id(reader, change_filter.before_id - 1)
    return replace(change_filter, before_id=min(change_filter.before_id, highest + 1))


def _iter_ids(reader: JournalReader, change_filter: ChangeFilter) -> Iterator[int]:
    """Yield ids in the filter's order.

    An index on one exact value returns its ids in order. An index on a range (keys, paths, times) does not. There, the
    rows are scanned for as long as many of them match, and the index finds the rest.
    """
    ids = IdRange(0, change_filter.before_id - 1)
    if change_filter.user is not None:
        ids = _find_ids_of_user(reader, change_filter.user, ids)
        if ids.first > ids.last:
            return
        change_filter = replace(change_filter, before_id=ids.last + 1)
    if change_filter.has_ids:
        yield from _iter_named_ids(reader, change_filter)
        return
    if change_filter.key_spans:
        yield from _iter_span_ids(reader, change_filter)
        return
    oldest_first = change_filter.oldest_first
    equalities = build_equalities(change_filter)
    ranges = build_path_range(change_filter) or build_key_range(change_filter)
    time = build_time(change_filter)
    if not ranges and not time:
        yield from _iter_page_ids(reader, equalities, ids, oldest_first=oldest_first)
        return
    others = [*time, *equalities]
    if ranges:
        plain = any_of(build_path_range(change_filter, "+") or build_key_range(change_filter, "+"))
        rest = yield from _scan_ids(reader, [plain, *others], ids, oldest_first=oldest_first)
        if rest.first <= rest.last:
            yield from _find_range_ids(reader, ranges, [*others, in_range(rest)], change_filter)
        return
    scanned, rest = _split_ids(reader, ids, oldest_first=oldest_first)
    yield from _iter_page_ids(reader, others, scanned, oldest_first=oldest_first)
    ((low, high),) = reader.query("SELECT min(id), max(id) FROM changes WHERE at >= ? AND at < ?", time[0].values)
    if low is not None:
        within = IdRange(max(low, rest.first), min(high, rest.last))
        yield from _iter_page_ids(reader, others, within, oldest_first=oldest_first)


def _find_ids_of_user(reader: JournalReader, user: str, ids: IdRange) -> IdRange:
    """Return the part of a range that can have changes of a user; it may be empty."""
    bounds = ", ".join(
        f"(SELECT {bound}(id) FROM changes WHERE session = sessions.id) AS {name}"
        for bound, name in (("min", "oldest"), ("max", "newest"))
    )
    sql = f"SELECT min(oldest), max(newest) FROM (SELECT {bounds} FROM sessions WHERE user = ?)"
    ((oldest, newest),) = reader.query(sql, (user,))
    return IdRange(1, 0) if oldest is None else IdRange(max(ids.first, oldest), min(ids.last, newest))


def _scan_ids(
    reader: JournalReader, conditions: Sequence[SqlCondition], ids: IdRange, *, oldest_first: bool
) -> Generator[int, None, IdRange]:
    """Yield ids that meet the conditions while many do; return the ids that are left."""
    rest = ids
    while rest.first <= rest.last:
        scanned, rest = _split_ids(reader, rest, oldest_first=oldest_first)
        count = 0
        for id in _iter_page_ids(reader, conditions, scanned, oldest_first=oldest_first):
            yield id
            count += 1
        if count * MAX_ROWS_PER_MATCH <= MAX_SCANNED_ROWS:
            break
    return rest


def _split_ids(reader: JournalReader, ids: IdRange, *, oldest_first: bool) -> tuple[IdRange, IdRange]:
    """Return the ids of the first rows, which are scanned, and the rest."""
    if oldest_first:
        ((lowest,),) = reader.query("SELECT min(id) FROM changes WHERE id >= ?", (ids.first,))
        last = min(ids.last, (lowest or 0) + MAX_SCANNED_ROWS - 1)
        return IdRange(ids.first, last), IdRange(last + 1, ids.last)
    first = max(ids.first, _fetch_highest_id(reader, ids.last) - MAX_SCANNED_ROWS + 1)
    return IdRange(first, ids.last), IdRange(ids.first, first - 1)


def _iter_named_ids(reader: JournalReader, change_filter: ChangeFilter) -> Iterator[int]:
    """Yield the named ids that meet the other conditions."""
    others = build_conditions(replace(change_filter, id_ranges=(), operation_ids=()))
    oldest_first = change_filter.oldest_first
    streams = [_iter_ranges(reader, others, change_filter)]
    for operation in change_filter.operation_ids:
        conditions = [SqlCondition(f"{OPERATION} = ?", (operation,)), *others]
        streams.append(_iter_page_ids(reader, conditions, IdRange(), oldest_first=oldest_first))
    yield from _merge_unique(streams, oldest_first=oldest_first)


def _iter_ranges(
    reader: JournalReader, conditions: Sequence[SqlCondition], change_filter: ChangeFilter
) -> Iterator[int]:
    ranges, oldest_first = change_filter.id_ranges, change_filter.oldest_first
    for each in ranges if oldest_first else reversed(ranges):
        ids = IdRange(each.first, min(each.last, change_filter.before_id - 1))
        yield from _iter_page_ids(reader, conditions, ids, oldest_first=oldest_first)


def _iter_span_ids(reader: JournalReader, change_filter: ChangeFilter) -> Iterator[int]:
    """Yield the ids of the history of a key that meet the other conditions."""
    others = build_conditions(replace(change_filter, key_spans=()))
    oldest_first = change_filter.oldest_first
    streams = [
        _iter_page_ids(
            *(reader, [in_key(span), *others]),
            IdRange(span.first, min(span.last, change_filter.before_id - 1)),
            oldest_first=oldest_first,
        )
        for span in change_filter.key_spans
    ]
    yield from _merge_unique(streams, oldest_first=oldest_first)


def _merge_unique(streams: Sequence[Iterator[int]], *, oldest_first: bool) -> Iterator[int]:
    return (id for id, _ in groupby(merge(*streams, reverse=not oldest_first)))


def _iter_page_ids(
    reader: JournalReader, conditions: Sequence[SqlCondition], ids: IdRange, *, oldest_first: bool
) -> Iterator[int]:
    """Yield the ids that meet the conditions, in order."""
    where = all_of([*conditions, SqlCondition("id >= ? AND id <= ?")])
    sql = f"SELECT id FROM changes WHERE {where.sql} ORDER BY id {_name_order(oldest_first)} LIMIT ?"
    low, high, page_size = ids.first, ids.last, ROWS_PER_PAGE
    while low <= high:
        rows = reader.query(sql, (*where.values, low, high, page_size))
        for (id,) in rows:
            yield id
        if len(rows) < page_size:
            return
        last = rows[-1][0]
        low, high = (last + 1, high) if oldest_first else (low, last - 1)
        page_size = min(2 * page_size, MAX_IDS_PER_PAGE)


def _find_range_ids(
    reader: JournalReader, ranges: Sequence[SqlCondition], others: Sequence[SqlCondition], change_filter: ChangeFilter
) -> Iterator[int]:
    """Yield the ids that are in one of the ranges, in the filter's order."""
    selects: list[str] = []
    values: list[Any] = []
    for each in ranges:
        where = all_of([each, *others])
        selects.append(f"SELECT id FROM changes INDEXED BY {each.index} WHERE {where.sql}")
        values += where.values
    sql = f"{' UNION '.join(selects)} ORDER BY id {_name_order(change_filter.oldest_first)} LIMIT ?"
    # The limit is an upper bound: the caller may have found some already.
    limit = -1 if change_filter.limit is None else change_filter.limit
    yield from (id for (id,) in reader.query(sql, (*values, limit)))


def _name_order(oldest_first: bool) -> str:
    return "ASC" if oldest_first else "DESC"


def _fetch_highest_id(reader: JournalReader, highest_id: int) -> int:
    ((highest_existing,),) = reader.query("SELECT max(id) FROM changes WHERE id <= ?", (highest_id,))
    return highest_existing or 0

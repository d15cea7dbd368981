"""The net effect of successive changes of one key or field.

Three saves of a file are one net change: from the content before the first to the content after the last. Changes
join only if each finds what the one before it left: a change by another program in between separates them.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from more_itertools import chunked

from redisfuse.journal.change_filter import ChangeFilter, SqlCondition, all_of, build_conditions, one_of
from redisfuse.journal.change_rows import fetch_changes
from redisfuse.journal.change_search import ROWS_PER_PAGE, find_ids, iter_pages, until_newest
from redisfuse.journal.models import Change, State
from redisfuse.journal.reader import JournalReader

NOT_IN_EFFECT = ("failed", "refused", "held")
"""The outcomes of changes that are not in Redis: they join with no other change."""

Target = tuple[str, bytes, bytes | None]
"""The server, key and field of a change."""


@dataclass(slots=True)
class NetChange:
    """Successive changes of one target, as one."""

    first: Change
    last: Change
    count: int = 1

    @property
    def prior(self) -> State:
        """The state before the first change."""
        return self.first.prior

    @property
    def new(self) -> State:
        """The state after the last change."""
        return self.last.new


def get_target(change: Change) -> Target:
    """Return the server, key and field of a change."""
    return change.server_name, change.key, change.field


def join_changes(changes: Iterable[Change]) -> list[NetChange]:
    """Return the net changes of changes, oldest first.

    They are in the order of their first changes. Only the first and the last change of each are kept in memory.
    """
    net_changes: list[NetChange] = []
    open_changes: dict[Target, NetChange] = {}
    for change in changes:
        if change.outcome in NOT_IN_EFFECT:
            net_changes.append(NetChange(change, change))
            continue
        target = get_target(change)
        net = open_changes.get(target)
        if net is not None and is_continued(net.last.new, change.prior):
            net.last = change
            net.count += 1
            continue
        net = open_changes[target] = NetChange(change, change)
        net_changes.append(net)
    return net_changes


def is_continued(new: State, prior: State) -> bool:
    """Return whether a change from `prior` may follow one that left `new`.

    Expiries are not compared: they pass and are extended without a change. Ranges of large strings never join, because
    the rest of the string is not known.
    """
    if new.kind != prior.kind or new.type != prior.type or new.kind == "slice":
        return False
    if new.kind == "object" and new.portable_copy is not None and prior.portable_copy is not None:
        return new.portable_copy == prior.portable_copy
    return new.content == prior.content


class NetChanges:
    """Yields the net changes of a selection, ordered by their first changes.

    For one thread. The changes are read a page at a time, together with all other changes of the same keys that are
    selected. So the first net changes arrive soon, whatever the number of changes.
    """

    def __init__(self, reader: JournalReader, change_filter: ChangeFilter) -> None:
        """Prepare to read the changes that match a filter."""
        self._reader = reader
        self._filter = replace(until_newest(reader, change_filter), oldest_first=True)
        self._conditions = build_conditions(self._filter)
        self._ids = find_ids(reader, self._filter)
        if change_filter.limit is not None:  # older changes match, too
            newest = array("q", self._ids)
            self._ids = iter(newest)
            self._conditions.append(SqlCondition("+id >= ?", (newest[0] if newest else 0,)))
        self._loaded_keys: set[bytes] = set()
        self._waiting: dict[int, NetChange] = {}  # those that were not yielded, by their first ids
        self._queue: list[int] = []  # a heap of their first ids

    def __iter__(self) -> Iterator[NetChange]:
        """Yield the net changes."""
        for page in iter_pages(self._ids):
            self._load(page)
            while self._queue and self._queue[0] <= page[-1]:
                yield self._waiting.pop(heappop(self._queue))

    def find_beginning_with(self, change_id: int) -> NetChange | None:
        """Return the net change that begins with a change.

        None if there is none, or if it was yielded.
        """
        self._load([change_id])
        return self._waiting.get(change_id)

    def _load(self, change_ids: Collection[int]) -> None:
        """Read the selected changes of the keys of some changes, once."""
        named = all_of([one_of("id", change_ids), *self._conditions])
        rows = self._reader.query(f'SELECT "key" FROM changes WHERE {named.sql}', named.values)
        keys = {key for (key,) in rows} - self._loaded_keys
        self._loaded_keys |= keys
        if not keys:
            return
        of_keys = all_of([one_of('"key"', keys), *self._conditions])
        ids = self._reader.query(f"SELECT id FROM changes WHERE {of_keys.sql} ORDER BY id", of_keys.values)
        for net in join_changes(self._fetch(id for (id,) in ids)):
            self._waiting[net.first.id] = net
            heappush(self._queue, net.first.id)

    def _fetch(self, change_ids: Iterable[int]) -> Iterator[Change]:
        for page in chunked(change_ids, ROWS_PER_PAGE):
            yield from fetch_changes(self._reader, page)

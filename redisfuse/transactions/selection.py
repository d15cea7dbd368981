"""Selects the changes to revert, with the net effects of successive ones.

Those that are reverted already are left out. Of each change only a part is read until its net effect is known, and
whole changes are read where they are used, a page at a time: the memory depends on the number of keys, not of changes.
"""

import json
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from sys import intern
from typing import Any

from more_itertools import chunked

from redisfuse.errors import NotFoundError, UsageError
from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.change_search import find_ids
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change
from redisfuse.transactions.combined_change import (
    ChangeGroup,
    CombinedChange,
    LightChange,
    RunCollector,
    RunTable,
    StateKey,
)
from redisfuse.transactions.recovery import ProgressCallback

SETTLE_TIMEOUT_SECONDS = 1.5  # seconds to wait for the outcomes that running mounts are about to record
ROWS_PER_LOOKUP = 500  # changes that are read, and whose reversals are looked up, together

ABSENT_KEY = StateKey("absent", "none", None, None, None, None)

LightGroup = tuple[LightChange, ...]


class ChangeIds(Set[int]):
    """Ids of changes, eight bytes each."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._ids = array("q", sorted(array("q", ids)))

    def __contains__(self, id: object) -> bool:
        if not isinstance(id, int):
            return False
        position = bisect_left(self._ids, id)
        return position < len(self._ids) and self._ids[position] == id

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


class ChangeGroups:
    """The groups to revert, in order.

    They are read from the journal whenever they are iterated over. `repeated_keys`: the keys, with their servers, that
    several of the changes are of. `server_name`: only the groups of one server.
    """

    def __init__(
        self, journal: Journal, runs: RunTable, repeated_keys: Set[tuple[str, bytes]], server_name: str | None = None
    ) -> None:
        self._journal = journal
        self._runs = runs
        self.repeated_keys = repeated_keys
        self._server_name = server_name
        counts = [count or len(ids) for count, ids in runs.iter_runs(server_name)]
        self._length = len(counts)
        self.change_count = sum(counts)
        """The number of changes, each combined one by its parts."""

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[ChangeGroup]:
        for batch in chunked(self._runs.iter_runs(self._server_name), ROWS_PER_LOOKUP):
            wanted = sorted({id for _, ids in batch for id in ids})
            changes = {
                change.id: change
                for page in chunked(wanted, 2 * ROWS_PER_LOOKUP)
                for change in self._journal.fetch_changes(page)
            }
            for count, ids in batch:
                if all(id in changes for id in ids):  # else it was pruned meanwhile
                    yield _build_group(count, [changes[id] for id in ids])

    @property
    def server_names(self) -> Sequence[str]:
        """The servers, in the order of their newest changes."""
        return self._runs.server_names if self._server_name is None else [self._server_name]

    def of_server(self, server_name: str) -> "ChangeGroups":
        """Return the groups of one server."""
        return ChangeGroups(self._journal, self._runs, self.repeated_keys, server_name)


def _build_group(count: int, changes: list[Change]) -> ChangeGroup:
    if count > 1:
        newest, oldest = changes
        return (CombinedChange.join(newest, oldest, count),)
    return tuple(changes)


@dataclass(frozen=True, slots=True)
class ChangeOrigin:
    """The session that made changes, and its connection."""

    session_id: int
    connection_id: str | None


@dataclass(frozen=True, slots=True)
class SelectedChanges:
    """The groups to revert, and the ids of all changes that they combine.

    `origins`: where those were made, by server.
    """

    groups: ChangeGroups
    ids: ChangeIds
    origins: dict[str, set[ChangeOrigin]]

    def of_server(self, server_name: str) -> "SelectedChanges":
        """Return the same selection with the groups of one server."""
        return replace(self, groups=self.groups.of_server(server_name))


def select_changes(
    journal: Journal,
    change_filter: ChangeFilter,
    *,
    last: int | None = None,
    progress: ProgressCallback = lambda _count: None,
) -> SelectedChanges:
    """Select the groups of the changes that meet a filter, newest first.

    One change of a group selects all of it. `last`: only the newest operations in effect, that many. Raises
    NotFoundError (no such change or session), UsageError (a change that is named by its id was never applied, or there
    are no criteria).
    """
    _wait_until_settled(journal)
    if change_filter.session_id is not None:
        journal.get_session(change_filter.session_id)
    if last is None and replace(change_filter, limit=None) == ChangeFilter():
        raise UsageError("nothing selected: give IDs or a path, --session, --since, --last, --key or another filter")
    _check_named(journal, change_filter)
    applied = replace(change_filter, outcomes=change_filter.outcomes or ("applied", "unknown"))
    named = array("q")
    if last is not None:
        applied = _select_newest(journal, applied, last)
    if last is None or applied.operation_ids:
        named.extend(find_ids(journal.reader, applied))
    named_set = ChangeIds(named)
    collector = RunCollector()
    selected = array("q")
    origins: dict[str, set[ChangeOrigin]] = {}
    groups = _complete_groups(journal, _group_adjacent(_iter_light(journal, named, progress)))
    for batch in chunked(groups, ROWS_PER_LOOKUP):
        reverted = journal.create_reversal_index().find_reverted(change.id for group in batch for change in group)
        for group in batch:
            # A change and its rollback, selected together, cancel each other out. One change of a group selects all of
            # it, so if one of the changes that it reverts is selected, all of them are.
            is_cancelled = any(change.reverts in named_set for change in group)
            if not is_cancelled and not all(change.id in reverted for change in group):
                collector.add(group)
                selected.extend(change.id for change in group)
                for change in group:
                    origin = ChangeOrigin(change.session_id, change.connection_id)
                    origins.setdefault(change.server_name, set()).add(origin)
    runs = collector.finish()
    return SelectedChanges(ChangeGroups(journal, runs, collector.repeated), ChangeIds(selected), origins)


_STATE_COLUMNS = "{0}_kind, {0}_type, {0}_blob, {0}_logical, {0}_expires_at, {0}_field_expires_at"
_SELECT_LIGHT = f"""
SELECT changes.id, group_id, session, connection, coalesce(server, ''), state, reverts, changes."key", field,
       {_STATE_COLUMNS.format("prior")},
       {_STATE_COLUMNS.format("new")}
FROM json_each(?) AS wanted CROSS JOIN changes ON changes.id = wanted.value
LEFT JOIN sessions ON sessions.id = changes.session
"""


def _iter_light(journal: Journal, ids: Iterable[int], progress: ProgressCallback) -> Iterator[LightChange]:
    for batch in chunked(ids, ROWS_PER_LOOKUP):
        yield from _fetch_light(journal, batch)
        progress(len(batch))


def _fetch_light(journal: Journal, ids: list[int]) -> list[LightChange]:
    """Return the changes that were, or may have been, applied."""
    rows = journal.query(_SELECT_LIGHT, (json.dumps(ids),))
    changes = (
        LightChange._make((*row[:9], _build_state_key(row[9:15]), _build_state_key(row[15:])))
        for row in rows
        if row[5] in ("applied", "unknown")
    )
    return list(changes)


def _build_state_key(columns: tuple[Any, ...]) -> StateKey:
    """Return a state, as one object for all that are absent."""
    return ABSENT_KEY if columns == ABSENT_KEY else StateKey(intern(columns[0]), intern(columns[1]), *columns[2:])


def _wait_until_settled(journal: Journal) -> None:
    """Wait for mounts to record their last outcomes.

    Without them the newest changes would be left out.
    """
    deadline = time.monotonic() + SETTLE_TIMEOUT_SECONDS
    while time.monotonic() < deadline and any(
        _is_session_running(journal, change.session_id) for change in journal.find_pending_changes()
    ):
        time.sleep(SETTLE_TIMEOUT_SECONDS / 50)


def _is_session_running(journal: Journal, session_id: int) -> bool:
    try:
        session = journal.get_session(session_id)
    except NotFoundError:
        return False
    return session.ended_at is None and not session.has_died


def _check_named(journal: Journal, change_filter: ChangeFilter) -> None:
    """Check that the changes that are named by their ids were applied."""
    for ids in change_filter.id_ranges:
        if ids.first != ids.last:
            continue
        change = journal.get_change(ids.first)
        if change.outcome == "pending":
            raise UsageError(f"the outcome of change {change.id} is not known yet: run `redisfuse recover`")
        if change.outcome not in ("applied", "unknown"):
            raise UsageError(
                f"change {change.id} was never applied (it is {change.outcome}): there is nothing to roll back"
            )


def _select_newest(journal: Journal, change_filter: ChangeFilter, max_operations: int) -> ChangeFilter:
    """Return a filter of the newest operations in effect.

    They are neither rollbacks nor reverted.
    """
    in_effect = (
        operation.id
        for operation in journal.find_operations(replace(change_filter, limit=None))
        if "rollback" not in operation.ops and operation.reverted_count < operation.change_count
    )
    return replace(change_filter, operation_ids=tuple(islice(in_effect, max_operations)), id_ranges=())


def _group_adjacent(changes: Iterable[LightChange]) -> Iterator[LightGroup]:
    group: list[LightChange] = []
    for change in changes:
        if group and change.group_id != group[0].group_id:
            yield tuple(group)
            group = []
        group.append(change)
    if group:
        yield tuple(group)


def _complete_groups(journal: Journal, groups: Iterable[LightGroup]) -> Iterator[LightGroup]:
    """Yield groups with the changes that a filter left out.

    The ids of a group are consecutive.
    """
    for batch in chunked(groups, ROWS_PER_LOOKUP):
        following = json.dumps([group[0].id + 1 for group in batch])
        rows = journal.query(
            "SELECT changes.id, group_id FROM json_each(?) AS wanted CROSS JOIN changes ON changes.id = wanted.value",
            (following,),
        )
        group_of_next = {id - 1: group_id for id, group_id in rows}
        for group in batch:
            newest, oldest = group[0], group[-1]
            is_complete = (
                oldest.id == oldest.group_id
                and newest.id - oldest.id + 1 == len(group)
                and group_of_next.get(newest.id) != newest.group_id
            )
            yield group if is_complete else _fetch_group(journal, newest.group_id)


def _fetch_group(journal: Journal, group_id: int) -> LightGroup:
    ids = [change.id for change in journal.get_group(group_id)]
    return tuple(_fetch_light(journal, ids[::-1]))

"""Selects the operations to revert, newest first.

Those that are reverted already are left out.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from redisfuse.errors import NotFoundError, UsageError
from redisfuse.journal.journal import ChangeFilter, Journal
from redisfuse.journal.models import Change

ChangeGroup = tuple[Change, ...]
"""The changes of one operation, newest first."""

SETTLE_TIMEOUT_SECONDS = 1.5  # seconds to wait for the outcomes that running mounts are about to record


@dataclass(frozen=True, slots=True)
class RollbackSelection:
    """The user's criteria.

    A change must meet all that are given; `ids` and `group` exclude the others.
    """

    ids: tuple[int, ...] = ()
    group: int | None = None
    session: int | None = None
    since: int | None = None  # Unix time in ms
    last: int | None = None  # number of operations
    key: bytes | None = None  # Redis glob


def select_groups(journal: Journal, selection: RollbackSelection) -> list[ChangeGroup]:
    """Return the operations to revert, newest first.

    One change of an operation selects all of it. Raises NotFoundError (no such change or session), UsageError (a change
    in `ids` was never applied, or there are no criteria).
    """
    _wait_until_settled(journal)
    if selection.session is not None:
        journal.get_session(selection.session)
    if selection.ids or selection.group is not None:
        return _select_named(journal, selection)
    if selection == RollbackSelection():
        raise UsageError("nothing selected: give IDs, --group, --session, --since, --last or --key")
    rows = journal.find_changes(
        ChangeFilter(
            session_id=selection.session, since=selection.since, key_glob=selection.key, outcomes=("applied", "unknown")
        )
    )
    if selection.last is not None:
        return _select_newest(journal, rows, selection.last)
    # The changes of an operation share session and time, but not the key, so a glob may select only some of them.
    return _exclude_reverted(
        journal, _group_adjacent(rows) if selection.key is None else _complete_groups(journal, rows)
    )


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


def _select_named(journal: Journal, selection: RollbackSelection) -> list[ChangeGroup]:
    rows: dict[int, Change] = {}
    for id in selection.ids:
        change = journal.get_change(id)
        if change.outcome == "pending":
            raise UsageError(f"the outcome of change {id} is not known yet: run `redisfuse recover`")
        if change.outcome not in ("applied", "unknown"):
            raise UsageError(f"change {id} was never applied (it is {change.outcome}): there is nothing to roll back")
        rows[id] = change
    if selection.group is not None:
        rows |= {change.id: change for change in journal.get_group(journal.get_change(selection.group).group_id)}
    return _exclude_reverted(journal, _complete_groups(journal, [rows[id] for id in sorted(rows, reverse=True)]))


def _select_newest(journal: Journal, changes: Iterable[Change], max_groups: int) -> list[ChangeGroup]:
    """Return the newest operations in effect: neither rollbacks nor reverted."""
    selected: list[ChangeGroup] = []
    for group in _complete_groups(journal, changes):
        if len(selected) == max_groups:
            break
        if not any(change.reverts is not None or is_reverted(journal, change.id) for change in group):
            selected.append(group)
    return selected


def _complete_groups(journal: Journal, changes: Iterable[Change]) -> Iterator[ChangeGroup]:
    """Yield the operations of these changes, each once and complete."""
    seen: set[int] = set()
    for change in changes:
        if change.group_id not in seen:
            seen.add(change.group_id)
            yield _select_applied(journal.get_group(change.group_id))


def _group_adjacent(changes: Iterable[Change]) -> Iterator[ChangeGroup]:
    group: list[Change] = []
    for change in changes:
        if group and change.group_id != group[0].group_id:
            yield tuple(group)
            group = []
        group.append(change)
    if group:
        yield tuple(group)


def _select_applied(changes: Sequence[Change]) -> ChangeGroup:
    return tuple(change for change in reversed(changes) if change.outcome in ("applied", "unknown"))


def _exclude_reverted(journal: Journal, groups: Iterable[ChangeGroup]) -> list[ChangeGroup]:
    """Return the operations that are in effect.

    Left out are those that are reverted and those that revert others among them. (A change and its rollback, selected
    together, cancel each other out.)
    """
    all_groups = list(groups)
    selected_ids = {change.id for group in all_groups for change in group}
    return [
        group
        for group in all_groups
        if not all(change.reverts in selected_ids or is_reverted(journal, change.id) for change in group)
    ]


def is_reverted(journal: Journal, change_id: int) -> bool:
    """Whether a change was reverted by a rollback that is itself in effect."""
    return any(not is_reverted(journal, reverting_id) for reverting_id in journal.find_reverting_ids(change_id))

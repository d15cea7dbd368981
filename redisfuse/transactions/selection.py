"""Which changes are to be taken back: whole operations, newest first, without those that are taken back already."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from redisfuse.errors import NotFoundError, UsageError
from redisfuse.journal.journal import ChangeFilter, Journal
from redisfuse.journal.models import Change

ChangeGroup = tuple[Change, ...]  # the changes of one operation, newest first


SETTLE_TIMEOUT_SECONDS = 1.5  # seconds that are given to changes of living mounts which are just being noted as made


@dataclass(frozen=True, slots=True)
class RollbackSelection:
    """What the user named. What is given together must all be true of a change; `ids` and `group` stand alone."""

    ids: tuple[int, ...] = ()
    group: int | None = None
    session: int | None = None
    since: int | None = None  # Unix time in ms
    last: int | None = None  # how many operations
    key: bytes | None = None  # Redis glob


def select_groups(journal: Journal, selection: RollbackSelection) -> list[ChangeGroup]:
    """The operations to be taken back, newest first. Whoever names one change of an operation means all of it.

    Raises NotFoundError (no such change or session), UsageError (a change that was named was never applied, or nothing
    was named).
    """
    _wait_until_settled(journal)
    if selection.session is not None:
        journal.get_session(selection.session)
    if selection.ids or selection.group is not None:
        return _select_named(journal, selection)
    if selection == RollbackSelection():
        raise UsageError("say what to roll back: IDs, --group, --session, --since, --last or --key")
    rows = journal.find_changes(
        ChangeFilter(
            session_id=selection.session, since=selection.since, key_glob=selection.key, outcomes=("applied", "unknown")
        )
    )
    if selection.last is not None:
        return _select_newest(journal, rows, selection.last)
    # The changes of an operation share session and time, but not the key.
    return _exclude_reverted(
        journal, _group_adjacent(rows) if selection.key is None else _complete_groups(journal, rows)
    )


def _wait_until_settled(journal: Journal) -> None:
    """A mount notes a moment later that a change was made: wait for it, or the newest would be passed over."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_SECONDS
    while time.monotonic() < deadline and any(
        _is_session_running(journal, change.session_id) for change in journal.find_pending_changes()
    ):
        time.sleep(SETTLE_TIMEOUT_SECONDS / 50)


def _is_session_running(journal: Journal, session_id: int) -> bool:
    try:
        found = journal.get_session(session_id)
    except NotFoundError:
        return False
    return found.ended_at is None and not found.has_died


def _select_named(journal: Journal, selection: RollbackSelection) -> list[ChangeGroup]:
    rows: dict[int, Change] = {}
    for id in selection.ids:
        change = journal.get_change(id)
        if change.outcome == "pending":
            raise UsageError(f"it is not known yet whether change {id} was made: `redisfuse recover` finds out")
        if change.outcome not in ("applied", "unknown"):
            raise UsageError(f"change {id} was never made (it is {change.outcome}): there is nothing to take back")
        rows[id] = change
    if selection.group is not None:
        rows |= {change.id: change for change in journal.get_group(journal.get_change(selection.group).group_id)}
    return _exclude_reverted(journal, _complete_groups(journal, [rows[id] for id in sorted(rows, reverse=True)]))


def _select_newest(journal: Journal, changes: Iterable[Change], max_groups: int) -> list[ChangeGroup]:
    """The newest operations that stand: neither rollbacks themselves nor taken back."""
    found: list[ChangeGroup] = []
    for group in _complete_groups(journal, changes):
        if len(found) == max_groups:
            break
        if not any(change.reverts is not None or is_reverted(journal, change.id) for change in group):
            found.append(group)
    return found


def _complete_groups(journal: Journal, changes: Iterable[Change]) -> Iterator[ChangeGroup]:
    """The operations that these changes belong to, each once and complete."""
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
    """Without operations that are taken back, and without the rollbacks of others of these: the two cancel out."""
    every = list(groups)
    chosen = {change.id for group in every for change in group}
    return [
        group
        for group in every
        if not all(change.reverts in chosen or is_reverted(journal, change.id) for change in group)
    ]


def is_reverted(journal: Journal, change_id: int) -> bool:
    """Whether a change was taken back, by a rollback that stands."""
    return any(not is_reverted(journal, reverting) for reverting in journal.find_reverting_ids(change_id))

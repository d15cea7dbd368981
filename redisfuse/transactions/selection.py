"""Which changes are to be taken back: whole operations, newest first, without those that are taken back already."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from redisfuse.errors import NotFoundError, UsageError
from redisfuse.journal.journal import Filter, Journal
from redisfuse.journal.models import Change

Group = tuple[Change, ...]  # the changes of one operation, newest first


PATIENCE = 1.5  # seconds that are given to changes of living mounts which are just being noted as made


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user named. What is given together must all be true of a change; `ids` and `group` stand alone."""

    ids: tuple[int, ...] = ()
    group: int | None = None
    session: int | None = None
    since: int | None = None  # Unix time in ms
    last: int | None = None  # how many operations
    key: bytes | None = None  # Redis glob


def select(journal: Journal, wanted: Selection) -> list[Group]:
    """The operations to be taken back, newest first. Whoever names one change of an operation means all of it.

    Raises NotFoundError (no such change or session), UsageError (a change that was named was never applied, or nothing
    was named).
    """
    _let_settle(journal)
    if wanted.session is not None:
        journal.session(wanted.session)
    if wanted.ids or wanted.group is not None:
        return _named(journal, wanted)
    if wanted == Selection():
        raise UsageError("say what to roll back: IDs, --group, --session, --since, --last or --key")
    rows = journal.changes(
        Filter(session=wanted.session, since=wanted.since, key=wanted.key, states=("applied", "unknown"))
    )
    if wanted.last is not None:
        return _newest(journal, rows, wanted.last)
    # The changes of an operation share session and time, but not the key.
    return _effective(journal, _grouped(rows) if wanted.key is None else _whole(journal, rows))


def _let_settle(journal: Journal) -> None:
    """A mount notes a moment later that a change was made: wait for it, or the newest would be passed over."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and any(_lives(journal, change.session) for change in journal.pending()):
        time.sleep(PATIENCE / 50)


def _lives(journal: Journal, session: int) -> bool:
    try:
        found = journal.session(session)
    except NotFoundError:
        return False
    return found.ended_at is None and not found.died


def _named(journal: Journal, wanted: Selection) -> list[Group]:
    rows: dict[int, Change] = {}
    for id in wanted.ids:
        change = journal.change(id)
        if change.state == "pending":
            raise UsageError(f"it is not known yet whether change {id} was made: `redisfuse recover` finds out")
        if change.state not in ("applied", "unknown"):
            raise UsageError(f"change {id} was never made (it is {change.state}): there is nothing to take back")
        rows[id] = change
    if wanted.group is not None:
        rows |= {change.id: change for change in journal.group(journal.change(wanted.group).group)}
    return _effective(journal, _whole(journal, [rows[id] for id in sorted(rows, reverse=True)]))


def _newest(journal: Journal, rows: Iterable[Change], count: int) -> list[Group]:
    """The newest operations that stand: neither rollbacks themselves nor taken back."""
    found: list[Group] = []
    for group in _whole(journal, rows):
        if len(found) == count:
            break
        if not any(change.reverts is not None or undone(journal, change.id) for change in group):
            found.append(group)
    return found


def _whole(journal: Journal, rows: Iterable[Change]) -> Iterator[Group]:
    """The operations that these changes belong to, each once and complete."""
    seen: set[int] = set()
    for change in rows:
        if change.group not in seen:
            seen.add(change.group)
            yield _standing(journal.group(change.group))


def _grouped(rows: Iterable[Change]) -> Iterator[Group]:
    group: list[Change] = []
    for change in rows:
        if group and change.group != group[0].group:
            yield tuple(group)
            group = []
        group.append(change)
    if group:
        yield tuple(group)


def _standing(changes: Sequence[Change]) -> Group:
    return tuple(change for change in reversed(changes) if change.state in ("applied", "unknown"))


def _effective(journal: Journal, groups: Iterable[Group]) -> list[Group]:
    """Without operations that are taken back, and without the rollbacks of others of these: the two cancel out."""
    every = list(groups)
    chosen = {change.id for group in every for change in group}
    return [
        group for group in every if not all(change.reverts in chosen or undone(journal, change.id) for change in group)
    ]


def undone(journal: Journal, id: int) -> bool:
    """Whether a change was taken back, by a rollback that stands."""
    return any(not undone(journal, reverting) for reverting in journal.reverted_by(id))

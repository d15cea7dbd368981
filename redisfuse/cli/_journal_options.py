"""The options of the commands that open the journal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli._options import OptionList
from redisfuse.cli._params import BYTES, CHANGED_PATH, MAX_SQLITE_INTEGER, PATH, SESSION_ID, TIMESTAMP

if TYPE_CHECKING:
    from redisfuse.journal.change_rows import ChangeFilter
    from redisfuse.journal.journal import Journal

CHANGE_OPS = (
    "create",
    "write",
    "append",
    "truncate",
    "remove",
    "rename",
    "expire",
    "mkdir",
    "rmdir",
    "rollback",
    "apply",
)
CHANGE_STATES = ("pending", "applied", "failed", "unknown", "refused", "held")

journal_option = click.option(
    "--journal-file",
    type=PATH,
    metavar="FILE",
    show_default="journal.db in the platform's state folder",
    help="Database file of the journal.",
)
limit_option = click.option(
    "-n", "--limit", type=click.IntRange(0, MAX_SQLITE_INTEGER), metavar="N", help="Maximum number of rows to list."
)
filter_options = OptionList(
    click.option("--session", type=SESSION_ID, metavar="ID", help="Only changes of this session."),
    click.option("--key", type=BYTES, metavar="GLOB", help="Only keys that match (*, ?, [a-z], as in Redis)."),
    click.option("--path", type=CHANGED_PATH, metavar="PATH", help="Only this path and the paths below it."),
    click.option("--since", type=TIMESTAMP, metavar="TIME", help="From this time: ISO 8601, 14:30, 2h, yesterday."),
    click.option("--until", type=TIMESTAMP, metavar="TIME", help="Only before this time."),
    click.option("--state", type=click.Choice(CHANGE_STATES), multiple=True, help="Only in this state; repeatable."),
    click.option("--op", type=click.Choice(CHANGE_OPS), multiple=True, help="Only this operation; repeatable."),
)
"""The options that select changes; `build_change_filter` converts them."""


def open_journal(path: Path | None, *, write: bool = False) -> Journal:
    """Open an existing journal. Raises JournalError."""
    from redisfuse.journal.journal import Journal

    return Journal.open(path, writable=write)


def build_change_filter(
    *,
    session: int | None,
    key: bytes | None,
    path: bytes | None,
    since: int | None,
    until: int | None,
    state: tuple[Any, ...],
    op: tuple[str, ...],
    limit: int | None = None,
) -> ChangeFilter:
    """Return the filter for the values of `filter_options`."""
    from redisfuse.journal.change_rows import ChangeFilter

    return ChangeFilter(
        session_id=session, key_glob=key, path=path, since=since, until=until, outcomes=state, ops=op, limit=limit
    )

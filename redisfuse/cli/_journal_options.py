"""The options of the commands that open the journal, and select changes from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from redisfuse.cli._options import OptionList
from redisfuse.cli._params import BYTES, CHANGE_WORD, CHANGED_PATH, PATH, ROW_COUNT, SESSION_ID, TIMESTAMP
from redisfuse.errors import UsageError
from redisfuse.journal.filter_options import CHANGE_OPS, CHANGE_STATES

if TYPE_CHECKING:
    from redisfuse.journal.change_filter import ChangeFilter
    from redisfuse.journal.journal import Journal

journal_option = click.option(
    "--journal-file",
    type=PATH,
    metavar="PATH",
    show_default="journal.db in the platform's state folder",
    help="Database file of the journal.",
)
limit_option = click.option("-n", "--limit", type=ROW_COUNT, metavar="N", help="Maximum number of rows to list.")
change_words = click.argument("words", type=CHANGE_WORD, nargs=-1, metavar="[ID|PATH]...")
"""The argument that names changes, or the key whose history is meant."""

filter_options = OptionList(
    click.option("--session", type=SESSION_ID, metavar="ID", help="Only changes of this session."),
    click.option("--by", metavar="USER", help="Only changes of sessions of this user."),
    click.option("--key", type=BYTES, metavar="GLOB", help="Only keys that match (*, ?, [a-z], as in Redis)."),
    click.option("--path", type=CHANGED_PATH, metavar="PATH", help="Only this path and the paths below it."),
    click.option(
        "--since", type=TIMESTAMP, metavar="TIME", help="Only from this time on: ISO 8601, 14:30, 2h (ago), yesterday."
    ),
    click.option("--until", type=TIMESTAMP, metavar="TIME", help="Only before this time."),
    click.option(
        "--state", type=click.Choice(CHANGE_STATES), multiple=True, help="Only in this state; may be repeated."
    ),
    click.option("--op", type=click.Choice(CHANGE_OPS), multiple=True, help="Only this operation; may be repeated."),
)
"""The options that select changes; `build_change_filter` converts them."""

FILTER_NAMES = ("session", "by", "key", "path", "since", "until", "state", "op")


def open_journal(path: Path | None, *, write: bool = False) -> Journal:
    """Open an existing journal. Raises JournalError.

    All that a command changes is one operation, however long it takes.
    """
    from redisfuse.journal.journal import Journal
    from redisfuse.journal.writer import BULK_CHECKPOINT_BYTES

    return Journal.open(path, writable=write, operation_idle_ms=None, checkpoint_bytes=BULK_CHECKPOINT_BYTES)


def check_selection(journal: Journal, change_filter: ChangeFilter) -> None:
    """Check that a filter selects something definite.

    Raises UsageError for one without conditions, and NotFoundError for a session or a single change that does not
    exist.
    """
    from redisfuse.journal.change_filter import ChangeFilter

    if replace(change_filter, limit=None, oldest_first=False) == ChangeFilter() and change_filter.limit is None:
        raise UsageError("nothing selected: give IDs or a path, --session, --since, --key or another filter")
    if change_filter.session_id is not None:
        journal.get_session(change_filter.session_id)
    for ids in change_filter.id_ranges:
        if ids.first == ids.last:
            journal.get_change(ids.first)

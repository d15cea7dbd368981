"""Show what changes made different."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from redisfuse.cli import _journal_options
from redisfuse.cli._output import Printer, escape_text, json_option, local_time, print_json
from redisfuse.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redisfuse.journal.journal import Journal
    from redisfuse.journal.models import Change

STYLES = {"fact": "cyan", "place": "blue", "-": "red", "+": "green", " ": ""}
PREFIXES = {"fact": "", "place": "", "-": "-", "+": "+", " ": " "}


@click.command
@click.argument("ids", type=_journal_options.CHANGE, nargs=-1, metavar="ID...")
@click.option(
    "--session", type=_journal_options.SESSION, metavar="ID", help="All changes of this session, in their order."
)
@json_option
@_journal_options.journal_option
def command(ids: tuple[int, ...], session: int | None, as_json: bool, journal_file: Path | None) -> None:
    """Show what changes made different: text line by line, bytes in hex, collections by element.

    Changes of type and expiry are said first.
    """
    if bool(ids) == (session is not None):
        raise UsageError("give the ids of changes, or --session ID")
    from redisfuse.journal.diff import difference

    with _journal_options.open_journal(journal_file) as journal:
        printer = None if as_json else Printer()
        for change in _changes(journal, ids, session):
            if printer is None:
                lines = [{"mark": line.mark, "text": line.text} for line in difference(change)]
                print_json({**_journal_options.row_of(change), "difference": lines})
                continue
            _title(printer, change)
            for line in difference(change):
                printer.line(PREFIXES[line.mark] + line.text, STYLES[line.mark])


def _changes(journal: Journal, ids: tuple[int, ...], session: int | None) -> Iterator[Change]:
    if session is None:
        yield from (journal.change(id) for id in ids)
        return
    from redisfuse.journal.change_rows import Filter

    journal.session(session)
    yield from journal.changes(Filter(session=session, oldest_first=True))


def _title(printer: Printer, change: Change) -> None:
    state = "" if change.state == "applied" else f", {change.state}"
    printer.line(
        f"change {change.id}: {change.op} {_journal_options.where(change)} ({local_time(change.at)}{state})", "bold"
    )
    if change.error:
        printer.line(f"  {escape_text(change.error.encode())}")
    printer.line(f"  key {_journal_options.datum(change)}", "dim")

"""Show the difference that changes made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from redisfuse.cli._changes import change_to_json, format_key, format_path
from redisfuse.cli._journal_options import journal_option, open_journal
from redisfuse.cli._output import LinePrinter, escape_text, format_local_time, json_option, print_json
from redisfuse.cli._params import CHANGE_ID, SESSION_ID
from redisfuse.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redisfuse.journal.journal import Journal
    from redisfuse.journal.models import Change

MARK_STYLES = {"fact": "cyan", "place": "blue", "-": "red", "+": "green", " ": ""}
MARK_PREFIXES = {"fact": "", "place": "", "-": "-", "+": "+", " ": " "}


@click.command
@click.argument("ids", type=CHANGE_ID, nargs=-1, metavar="ID...")
@click.option("--session", type=SESSION_ID, metavar="ID", help="All changes of this session, oldest first.")
@json_option
@journal_option
def command(ids: tuple[int, ...], session: int | None, as_json: bool, journal_file: Path | None) -> None:
    """Show the difference that changes made.

    Text is compared by line, a collection by element, and other bytes are shown in hex. Differences of type and expiry
    are shown first.
    """
    if bool(ids) == (session is not None):
        raise UsageError("give the ids of changes, or --session ID")
    from redisfuse.journal.diff import diff_change

    with open_journal(journal_file) as journal:
        printer = None if as_json else LinePrinter()
        for change in _select_changes(journal, ids, session):
            if printer is None:
                lines = [{"mark": line.marker, "text": line.text} for line in diff_change(change)]
                print_json({**change_to_json(change), "difference": lines})
                continue
            _print_title(printer, change)
            for line in diff_change(change):
                printer.print(MARK_PREFIXES[line.marker] + line.text, MARK_STYLES[line.marker])


def _select_changes(journal: Journal, ids: tuple[int, ...], session: int | None) -> Iterator[Change]:
    if session is None:
        yield from (journal.get_change(id) for id in ids)
        return
    from redisfuse.journal.change_rows import ChangeFilter

    journal.get_session(session)
    yield from journal.find_changes(ChangeFilter(session_id=session, oldest_first=True))


def _print_title(printer: LinePrinter, change: Change) -> None:
    state = "" if change.outcome == "applied" else f", {change.outcome}"
    recorded = format_local_time(change.recorded_at)
    printer.print(f"change {change.id}: {change.op} {format_path(change)} ({recorded}{state})", "bold")
    if change.error:
        printer.print(f"  {escape_text(change.error.encode())}")
    printer.print(f"  key {format_key(change)}", "dim")

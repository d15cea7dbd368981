"""Settle changes of which it is not known whether they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from redisfuse.cli import _journal_options, _write_session
from redisfuse.cli._output import LinePrinter, format_count, json_option, print_json

OUTCOME_TEXTS = {
    "applied": "was made",
    "failed": "was not made: what was there before is still there",
    "unknown": "can't be told: neither what was there before nor what was written is there now",
}


@click.command
@json_option
@_write_session.connector_options
@_journal_options.journal_option
@click.pass_context
def command(context: click.Context, /, as_json: bool, journal_file: Path | None, **_connector_options: Any) -> int:
    """Settle changes of which it is not known whether they were made (a crash, a lost answer), by looking.

    This is done by itself at the next `--write` mount and before a rollback. What can't be told is marked `unknown` and
    never guessed at; the exit status is then 1, as it is if a server can't be reached.
    """
    with _journal_options.open_journal(journal_file, write=True) as journal:
        settled, complete = _write_session.resolve_pending(
            journal, _write_session.ServerConnector.from_context(context), quiet=False
        )
        if as_json:
            for change, _ in settled:
                print_json(_journal_options.change_to_json(journal.get_change(change.id)))
        else:
            printer = LinePrinter()
            for change, outcome in settled:
                printer.print(
                    f"{_write_session.format_change(change)}: {OUTCOME_TEXTS[outcome]}",
                    _journal_options.STATE_STYLES[outcome],
                )
            printer.print(f"{format_count(len(settled), 'change')} settled")
    return 0 if complete and all(outcome != "unknown" for _, outcome in settled) else 1

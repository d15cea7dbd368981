"""Settle changes whose outcome is unknown, by reading their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from redisfuse.cli._changes import STATE_STYLES, change_to_json
from redisfuse.cli._journal_options import journal_option, open_journal
from redisfuse.cli._output import LinePrinter, format_count, json_option, print_json
from redisfuse.cli._write_session import connector_options, create_connector, resolve_pending, write_abandoned_files
from redisfuse.journal.descriptions import format_change

OUTCOME_TEXTS = {
    "applied": "was made",
    "failed": "was not made: the key still has its old value",
    "unknown": "can't be determined: the key has neither its old value nor the one that was written",
    "refused": "was refused: another client has created the key",
}


@click.command
@click.option("--force", is_flag=True, help="Settle changes even if the server seems to be another one.")
@json_option
@connector_options
@journal_option
@click.pass_context
def command(
    context: click.Context, /, force: bool, as_json: bool, journal_file: Path | None, **_connector_options: Any
) -> int:
    """Settle changes whose outcome is unknown, by reading their keys.

    An outcome is unknown after a crash or a lost reply. The next `--write` mount and every rollback do this
    automatically. This command and the next mount also write the temporary files that a mount held back when it died.
    A change whose outcome can't be determined is marked `unknown`. The exit status is 1 if there is such a change, if a
    server can't be reached, or if it seems to be another server than the one on which a change was made.

    \b
    redisfuse recover
    """  # noqa: D301 - click reads the control character \b
    with open_journal(journal_file, write=True) as journal:
        connector = create_connector(context)
        settled, complete = resolve_pending(journal, connector, quiet=False, force=force)
        written, all_written = write_abandoned_files(journal, connector, force=force)
        settled += written
        complete = complete and all_written
        if as_json:
            for change, _ in settled:
                print_json(change_to_json(journal.get_change(change.id)))
        else:
            printer = LinePrinter()
            for change, outcome in settled:
                printer.print(f"{format_change(change)}: {OUTCOME_TEXTS[outcome]}", STATE_STYLES[outcome])
            printer.print(f"{format_count(len(settled), 'change')} settled")
            if pending := len(journal.find_pending_changes()):
                printer.print(
                    f"{format_count(pending, 'change')} not settled yet: the mount still runs, the server may still "
                    "execute the command, or it is another server"
                )
    return 0 if complete and all(outcome != "unknown" for _, outcome in settled) else 1

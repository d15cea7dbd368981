"""Write an edit that was refused, or any change's new state once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from redisfuse.cli import _journal_options, _write_session
from redisfuse.cli._output import LinePrinter, json_option, print_json


@click.command
@click.argument("id", type=_journal_options.CHANGE_ID)
@click.option("--force", is_flag=True, help="Write it also over what was changed since, or over another type.")
@json_option
@_write_session.connector_options
@_journal_options.journal_option
@click.pass_context
def command(
    context: click.Context, /, id: int, force: bool, as_json: bool, journal_file: Path | None, **_connector_options: Any
) -> None:
    """Write an edit that was refused, after you have looked at it with `redisfuse diff ID`.

    A refused edit is written only over what it was refused for; if that was changed once more, look again and use
    --force. Any other change can be made once more too. It is journaled, and can be rolled back.
    """
    from redisfuse.transactions.apply import apply_change

    with _journal_options.open_journal(journal_file, write=True) as journal:
        change = journal.get_change(id)
        with _write_session.write_session(
            journal, _write_session.ServerConnector.from_context(context), change.session_id
        ) as work:
            made = apply_change(work.executor, journal.get_change(id), force=force)
        if as_json:
            for each in made:
                print_json(_journal_options.change_to_json(journal.get_change(each)))
        elif made:
            LinePrinter().print(f"change {id} is written, as change {made[0]}: {_journal_options.format_key(change)}")
        else:
            LinePrinter().print(
                f"change {id}: there is nothing to do, {_journal_options.format_key(change)} is gone already"
            )

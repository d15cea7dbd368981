"""Write a refused edit, after you have inspected it with `redisfuse diff ID`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from redisfuse.cli._changes import change_to_json
from redisfuse.cli._journal_options import journal_option, open_journal
from redisfuse.cli._output import LinePrinter, json_option, print_json
from redisfuse.cli._params import CHANGE_ID
from redisfuse.cli._write_session import connector_options, create_connector, write_session
from redisfuse.journal.descriptions import format_key


@click.command
@click.argument("id", type=CHANGE_ID)
@click.option("--force", is_flag=True, help="Write over later changes and other types, and to another server.")
@json_option
@connector_options
@journal_option
@click.pass_context
def command(
    context: click.Context, /, id: int, force: bool, as_json: bool, journal_file: Path | None, **_connector_options: Any
) -> None:
    """Write a refused edit, after you have inspected it with `redisfuse diff ID`.

    A refused edit is written only if the key still has the value that caused the refusal. If it has changed again,
    inspect it again and use --force. Any other change can be repeated, too. The write is journaled and can be rolled
    back.

    \b
    redisfuse apply 42
    """  # noqa: D301 - click reads the control character \b
    from redisfuse.transactions.apply import apply_change

    with open_journal(journal_file, write=True) as journal:
        change = journal.get_change(id)
        with write_session(journal, create_connector(context), [change], force=force) as session:
            new_ids = apply_change(session.executor, journal.get_change(id), force=force)
        if as_json:
            for new_id in new_ids:
                print_json(change_to_json(journal.get_change(new_id)))
        elif new_ids:
            LinePrinter().print(f"change {id} is written, as change {new_ids[0]}: {format_key(change)}")
        else:
            LinePrinter().print(f"change {id}: nothing to do, {format_key(change)} does not exist any more")

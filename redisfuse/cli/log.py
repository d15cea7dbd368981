"""List the changes, newest first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from redisfuse.cli import _journal_options
from redisfuse.cli._output import Column, Table, amount, escape_text, json_option, local_time, moment, print_json


@click.command
@_journal_options.filter_options
@click.option("-n", "--limit", type=click.IntRange(0, _journal_options.MOST), metavar="N", help="At most so many.")
@json_option
@_journal_options.journal_option
def command(journal_file: Path | None, as_json: bool, limit: int | None, **chosen: Any) -> None:
    """List the changes, newest first.

    Piped, a line is: id, time (UTC), session, operation, state, size before, size after, path, key, field, the change
    that it reverts; between tabs.
    """
    with _journal_options.open_journal(journal_file) as journal:
        changes = journal.changes(_journal_options.filter_of(limit=limit, **chosen))
        if as_json:
            for change in changes:
                print_json(_journal_options.row_of(change))
            return
        table = None
        for change in changes:
            table = table or _table(change.id)
            _print(table, change)


def _table(newest: int) -> Table:
    return Table(
        [
            Column("ID", max(2, len(str(newest))), right=True),
            Column("TIME", 19),
            Column("WHAT", 8),
            Column("SIZE", 21, right=True),
            Column("STATE", 7),
            Column("PATH", 0),
        ]
    )


def _print(table: Table, change: Any) -> None:
    path = _journal_options.where(change)
    extra = (
        f" (reverts {change.reverts})" if change.reverts else f" (applies {change.applies})" if change.applies else ""
    )
    table.row(
        (
            *(str(change.id), local_time(change.at), change.op, _sizes(change.prior.size, change.new.size)),
            *(change.state, path + extra),
        ),
        (
            *(change.id, moment(change.at), change.session, change.op, change.state, change.prior.size),
            *(
                change.new.size,
                path,
                escape_text(change.key),
                None if change.field is None else escape_text(change.field),
            ),
            change.reverts,
        ),
        _journal_options.STYLES[change.state],
    )


def _sizes(prior: int | None, new: int | None) -> str:
    before, after = ("-" if size is None else amount(size) for size in (prior, new))
    return f"{before} → {after}"

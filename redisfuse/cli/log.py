"""List the changes, newest first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from redisfuse.cli import _journal_options
from redisfuse.cli._output import (
    TableColumn,
    TablePrinter,
    escape_text,
    format_bytes,
    format_local_time,
    format_utc,
    json_option,
    print_json,
)
from redisfuse.journal.models import Change


@click.command
@_journal_options.filter_options
@click.option(
    "-n", "--limit", type=click.IntRange(0, _journal_options.MAX_SQLITE_INTEGER), metavar="N", help="At most so many."
)
@json_option
@_journal_options.journal_option
def command(journal_file: Path | None, as_json: bool, limit: int | None, **filters: Any) -> None:
    """List the changes, newest first.

    Piped, a line is: id, time (UTC), session, operation, state, size before, size after, path, key, field, the change
    that it reverts; between tabs.
    """
    with _journal_options.open_journal(journal_file) as journal:
        changes = journal.find_changes(_journal_options.build_change_filter(limit=limit, **filters))
        if as_json:
            for change in changes:
                print_json(_journal_options.change_to_json(change))
            return
        table = None
        for change in changes:
            table = table or _create_table(change.id)
            _print_change(table, change)


def _create_table(newest_id: int) -> TablePrinter:
    return TablePrinter(
        [
            TableColumn("ID", max(2, len(str(newest_id))), align_right=True),
            TableColumn("TIME", 19),
            TableColumn("WHAT", 8),
            TableColumn("SIZE", 21, align_right=True),
            TableColumn("STATE", 7),
            TableColumn("PATH", 0),
        ]
    )


def _print_change(table: TablePrinter, change: Change) -> None:
    path = _journal_options.format_path(change)
    extra = (
        f" (reverts {change.reverts})" if change.reverts else f" (applies {change.applies})" if change.applies else ""
    )
    table.print_row(
        (
            *(
                str(change.id),
                format_local_time(change.recorded_at),
                change.op,
                _format_sizes(change.prior.size, change.new.size),
            ),
            *(change.outcome, path + extra),
        ),
        (
            *(
                change.id,
                format_utc(change.recorded_at),
                change.session_id,
                change.op,
                change.outcome,
                change.prior.size,
            ),
            *(
                change.new.size,
                path,
                escape_text(change.key),
                None if change.field is None else escape_text(change.field),
            ),
            change.reverts,
        ),
        _journal_options.STATE_STYLES[change.outcome],
    )


def _format_sizes(prior: int | None, new: int | None) -> str:
    before, after = ("-" if size is None else format_bytes(size) for size in (prior, new))
    return f"{before} → {after}"

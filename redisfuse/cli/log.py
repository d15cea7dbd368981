"""List the changes, newest first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from redisfuse.cli._changes import STATE_STYLES, change_to_json, format_path
from redisfuse.cli._journal_options import (
    build_change_filter,
    filter_options,
    journal_option,
    limit_option,
    open_journal,
)
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
@filter_options
@limit_option
@json_option
@journal_option
def command(journal_file: Path | None, as_json: bool, limit: int | None, **filters: Any) -> None:
    """List the changes, newest first.

    In a pipe, each line has these fields, separated by tabs: id, time (UTC), session, operation, state, size before,
    size after, path, key, field, id of the reverted change.
    """
    with open_journal(journal_file) as journal:
        changes = journal.find_changes(build_change_filter(limit=limit, **filters))
        if as_json:
            for change in changes:
                print_json(change_to_json(change))
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
            TableColumn("CHANGE", 8),
            TableColumn("SIZE", 21, align_right=True),
            TableColumn("STATE", 7),
            TableColumn("PATH", 0),
        ]
    )


def _print_change(table: TablePrinter, change: Change) -> None:
    path = format_path(change)
    extra = (
        f" (reverts {change.reverts})" if change.reverts else f" (applies {change.applies})" if change.applies else ""
    )
    table.print_row(
        (
            str(change.id),
            format_local_time(change.recorded_at),
            change.op,
            _format_sizes(change.prior.size, change.new.size),
            change.outcome,
            path + extra,
        ),
        (
            change.id,
            format_utc(change.recorded_at),
            change.session_id,
            change.op,
            change.outcome,
            change.prior.size,
            change.new.size,
            path,
            escape_text(change.key),
            None if change.field is None else escape_text(change.field),
            change.reverts,
        ),
        STATE_STYLES[change.outcome],
    )


def _format_sizes(prior: int | None, new: int | None) -> str:
    before, after = ("-" if size is None else format_bytes(size) for size in (prior, new))
    return f"{before} → {after}"

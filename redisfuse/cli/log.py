"""List the operations and their changes, newest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from more_itertools import chunked

from redisfuse.cli._changes import STATE_STYLES, change_to_json
from redisfuse.cli._journal_options import (
    change_words,
    filter_options,
    journal_option,
    limit_option,
    open_journal,
)
from redisfuse.cli._output import (
    LinePrinter,
    TableColumn,
    TablePrinter,
    bytes_to_json,
    escape_text,
    format_row_time,
    format_size_pair,
    format_utc,
    is_terminal,
    json_option,
    local_zone,
    print_json,
    shorten,
    terminal_width,
)
from redisfuse.cli._pager import paged_output, pager_option
from redisfuse.cli._patch_output import PatchPrinter, PatchStyle, full_option
from redisfuse.journal.change_filter import IdRange
from redisfuse.journal.descriptions import (
    format_operation_path,
    format_path,
    format_process,
    list_change_notes,
    list_operation_notes,
    summarize_ops,
)
from redisfuse.journal.filter_options import build_change_filter

if TYPE_CHECKING:
    from redisfuse.journal.journal import Journal
    from redisfuse.journal.models import Change
    from redisfuse.journal.operations import OperationSummary

DEFAULT_LIMIT = 100  # operations or changes on a terminal
ROWS_PER_LOOKUP = 200  # changes whose reversals are looked up together
MIN_WIDTH_WITH_PROCESS = 110  # columns of a terminal that also shows the process
PROCESS_WIDTH = 20
MIN_PATH_WIDTH = 8


@click.command
@change_words
@click.option("--keys", "by_key", is_flag=True, help="List each change of a key, not only the operations.")
@click.option("-p", "--patch", "style", flag_value="patch", help="Show the difference below each row.")
@click.option("--stat", "style", flag_value="stat", help="Show how many lines changed below each row.")
@full_option
@filter_options
@limit_option
@json_option
@pager_option
@journal_option
def command(
    words: tuple[str, ...],
    by_key: bool,
    style: PatchStyle | None,
    full: bool,
    limit: int | None,
    as_json: bool,
    pager: bool,
    journal_file: Path | None,
    **filters: Any,
) -> None:
    """List the operations and their changes, newest first.

    \b
    redisfuse log --since 2h --by ada     what ada's mounts changed
    redisfuse log template/welcome.html   one key's history, through its renames
    redisfuse log 10012+ --keys           each change of operation 10012
    redisfuse log -p --limit 1            the newest operation with its difference

    The changes that one process makes within a moment, such as rm -r of a folder, are one operation. Its ID is that of
    its first change, with a + if there are more. On a terminal the newest 100 are shown, with local times.

    In a pipe, each line has these fields, separated by tabs: id, time (UTC), session, operation, state, size before,
    size after, path, key, field, id of the reverted change, number of changes, number of those that were rolled back,
    name and pid of the process.
    """  # noqa: D301 - click reads the control character \b
    with open_journal(journal_file) as journal, paged_output(pager and not as_json):
        is_limited = limit is None and is_terminal() and not as_json
        change_filter = build_change_filter(journal, words, limit=DEFAULT_LIMIT + 1 if is_limited else limit, **filters)
        rows: Iterator[_LogRow]
        if by_key:
            rows = _iter_change_rows(journal, journal.find_changes(change_filter))
        else:
            rows = map(_build_operation_row, journal.find_operations(change_filter))
        table: _LogTable | None = None
        for number, row in enumerate(rows):
            if as_json:
                print_json(row.json)
                continue
            if is_limited and number == DEFAULT_LIMIT:
                LinePrinter().print(f"… the newest {DEFAULT_LIMIT}; --limit N lists more", "dim")
                return
            table = table or _LogTable(row)
            table.print(row)
            if style is not None:
                shown = replace(change_filter, **row.selection, limit=None)
                PatchPrinter(journal, style, full=full).print_changes(shown)
                LinePrinter().print()


class _LogRow:
    """A row of the list: an operation or a change."""

    def __init__(
        self,
        *,
        id: str,
        time: int,
        session_id: int,
        ops: str,
        outcomes: str,
        sizes: tuple[int | None, int | None],
        path: str,
        notes: list[str],
        keys: tuple[bytes | None, bytes | None],
        counts: tuple[int, int],
        reverts: int | None,
        process: tuple[str | None, int | None],
        json: dict[str, Any],
        selection: dict[str, Any],
    ) -> None:
        self.id, self.time, self.ops, self.outcomes = id, time, ops, outcomes
        self.sizes, self.path, self.notes = sizes, path, notes
        self.process = format_process(*process)
        self.json, self.selection = json, selection
        key, field = (None if each is None else escape_text(each) for each in keys)
        command = None if process[0] is None else escape_text(process[0].encode())
        self.piped = (
            *(id, format_utc(time), session_id, ops, outcomes, *sizes, path, key, field, reverts, *counts),
            *(command, process[1]),
        )
        self.shown_op = summarize_ops(ops.split(","))
        is_reverted = counts[1] == counts[0]
        self.style = "dim" if is_reverted else STATE_STYLES.get(outcomes, "")


class _LogTable:
    """Prints rows in the width of the terminal, or between tabs."""

    def __init__(self, newest: _LogRow) -> None:
        self._zone = local_zone()
        width = terminal_width()
        columns = [
            TableColumn("ID", max(4, len(newest.id)), align_right=True),
            TableColumn(f"TIME {self._zone}", 19),
            TableColumn("CHANGE", 8),
            TableColumn("SIZE", 9, align_right=True),
        ]
        self._has_process = width >= MIN_WIDTH_WITH_PROCESS
        if self._has_process:
            columns.append(TableColumn("PROCESS", PROCESS_WIDTH))
        self._path_width = width - sum(column.width + 2 for column in columns)
        self._table = TablePrinter([*columns, TableColumn("PATH", 0)])

    def print(self, row: _LogRow) -> None:
        """Print one row."""
        cells = [row.id, format_row_time(row.time, self._zone), row.shown_op, format_size_pair(*row.sizes)]
        if self._has_process:
            cells.append(shorten(row.process, PROCESS_WIDTH))
        notes = f" ({', '.join(row.notes)})" if row.notes else ""
        if is_terminal():
            path = shorten(row.path, max(MIN_PATH_WIDTH, self._path_width - len(notes)))
            cells.append(path + shorten(notes, self._path_width - MIN_PATH_WIDTH))
        else:
            cells.append("")
        self._table.print_row(cells, row.piped, row.style)


def _iter_change_rows(journal: Journal, changes: Iterator[Change]) -> Iterator[_LogRow]:
    reversals = journal.create_reversal_index()
    for batch in chunked(changes, ROWS_PER_LOOKUP):
        reverted = reversals.find_reverted(change.id for change in batch)
        partly = reversals.find_partly_reverting_ids(change.id for change in batch)
        for change in batch:
            is_reverted = change.id in reverted
            yield _LogRow(
                id=str(change.id),
                time=change.recorded_at,
                session_id=change.session_id,
                ops=change.op,
                outcomes=change.outcome,
                sizes=(change.prior.size, change.new.size),
                path=format_path(change),
                notes=list_change_notes(change, is_reverted=is_reverted, is_partly_reverted=change.id in partly),
                keys=(change.key, change.field),
                counts=(1, int(is_reverted)),
                reverts=change.reverts,
                process=(change.command, change.pid),
                json={
                    **change_to_json(change),
                    "rolled_back": is_reverted,
                    "partly_rolled_back": change.id in partly and not is_reverted,
                },
                selection={"id_ranges": (IdRange(change.id, change.id),), "operation_ids": ()},
            )


def _build_operation_row(operation: OperationSummary) -> _LogRow:
    count, reverted = operation.change_count, operation.reverted_count
    is_single = count == 1 and operation.first_id == operation.id
    return _LogRow(
        id=str(operation.id) if is_single else f"{operation.id}+",
        time=operation.started_at,
        session_id=operation.session_id,
        ops=",".join(operation.ops),
        outcomes=",".join(operation.outcomes),
        sizes=(operation.prior_bytes, operation.new_bytes),
        path=format_operation_path(operation),
        notes=list_operation_notes(operation),
        keys=(operation.key, operation.field),
        counts=(count, reverted),
        reverts=operation.reverts,
        process=(operation.command, operation.pid),
        json=_operation_to_json(operation),
        selection={"id_ranges": (), "operation_ids": (operation.id,)},
    )


def _operation_to_json(operation: OperationSummary) -> dict[str, Any]:
    """Return an operation for scripts.

    `id` is its latest change, `state` that of all its changes; None if they differ.
    """
    return {
        "id": operation.last_id,
        "state": operation.outcomes[0] if len(operation.outcomes) == 1 else None,
        "operation": operation.id,
        "session": operation.session_id,
        "changes": operation.change_count,
        "keys": operation.key_count,
        "first": operation.first_id,
        "last": operation.last_id,
        "started_at": format_utc(operation.started_at),
        "ended_at": format_utc(operation.ended_at),
        "ops": operation.ops,
        "states": operation.outcomes,
        "path": bytes_to_json(operation.path),
        "is_directory": operation.is_directory,
        "new_path": bytes_to_json(operation.new_path),
        "key": bytes_to_json(operation.key),
        "field": bytes_to_json(operation.field),
        "prior_size": operation.prior_bytes,
        "new_size": operation.new_bytes,
        "rolled_back": operation.reverted_count,
        "partly_rolled_back": operation.partly_reverted_count,
        "reverts": operation.reverts,
        "reverts_part": operation.reverts_part,
        "applies": operation.applies,
        "error": operation.error,
        "command": operation.command,
        "pid": operation.pid,
    }

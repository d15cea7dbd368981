"""The lists and streams that `redisfuse top --queues` shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from redisfuse.cli._output import TableColumn, TablePrinter, print_json
from redisfuse.cli._record_output import format_seconds, record_to_json
from redisfuse.text import escape_text, for_terminal

if TYPE_CHECKING:
    from redisfuse.cli._where import Where
    from redisfuse.survey.queues import Queue

_COLUMNS = (
    TableColumn("TYPE", 6),
    TableColumn("LENGTH", 11, align_right=True),
    TableColumn("OLDEST", 8, align_right=True),
    TableColumn("GROUPS", 6, align_right=True),
    TableColumn("CONSUMERS", 9, align_right=True),
    TableColumn("PENDING", 9, align_right=True),
    TableColumn("LAG", 9, align_right=True),
    TableColumn("QUEUE", 0),
)


def print_queues(where: Where, queues: Sequence[Queue], paths: Sequence[bytes], *, as_json: bool) -> None:
    """Print queues; the paths are from the mount's root."""
    table = None if as_json else TablePrinter(_COLUMNS)
    for queue, path in zip(queues, paths, strict=True):
        record = queue.record
        shown_path = where.display_path(path, record.target)
        counts = (queue.groups, queue.consumers, queue.pending, queue.lag)
        if table is None:
            row = record_to_json(record, shown_path) | {"oldest_s": queue.oldest_age}
            print_json(row | dict(zip(("groups", "consumers", "pending", "lag"), counts, strict=True)))
            continue
        type_name = escape_text(record.type or b"")
        age = "" if queue.oldest_age is None else format_seconds(queue.oldest_age)
        shown = [type_name, f"{record.length:,}", age, *("" if count is None else f"{count:,}" for count in counts)]
        seconds = None if queue.oldest_age is None else round(queue.oldest_age)
        table.print_row(
            [*shown, for_terminal(shown_path)], [type_name, record.length, seconds, *counts, for_terminal(shown_path)]
        )

"""The output of commands: JSON lines, tables, tab-separated lines.

Tables are for terminals, tab-separated lines for pipes.
Text from a server is escaped or is JSON: no byte of a key or value reaches a terminal as a control character.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from redisfuse.cli._interrupts import removed_bar
from redisfuse.text import (
    escape_text,
    format_count,
    format_local_time,
    format_row_time,
    format_size_pair,
    iso_utc,
    local_zone,
)

TableCell = str | int | None


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")


_is_paged = False  # the output goes to a pager, which shows it on a terminal


def is_terminal() -> bool:
    """Return whether standard output is a terminal, directly or through a pager."""
    return _is_paged or sys.stdout.isatty()


@contextmanager
def terminal_output() -> Iterator[None]:
    """Treat standard output as a terminal while the body runs.

    A pager shows it on one.
    """
    global _is_paged
    _is_paged = True
    try:
        yield
    finally:
        _is_paged = False


def terminal_width() -> int:
    """Return the columns of the terminal."""
    return shutil.get_terminal_size().columns


# -- JSON ------------------------------------------------------------------------------------------------------------


def bytes_to_json(data: bytes | None) -> str | dict[str, str] | None:
    """Return bytes for JSON: text if they are UTF-8, else `{"base64": …}`.

    The same as in NAME%json.
    """
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def format_utc(milliseconds: int | None) -> str | None:
    """Return a time for JSON: ISO 8601, UTC."""
    return None if milliseconds is None else iso_utc(milliseconds)


def print_json(row: Mapping[str, Any]) -> None:
    """Print one object as one line.

    On a terminal all characters except ASCII are escaped, so that the terminal interprets none of them.
    """
    click.echo(json.dumps(row, ensure_ascii=is_terminal()))


# -- lines -----------------------------------------------------------------------------------------------------------


class LinePrinter:
    """Prints lines, coloured on a terminal and plain elsewhere.

    The text must be printable.
    """

    def __init__(self) -> None:
        self._console: Any = None
        if is_terminal():
            self._console = _create_console()

    def print(self, text: str = "", style: str = "") -> None:
        """Print one line."""
        if self._console is None:
            click.echo(text)
        else:
            self._console.print(text, style=style)


def _create_console() -> Any:
    from rich.console import Console

    class QuietConsole(Console):
        """A console of rich's that does not end the program when the pager has ended."""

        def on_broken_pipe(self) -> None:
            """Raise the error again."""
            raise BrokenPipeError

    return QuietConsole(highlight=False, markup=False, emoji=False, soft_wrap=True, force_terminal=_is_paged or None)


# -- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column of a table on a terminal."""

    title: str
    width: int  # characters; 0: the rest of the line (last column only)
    align_right: bool = False


class TablePrinter:
    """Prints rows one by one.

    On a terminal with titles and colours, else as cells between tabs.
    """

    def __init__(self, columns: Sequence[TableColumn]) -> None:
        self._columns = columns
        self._printer = LinePrinter()
        self._on_terminal = is_terminal()
        if self._on_terminal:
            self._printer.print(self._align([column.title for column in columns]), "bold")

    def print_row(self, terminal_cells: Sequence[str], piped_cells: Iterable[TableCell], style: str = "") -> None:
        """Print a row; all cells must be printable, without tabs."""
        if self._on_terminal:
            self._printer.print(self._align(terminal_cells), style)
        else:
            click.echo("\t".join("" if cell is None else str(cell) for cell in piped_cells))

    def _align(self, cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(column.width) if column.align_right else cell.ljust(column.width)
            for cell, column in zip(cells, self._columns, strict=True)
        ]
        return "  ".join(padded).rstrip()


# -- progress --------------------------------------------------------------------------------------------------------


PROGRESS_DELAY_SECONDS = 0.3
"""After which a bar appears, also if no item is done yet: work that ends sooner shows none."""


class ProgressBar:
    """A progress bar on standard error; without one of rich's, it shows nothing."""

    def __init__(self, progress: Any = None, task: Any = None) -> None:
        self._progress = progress
        self._task = task
        self._is_shown = False
        if progress is not None:
            self._timer = threading.Timer(PROGRESS_DELAY_SECONDS, self._show)
            self._timer.name = "redisfuse-bar"
            self._timer.daemon = True
            self._timer.start()

    def set_total(self, total: int) -> None:
        """Set the number of items."""
        if self._progress is not None:
            self._progress.update(self._task, total=total)

    def advance(self, count: int) -> None:
        """Count items as done."""
        if self._progress is not None:
            self._progress.advance(self._task, count)

    def close(self) -> bool:
        """Remove the bar; return whether there was one."""
        if self._progress is not None:
            self._timer.cancel()
            self._timer.join()
        if self._is_shown:
            self._progress.stop()
        return self._is_shown

    def _show(self) -> None:
        self._progress.start()
        self._is_shown = True


@contextmanager
def progress_bar(title: str, total: int | None = None) -> Iterator[ProgressBar]:
    """Yield a bar, which is visible if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield ProgressBar()
        return
    from rich.console import Console
    from rich.progress import Progress

    progress = Progress(console=Console(stderr=True), transient=True)
    bar = ProgressBar(progress, progress.add_task(title, total=total))
    with removed_bar(bar.close):
        yield bar


# -- text ------------------------------------------------------------------------------------------------------------


def shorten(text: str, width: int) -> str:
    """Return a printable text in at most `width` columns.

    A longer one has an ellipsis in its middle.
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    head = max(0, width - 1) // 3
    tail = text
    while tail and cell_len(tail) > max(0, width - 1 - head):
        tail = tail[1:]
    return f"{set_cell_size(text, head)}…{tail}"


def format_bytes(size: int) -> str:
    """Return a number of bytes for people: 17 B, 1.5 KiB, 200.0 MiB."""
    if size < 1024:
        return f"{size} B"
    number = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"


__all__ = [
    "LinePrinter",
    "ProgressBar",
    "TableCell",
    "TableColumn",
    "TablePrinter",
    "bytes_to_json",
    "escape_text",
    "format_bytes",
    "format_count",
    "format_local_time",
    "format_row_time",
    "format_size_pair",
    "format_utc",
    "is_terminal",
    "json_option",
    "local_zone",
    "print_json",
    "progress_bar",
]

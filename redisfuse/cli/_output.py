"""The output of commands: JSON lines, tables, tab-separated lines.

Tables are for terminals, tab-separated lines for pipes.
Text from a server is escaped or is JSON: no byte of a key or value reaches a terminal as a control character.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from redisfuse.text import escape_text, iso_utc

TableCell = str | int | None


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")


def is_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout.isatty()


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
            from rich.console import Console

            self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

    def print(self, text: str = "", style: str = "") -> None:
        """Print one line."""
        if self._console is None:
            click.echo(text)
        else:
            self._console.print(text, style=style)


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


class ProgressBar:
    """A progress bar on standard error; without one of rich's, it shows nothing."""

    def __init__(self, progress: Any = None, task: Any = None) -> None:
        self._progress = progress
        self._task = task

    def set_total(self, total: int) -> None:
        """Set the number of items."""
        if self._progress is not None:
            self._progress.update(self._task, total=total)

    def advance(self, count: int) -> None:
        """Count items as done."""
        if self._progress is not None:
            self._progress.advance(self._task, count)


@contextmanager
def progress_bar(title: str, total: int | None = None) -> Iterator[ProgressBar]:
    """Yield a bar, which is visible if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield ProgressBar()
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        yield ProgressBar(progress, progress.add_task(title, total=total))


# -- text ------------------------------------------------------------------------------------------------------------


def format_local_time(milliseconds: int | None) -> str:
    """Return a time for people: local, to the second."""
    if milliseconds is None:
        return ""
    try:
        return f"{datetime.fromtimestamp(milliseconds // 1000):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)


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


def format_count(number: int, noun: str) -> str:
    """Return a number and its noun: `1 change`, `1,200 changes`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


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
    "format_utc",
    "is_terminal",
    "json_option",
    "print_json",
    "progress_bar",
]

"""How commands answer: JSON lines, tables on a terminal, tab-separated lines when piped.

Whatever comes from a server is escaped here, or is JSON: no byte of a key or value reaches a terminal as a control.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from redisfuse.text import escape_text, iso_utc

TableCell = str | int | None


def json_option(command: Any) -> Any:
    """`--json`: one object a line."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")(command)


def is_terminal() -> bool:
    """Whether standard output is shown to somebody."""
    return sys.stdout.isatty()


# -- JSON ------------------------------------------------------------------------------------------------------------


def bytes_to_json(data: bytes | None) -> str | dict[str, str] | None:
    """Bytes in JSON: text if they are UTF-8, else `{"base64": …}` (as in NAME%json)."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def format_utc(milliseconds: int | None) -> str | None:
    """A time in JSON: ISO 8601, UTC."""
    return None if milliseconds is None else iso_utc(milliseconds)


def print_json(row: Mapping[str, Any]) -> None:
    """One object on a line of its own. On a terminal everything but ASCII is escaped, so that nothing is obeyed."""
    click.echo(json.dumps(row, ensure_ascii=is_terminal()))


# -- lines -----------------------------------------------------------------------------------------------------------


class LinePrinter:
    """Lines that are coloured on a terminal and plain elsewhere. Text given to it is printable already."""

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
    width: int  # characters; 0: the rest of the line (the last column)
    align_right: bool = False


class TablePrinter:
    """Rows printed as they come: with titles and colours on a terminal, else cells between tabs."""

    def __init__(self, columns: Sequence[TableColumn]) -> None:
        self._columns = columns
        self._printer = LinePrinter()
        self._on_terminal = is_terminal()
        if self._on_terminal:
            self._printer.print(self._align([column.title for column in columns]), "bold")

    def print_row(self, terminal_cells: Sequence[str], piped_cells: Iterable[TableCell], style: str = "") -> None:
        """`shown` on a terminal, `bytes_to_json` in a pipe. Both printable, without tabs."""
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


# -- words -----------------------------------------------------------------------------------------------------------


def format_local_time(milliseconds: int | None) -> str:
    """A time for eyes: local, to the second."""
    if milliseconds is None:
        return ""
    try:
        return f"{datetime.fromtimestamp(milliseconds // 1000):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)


def format_bytes(size: int) -> str:
    """A number of bytes for eyes: 17 B, 1.5 KiB, 200.0 MiB."""
    if size < 1024:
        return f"{size} B"
    number = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"


def format_count(number: int, noun: str) -> str:
    """`1 change`, `1,200 changes`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


__all__ = [
    "LinePrinter",
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
]

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

Cell = str | int | None


def json_option(command: Any) -> Any:
    """`--json`: one object a line."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")(command)


def is_terminal() -> bool:
    """Whether standard output is shown to somebody."""
    return sys.stdout.isatty()


# -- JSON ------------------------------------------------------------------------------------------------------------


def plain(data: bytes | None) -> str | dict[str, str] | None:
    """Bytes in JSON: text if they are UTF-8, else `{"base64": …}` (as in NAME%json)."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def moment(milliseconds: int | None) -> str | None:
    """A time in JSON: ISO 8601, UTC."""
    return None if milliseconds is None else iso_utc(milliseconds)


def print_json(row: Mapping[str, Any]) -> None:
    """One object on a line of its own. On a terminal everything but ASCII is escaped, so that nothing is obeyed."""
    click.echo(json.dumps(row, ensure_ascii=is_terminal()))


# -- lines -----------------------------------------------------------------------------------------------------------


class Printer:
    """Lines that are coloured on a terminal and plain elsewhere. Text given to it is printable already."""

    def __init__(self) -> None:
        self._console: Any = None
        if is_terminal():
            from rich.console import Console

            self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

    def line(self, text: str = "", style: str = "") -> None:
        """Print one line."""
        if self._console is None:
            click.echo(text)
        else:
            self._console.print(text, style=style)


# -- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table on a terminal."""

    title: str
    width: int  # characters; 0: the rest of the line (the last column)
    right: bool = False


class Table:
    """Rows printed as they come: with titles and colours on a terminal, else cells between tabs."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._printer = Printer()
        self._shown = is_terminal()
        if self._shown:
            self._printer.line(self._aligned([column.title for column in columns]), "bold")

    def row(self, shown: Sequence[str], plain: Iterable[Cell], style: str = "") -> None:
        """`shown` on a terminal, `plain` in a pipe. Both printable, without tabs."""
        if self._shown:
            self._printer.line(self._aligned(shown), style)
        else:
            click.echo("\t".join("" if cell is None else str(cell) for cell in plain))

    def _aligned(self, cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(column.width) if column.right else cell.ljust(column.width)
            for cell, column in zip(cells, self._columns, strict=True)
        ]
        return "  ".join(padded).rstrip()


# -- words -----------------------------------------------------------------------------------------------------------


def local_time(milliseconds: int | None) -> str:
    """A time for eyes: local, to the second."""
    if milliseconds is None:
        return ""
    try:
        return f"{datetime.fromtimestamp(milliseconds // 1000):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)


def amount(size: int) -> str:
    """A number of bytes for eyes: 17 B, 1.5 KiB, 200.0 MiB."""
    if size < 1024:
        return f"{size} B"
    number = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"


def count(number: int, noun: str) -> str:
    """`1 change`, `1,200 changes`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


__all__ = [
    "Cell",
    "Column",
    "Printer",
    "Table",
    "amount",
    "count",
    "escape_text",
    "is_terminal",
    "json_option",
    "local_time",
    "moment",
    "plain",
    "print_json",
]

"""Tables of figures: printed with rich, written as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table as RichTable


@dataclass(slots=True)
class ResultTable:
    """The figures of one topic. Columns that are empty in every row are left out."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_row(self, *cells: str, **named: str) -> None:
        """Add a row: the first cells in order, others by column (`_` for a space)."""
        row = [*cells, *[""] * (len(self.columns) - len(cells))]
        for name, cell in named.items():
            row[self.columns.index(name.replace("_", " "))] = cell
        self.rows.append(row)
        Console(stderr=True).print(f"[dim]{' | '.join(filter(None, row))}[/dim]", highlight=False)

    def _used_columns(self) -> list[int]:
        return [number for number in range(len(self.columns)) if any(row[number] for row in self.rows)]

    def print(self, console: Console) -> None:
        """Print the table and its notes."""
        table = RichTable(title=self.title, title_justify="left", title_style="bold")
        used = self._used_columns()
        for number in used:
            table.add_column(self.columns[number], justify="left" if number == 0 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*[row[number] for number in used])
        console.print(table)
        for note in self.notes:
            console.print(f"  {note}", highlight=False)

    def to_markdown(self) -> str:
        """Return the table as a section of a Markdown file."""
        used = self._used_columns()
        lines = [f"## {self.title}", ""]
        lines.append("| " + " | ".join(self.columns[number] for number in used) + " |")
        lines.append("|" + "|".join("---" if number == 0 else "---:" for number in used) + "|")
        lines += ["| " + " | ".join(row[number].replace("|", "\\|") for number in used) + " |" for row in self.rows]
        lines += ["", *[f"- {note}" for note in self.notes]]
        return "\n".join(lines).rstrip() + "\n"


def format_seconds(value: float) -> str:
    """Return a duration as text."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1000:.1f} ms" if value >= 0.001 else f"{value * 1e6:.0f} µs"


def format_rate(value: float, unit: str = "") -> str:
    """Return a rate per second as text."""
    return f"{format_number(value)}{' ' + unit if unit else ''}/s"


def format_number(value: float) -> str:
    """Return a number as text, with its thousands separated."""
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 10 else f"{value:.3g}"


def format_size(value: float) -> str:
    """Return a number of bytes as text."""
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 10_000:
            return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def format_goal(target: str, is_met: bool) -> str:
    """Return a goal, and whether it was met in this run, as text."""
    return f"{target}: {'met' if is_met else 'MISSED'}"

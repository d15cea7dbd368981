"""Printing changes as patches, statistics or differences of words."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal

import click

from redisfuse.cli._output import (
    LinePrinter,
    escape_text,
    format_count,
    format_local_time,
    is_terminal,
    local_zone,
    terminal_width,
)
from redisfuse.journal.descriptions import format_key, format_process
from redisfuse.journal.word_diff import compare_words
from redisfuse.text import for_terminal

if TYPE_CHECKING:
    from redisfuse.journal.change_filter import ChangeFilter
    from redisfuse.journal.journal import Journal
    from redisfuse.journal.patch import FileChange, PatchLine
    from redisfuse.transactions.changed_files import ChangedFile

PatchStyle = Literal["patch", "stat", "word"]

MAX_SHOWN_LINES = 1000  # of a long value on a terminal, or of a collection, unless --full
MAX_LINE_BYTES = 4096  # of a line on a terminal, unless --full
MAX_HEX_BYTES = 1024  # of a binary value that a terminal shows in hex, unless --full
MIN_GRAPH_WIDTH = 10  # columns of the bar of --stat
FILES_IN_LAYOUT = 100  # whose lines of --stat decide the width of all; the others are printed as they are found

_STYLES = {"header": "bold", "hunk": "cyan", " ": "", "-": "red", "+": "green", "note": ""}
_FACT_STYLES = {"fact": "cyan", "place": "blue", "-": "red", "+": "green", " ": ""}


class PatchPrinter:
    """Prints the net changes of files, in one style.

    In a pipe the lines of contents are exactly theirs; on a terminal they are escaped. `full`: long and binary values
    are printed whole.
    """

    def __init__(self, journal: Journal, style: PatchStyle = "patch", *, full: bool = False) -> None:
        from redisfuse.transactions.changed_files import ChangedFiles

        self._files = ChangedFiles(journal)
        self._style = style
        self._full = full
        self._printer = LinePrinter()
        self._on_terminal = is_terminal()

    def print_changes(self, change_filter: ChangeFilter) -> None:
        """Print the net effect of the changes that match a filter, oldest first."""
        files = self._files.find(change_filter)
        if self._style == "stat":
            self._print_statistics(files)
            return
        for file in files:
            self._print_file(file)

    # -- patches ------------------------------------------------------------------------------------------------------

    def _print_file(self, file: ChangedFile) -> None:
        from redisfuse.journal.diff import diff_metadata

        self._print_title(file)
        for line in diff_metadata(file.prior, file.new):
            self._printer.print(f"  {line.text}", _FACT_STYLES["fact"])
        if not file.is_file:
            self._print_other(file)
            return
        change = file.read()
        if self._style == "word" and change.is_text:
            self._print_words(change)
            return
        self._print_patch(change)

    def _print_title(self, file: ChangedFile) -> None:
        net, first = file.net, file.net.first if file.departure is None else file.departure.first
        number = f"change {net.last.id}" if first.id == net.last.id else f"changes {first.id}-{net.last.id}"
        count = f" ({net.count} changes)" if net.count > 2 else ""
        state = "" if net.last.outcome == "applied" else f", {net.last.outcome}"
        process = format_process(net.last.command, net.last.pid)
        zone = local_zone() if self._on_terminal else ""
        when = f"{format_local_time(net.last.recorded_at)}{zone}{state}{f', {process}' if process else ''}"
        path = escape_text(file.new_path)
        if file.old_path != file.new_path:
            path = f"{escape_text(file.old_path)} → {path}"
        self._printer.print(f"{number}: {net.last.op} {path}{count} ({when})", "bold")
        if net.last.error:
            self._printer.print(f"  {escape_text(net.last.error.encode())}")
        self._printer.print(f"  key {format_key(net.last)}", "dim")

    def _print_patch(self, change: FileChange) -> None:
        from redisfuse.journal.patch import iter_patch

        lines = iter_patch(change, full=self._full)
        if not self._on_terminal:
            sys.stdout.flush()
            for line in lines:
                sys.stdout.buffer.write(line.data + b"\n")
            sys.stdout.buffer.flush()
            return
        self._print_shortened(lines)
        if not change.is_text and (self._full or max(map(_measure, (change.prior, change.new))) <= MAX_HEX_BYTES):
            from redisfuse.journal.diff import diff_bytes
            from redisfuse.journal.models import State

            prior, new = (State.from_value(content or b"") for content in (change.prior, change.new))
            for each in diff_bytes(prior, new):
                prefix = each.marker if each.marker in "-+ " else ""
                self._printer.print(prefix + each.text, _FACT_STYLES[each.marker])

    def _print_shortened(self, lines: Iterator[PatchLine]) -> None:
        for line in lines if self._full else islice(lines, MAX_SHOWN_LINES):
            rest = 0 if self._full else max(0, len(line.data) - MAX_LINE_BYTES)
            note = f" … {format_count(rest, 'more byte')}; --full prints all" if rest else ""
            self._printer.print(_to_terminal(line.data[: len(line.data) - rest]) + note, _STYLES[line.marker])
        self._print_rest(sum(1 for _ in lines))

    def _print_rest(self, count: int) -> None:
        if count:
            self._printer.print(f"  … {format_count(count, 'more line')}; --full prints all", "dim")

    def _print_other(self, file: ChangedFile) -> None:
        """Print the difference of collections, or of a range of a large string.

        No line of it can be taken for one of a patch: a blank follows each marker.
        """
        from redisfuse.journal.diff import diff_bytes, diff_objects

        if "directory" in (file.prior.kind, file.new.kind):
            return
        is_object = "object" in (file.prior.kind, file.new.kind)
        if not is_object and file.prior.content == file.new.content:
            return
        lines = (diff_objects if is_object else diff_bytes)(file.prior, file.new)
        for line in lines if self._full else islice(lines, MAX_SHOWN_LINES):
            prefix = f"{line.marker} " if line.marker in "-+ " else "  "
            self._printer.print(prefix + line.text, _FACT_STYLES[line.marker])
        self._print_rest(sum(1 for _ in lines))

    # -- words --------------------------------------------------------------------------------------------------------

    def _print_words(self, change: FileChange) -> None:
        from redisfuse.journal.patch import group_opcodes, split_text

        before, after = split_text(change.prior), split_text(change.new)
        for group in group_opcodes(before, after):
            self._printer.print(f"@@ -{group[0][1] + 1} +{group[0][3] + 1} @@", _STYLES["hunk"])
            pieces: list[tuple[str, str]] = []
            for tag, i1, i2, j1, j2 in group:
                old, new = (_to_text(lines) for lines in (before[i1:i2], after[j1:j2]))
                pieces += [(" ", old)] if tag == "equal" else compare_words(old, new)
            self._print_pieces(pieces)

    def _print_pieces(self, pieces: list[tuple[str, str]]) -> None:
        marked = {"-": "[-{}-]", "+": "{{+{}+}}", " ": "{}"}
        text = "".join(marked[marker].format(piece) for marker, piece in pieces)
        for line in text.removesuffix("\n").split("\n"):
            self._printer.print("\t".join(for_terminal(part) for part in line.split("\t")))

    # -- statistics ---------------------------------------------------------------------------------------------------

    def _print_statistics(self, files: Iterable[ChangedFile]) -> None:
        """Print a line for each file, as they are found.

        The first ones decide the width of the columns and the scale of the bars.
        """
        rows = (row for row in map(_build_statistic, files) if row is not None)
        first = list(islice(rows, FILES_IN_LAYOUT))
        name_width = max((len(row.name) for row in first), default=0)
        number_width = max((len(row.number) for row in first if row.number.isdigit()), default=1)
        available = terminal_width() if self._on_terminal else 80
        graph_width = max(MIN_GRAPH_WIDTH, available - min(name_width, available // 2) - number_width - 6)
        most = max((row.added + row.removed for row in first), default=0)
        count = added = removed = 0
        for row in chain(first, rows):
            scale = min(1.0, graph_width / max(most, row.added + row.removed, 1))
            plus, minus = (max(1, int(lines * scale)) if lines else 0 for lines in (row.added, row.removed))
            bar = "+" * plus + "-" * minus
            self._printer.print(f" {row.name:<{name_width}} | {row.number:>{number_width}} {bar}".rstrip())
            count, added, removed = count + 1, added + row.added, removed + row.removed
        self._printer.print(f" {format_count(count, 'file')} changed, {added} insertions(+), {removed} deletions(-)")


@dataclass(frozen=True, slots=True)
class _FileStatistic:
    """A line of `--stat`."""

    name: str
    number: str  # of lines; or what has no lines
    added: int = 0
    removed: int = 0


def _build_statistic(file: ChangedFile) -> _FileStatistic | None:
    """Return the line of a file; None if nothing differs."""
    from redisfuse.journal.patch import count_lines

    name = escape_text(file.new_path)
    if file.old_path != file.new_path:
        name = f"{escape_text(file.old_path)} => {name}"
    if not file.is_file:
        return _FileStatistic(name, f"{file.prior.size or 0} -> {file.new.size or 0} bytes")
    change = file.read()
    if not change.is_text:
        sizes = f"Bin {_measure(change.prior)} -> {_measure(change.new)} bytes"
        return _FileStatistic(name, sizes) if change.prior != change.new else None
    added, removed = count_lines(change)
    if added or removed or change.is_rename or None in (change.prior, change.new):
        return _FileStatistic(name, str(added + removed), added, removed)
    return None


def _to_text(lines: list[bytes]) -> str:
    return b"".join(lines).decode("utf-8", "surrogateescape")


def _to_terminal(line: bytes) -> str:
    return "\t".join(for_terminal(part) for part in line.split(b"\t"))


def _measure(content: bytes | None) -> int:
    return len(content or b"")


full_option = click.option("--full", is_flag=True, help="Print long and binary values whole.")

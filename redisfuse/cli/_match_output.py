"""The lines that `redisfuse grep` selects, as grep(1) prints them."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redisfuse.cli._output import bytes_to_json
from redisfuse.cli._terminal import print_err
from redisfuse.survey.lines import is_not_utf8
from redisfuse.text import for_terminal

if TYPE_CHECKING:
    from redisfuse.cli._result_writer import ResultWriter
    from redisfuse.cli._where import Where
    from redisfuse.survey.contents import Content
    from redisfuse.survey.lines import Line
    from redisfuse.survey.search import ContentSearch

_COLOURS = {"path": "35", "separator": "36", "number": "32", "match": "1;31"}
"""Those of grep(1), as numbers of ECMA-48's SGR."""


@dataclass(frozen=True, slots=True)
class OutputMode:
    """The parts of a file with selected lines that are printed."""

    only_paths: bool
    only_count: bool
    line_numbers: bool
    only_matches: bool
    binary_as_text: bool
    max_count: int | None
    before: int
    after: int
    nul: bool
    color: str
    as_json: bool

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> OutputMode:
        """Return the mode for the options of the command."""
        context = options["context"] or 0
        return cls(
            only_paths=options["files_with_matches"],
            only_count=options["count"],
            line_numbers=options["line_number"],
            only_matches=options["only_matching"],
            binary_as_text=options["text"],
            max_count=options["max_count"],
            before=context if options["before_context"] is None else options["before_context"],
            after=context if options["after_context"] is None else options["after_context"],
            nul=options["nul"],
            color=options["color"],
            as_json=options["as_json"],
        )


class MatchPrinter:
    """Searches contents and prints their selected lines."""

    def __init__(self, writer: ResultWriter, where: Where, search: ContentSearch, mode: OutputMode) -> None:
        self._writer = writer
        self._where = where
        self._search = search
        self._mode = mode
        self._has_context = bool(mode.before or mode.after) and not mode.only_matches
        is_coloured_terminal = writer.on_terminal and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ
        self._has_colour = mode.color == "always" or (mode.color == "auto" and is_coloured_terminal)
        self._has_written = False  # a line, so that a separator precedes the next group of lines
        self.has_selected = False

    def print(self, content: Content, path: bytes) -> None:
        """Print the selected lines of a content; `path` is from the mount's root."""
        mode = self._mode
        shown = self._where.display_path(path, content.record.target)
        if mode.max_count == 0:
            return
        if self._search.in_names and self._search.matches_name(content.record):
            self._print_name(content, shown)
            if mode.only_paths:
                return
        if mode.only_paths:
            _, lines = self._search.search(content)
            if next(lines, None) is not None:
                self._print_name(content, shown)
        elif mode.only_count:
            _, lines = self._search.search(content)
            count = sum(1 for _ in _limit(lines, mode.max_count))
            if count:
                end = "\0" if mode.nul else self._colour(":", "separator")
                self._write(self._colour(_decode(shown), "path") + end + str(count))
        else:
            self._print_lines(content, shown)

    def _print_name(self, content: Content, path: bytes) -> None:
        if self._mode.as_json:
            self._print_json(content, path, None)
        else:
            self._write(self._colour(_decode(path), "path"), end="\0" if self._mode.nul else "\n")

    def _print_lines(self, content: Content, path: bytes) -> None:
        line_search, lines = self._search.search(content, all_lines=self._has_context)
        last_number = 0
        is_binary = False
        for line in self._with_context(lines):
            if self._is_binary(line, has_nul=line_search.has_nul):
                self.has_selected = is_binary = True
                if line_search.has_nul:
                    break
                continue
            if self._has_context and self._has_written and (not last_number or line.number != last_number + 1):
                self._write(self._colour("--", "separator"))
            last_number = line.number
            if self._mode.as_json:
                self._print_json(content, path, line)
            else:
                self._print_line(line, path)
        if is_binary:
            print_err(f"{_decode(path)}: binary file matches (-a prints its lines)")

    def _is_binary(self, line: Line, *, has_nul: bool) -> bool:
        """Return whether a line is not printed because it is not text."""
        if self._mode.binary_as_text or self._mode.as_json:
            return False
        return has_nul or (line.has_encoding_error and not self._mode.only_matches)

    def _with_context(self, lines: Iterator[Line]) -> Iterator[Line]:
        """Yield the selected lines with the lines around them."""
        if not self._has_context:
            yield from _limit(lines, self._mode.max_count)
            return
        before: deque[Line] = deque(maxlen=self._mode.before)
        remaining_after = 0
        count = 0
        for line in lines:
            if line.is_selected and count != self._mode.max_count:
                yield from before
                before.clear()
                yield line
                count += 1
                remaining_after = self._mode.after
            elif remaining_after:
                remaining_after -= 1
                yield line
            elif count == self._mode.max_count:
                return
            else:
                before.append(line)

    def _print_line(self, line: Line, path: bytes) -> None:
        separator = ":" if line.is_selected else "-"
        shown_separator = self._colour(separator, "separator")
        head = self._colour(_decode(path), "path") + ("\0" if self._mode.nul else shown_separator)
        if self._mode.line_numbers:
            head += self._colour(str(line.number), "number") + shown_separator
        if not self._mode.only_matches:
            self._write(head + self._highlight(line))
        elif not self._search.invert:
            for match in self._search.pattern.finditer(line.text):
                if match[0] and (self._mode.binary_as_text or not is_not_utf8(match[0])):
                    self._write(head + self._colour(match[0], "match"))

    def _highlight(self, line: Line) -> str:
        if not self._has_colour or not line.is_selected or self._search.invert:
            return self._escape(line.text)
        parts: list[str] = []
        position = 0
        for match in self._search.pattern.finditer(line.text):
            if match[0]:
                parts += [self._escape(line.text[position : match.start()]), self._colour(match[0], "match")]
                position = match.end()
        return "".join(parts) + self._escape(line.text[position:])

    def _print_json(self, content: Content, path: bytes, line: Line | None) -> None:
        record = content.record
        row: dict[str, Any] = {"path": bytes_to_json(path), "key": bytes_to_json(record.key)}
        if record.field is not None:
            row["field"] = bytes_to_json(record.field)
        if line is None:
            row["name_matches"] = True
        else:
            text = bytes_to_json(line.text.encode("utf-8", "surrogateescape"))
            row |= {"line": line.number, "text": text, "selected": line.is_selected}
            if line.is_truncated:
                row["truncated"] = True
        self._write(json.dumps(row, ensure_ascii=self._writer.on_terminal))

    # -- characters ---------------------------------------------------------------------------------------------------

    def _escape(self, text: str) -> str:
        return for_terminal(text) if self._writer.on_terminal else text

    def _colour(self, text: str, kind: str) -> str:
        text = self._escape(text)
        return f"\x1b[{_COLOURS[kind]}m{text}\x1b[m" if self._has_colour else text

    def _write(self, line: str, end: str = "\n") -> None:
        self.has_selected = self._has_written = True
        if self._writer.on_terminal and end == "\n":
            self._writer.print(line)
        else:
            self._writer.write((line + end).encode("utf-8", "surrogateescape"))


def _decode(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _limit(lines: Iterator[Line], count: int | None) -> Iterator[Line]:
    for number, line in enumerate(lines, 1):
        yield line
        if number == count:
            return

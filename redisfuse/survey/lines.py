"""Searching the lines of a content that is given in chunks. Pure.

Memory is bounded: of a line that is longer than MAX_LINE_CHARACTERS, windows are searched that overlap.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

MAX_LINE_CHARACTERS = 16 << 20
"""Of a longer line, this many are kept to be printed, and matches of up to OVERLAP_CHARACTERS are found."""

OVERLAP_CHARACTERS = 64 << 10

_ENCODING_ERROR = re.compile("[\udc80-\udcff]")


def is_not_utf8(text: str) -> bool:
    """Return whether a text has bytes that are not UTF-8."""
    return not text.isascii() and _ENCODING_ERROR.search(text) is not None


@dataclass(frozen=True, slots=True)
class Line:
    """A line, without its end."""

    number: int  # from 1
    text: str  # invalid UTF-8 as surrogates
    is_selected: bool
    is_truncated: bool = False  # it is longer than `text`

    @property
    def has_encoding_error(self) -> bool:
        """Whether the line is not valid UTF-8."""
        return is_not_utf8(self.text)


@dataclass(slots=True)
class LineSearch:
    """One pass over the lines of a content.

    A NUL byte ends a line, as in grep(1), unless the content is searched as text.
    """

    pattern: re.Pattern[str]
    invert: bool = False
    as_text: bool = False
    all_lines: bool = False  # yield lines that are not selected, too, for context
    has_nul: bool = field(default=False, init=False)  # whether a NUL byte has ended a line so far
    _number: int = field(default=0, init=False)

    def search(self, chunks: Iterable[bytes]) -> Iterator[Line]:
        """Yield the selected lines, or all lines."""
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        rest = ""  # of the last line, whose end has not been read
        long_line: _LongLine | None = None
        for chunk in chunks:
            text = decoder.decode(chunk)
            if "\0" in text and not self.as_text:
                self.has_nul = True
                text = text.replace("\0", "\n")
            if long_line is not None:
                piece, newline, text = text.partition("\n")
                long_line.add(piece, is_end=bool(newline))
                if not newline:
                    continue
                yield from self._emit(long_line.text, long_line.matched, is_truncated=True)
                long_line = None
            whole, newline, tail = text.rpartition("\n")
            if newline:
                yield from self._search_whole(rest + whole)
                rest = tail
            else:
                rest += text
            if len(rest) > MAX_LINE_CHARACTERS:
                long_line = _LongLine(self.pattern, rest)
                rest = ""
        rest += decoder.decode(b"", final=True)
        if long_line is not None:
            long_line.add(rest, is_end=True)
            yield from self._emit(long_line.text, long_line.matched, is_truncated=True)
        elif rest:
            yield from self._search_whole(rest)

    def _search_whole(self, text: str) -> Iterator[Line]:
        """Yield the lines of a text without its last line end."""
        if not self.all_lines and not self.invert and self.pattern.search(text) is None:
            self._number += text.count("\n") + 1
            return
        for line in text.split("\n"):
            yield from self._emit(line, self.pattern.search(line) is not None)

    def _emit(self, text: str, matched: bool, *, is_truncated: bool = False) -> Iterator[Line]:
        self._number += 1
        is_selected = matched != self.invert
        if is_selected or self.all_lines:
            yield Line(self._number, text, is_selected, is_truncated)


class _LongLine:
    """A line that is searched in windows."""

    def __init__(self, pattern: re.Pattern[str], beginning: str) -> None:
        self.text = beginning[:MAX_LINE_CHARACTERS]
        self.matched = False
        self._pattern = pattern
        self._window = beginning
        self._is_first = True
        self._search(is_end=False)

    def add(self, piece: str, *, is_end: bool) -> None:
        """Search the next piece."""
        if not self.matched:
            self._window = self._window[-OVERLAP_CHARACTERS:] + piece
            self._search(is_end=is_end)

    def _search(self, *, is_end: bool) -> None:
        # Position 1 of a later window is not the beginning of the line, which ^ matches.
        match = self._pattern.search(self._window, 0 if self._is_first else 1)
        # A match that reaches the end of the window is found again in the next one, or was none: `x$`.
        self.matched = match is not None and (is_end or match.end() < len(self._window))
        self._is_first = False

"""Two states side by side. Pure.

Text is compared by line and word, bytes in hex, collections by element. All text is printable: controls and bytes that
are not UTF-8 are escaped. The template escapes HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Literal

from redisfuse.journal.content import Blob
from redisfuse.journal.diff import HEX_BYTES_PER_ROW, DiffLine, diff_bytes, diff_objects
from redisfuse.journal.models import State
from redisfuse.journal.patch import SNIFFED_BYTES, group_opcodes, split_text
from redisfuse.journal.word_diff import compare_words
from redisfuse.text import for_terminal

RowKind = Literal["same", "changed", "removed", "added", "gap"]

MAX_ALIGNED_BYTES = 1 << 20  # of a content; a larger one is compared from its first difference on
MAX_ROWS = 1000
MAX_SAME_CHARACTERS = 400  # of a piece that is in both lines; its middle is left out
MAX_PIECE_CHARACTERS = 4000  # of a piece that differs


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a line, and whether the other side has it."""

    text: str
    is_same: bool = True


@dataclass(frozen=True, slots=True)
class Cell:
    """A line of one side, with its number or offset."""

    label: str
    pieces: tuple[Piece, ...]
    is_open: bool = False  # the last line has no newline


@dataclass(frozen=True, slots=True)
class SideBySideRow:
    """A line before and after; or a gap, with a text that explains it."""

    kind: RowKind
    before: Cell | None = None
    after: Cell | None = None
    text: str = ""

    @classmethod
    def pair(cls, before: Cell | None, after: Cell | None, *, is_same: bool = False) -> SideBySideRow:
        """Return the row of two lines, or of one."""
        if is_same:
            return cls("same", before, after)
        return cls("added" if before is None else "removed" if after is None else "changed", before, after)


IndexedLine = tuple[int, bytes]
"""A line, or a row of bytes, with its number from 0."""


def align_states(prior: State, new: State) -> Iterator[SideBySideRow]:
    """Yield the rows of two states; none if their contents are equal."""
    rows = _align(prior, new)
    yield from islice(rows, MAX_ROWS)
    rest = sum(1 for _ in rows)
    if rest:
        yield SideBySideRow("gap", text=f"{rest:,} more rows; download both contents to see all")


def _align(prior: State, new: State) -> Iterator[SideBySideRow]:
    if "directory" in (prior.kind, new.kind):
        return iter(())
    if "object" in (prior.kind, new.kind):
        return _pair_lines(diff_objects(prior, new))
    if prior.content == new.content and prior.kind == new.kind:
        return iter(())
    is_whole = "slice" not in (prior.kind, new.kind)
    if is_whole and max(_measure(prior.content), _measure(new.content)) <= MAX_ALIGNED_BYTES:
        before, after = (content.read() if content else b"" for content in (prior.content, new.content))
        return _align_text(before, after) if is_text(before) and is_text(after) else _align_bytes(before, after)
    return _pair_lines(diff_bytes(prior, new))


def _measure(content: Blob | None) -> int:
    return content.size if content else 0


def is_text(data: bytes) -> bool:
    """Return whether bytes are shown as text."""
    if b"\0" in data[:SNIFFED_BYTES]:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# -- text ------------------------------------------------------------------------------------------------------------


def _align_text(before: bytes, after: bytes) -> Iterator[SideBySideRow]:
    old, new = split_text(before), split_text(after)
    end = (0, 0)
    for group in group_opcodes(old, new):
        start = group[0][1], group[0][3]
        if start != end:
            yield SideBySideRow("gap", text=f"{max(start[0] - end[0], start[1] - end[1]):,} equal lines")
        for tag, i1, i2, j1, j2 in group:
            for i, j in zip_longest(range(i1, i2), range(j1, j2)):
                left, right = (None if i is None else (i, old[i])), (None if j is None else (j, new[j]))
                yield SideBySideRow.pair(*align_line(left, right), is_same=tag == "equal")
        end = group[-1][2], group[-1][4]
    rest = max(len(old) - end[0], len(new) - end[1])
    if rest and end != (0, 0):
        yield SideBySideRow("gap", text=f"{rest:,} equal lines")


def align_line(before: IndexedLine | None, after: IndexedLine | None) -> tuple[Cell | None, Cell | None]:
    """Return the cells of two lines of text, with the words that differ marked."""
    is_same = before is not None and after is not None and before[1] == after[1]
    texts = [None if line is None else printable_line(line[1]) for line in (before, after)]
    pieces = _compare_lines(texts[0], texts[1], is_same=is_same)
    left, right = (
        None if line is None else Cell(str(line[0] + 1), parts, is_open=not line[1].endswith(b"\n"))
        for line, parts in zip((before, after), pieces, strict=True)
    )
    return left, right


def _compare_lines(old: str | None, new: str | None, *, is_same: bool) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Return the pieces of two lines; a missing line has none."""
    if is_same or old is None or new is None:
        return tuple(() if text is None else (_shorten(text, is_same=is_same),) for text in (old, new))  # type: ignore[return-value]
    sides: dict[str, list[Piece]] = {"-": [], "+": []}
    for marker, text in compare_words(old, new):
        for side in "-+" if marker == " " else marker:
            sides[side].append(_shorten(text, is_same=marker == " "))
    return tuple(sides["-"]), tuple(sides["+"])


def _shorten(text: str, *, is_same: bool) -> Piece:
    limit = MAX_SAME_CHARACTERS if is_same else MAX_PIECE_CHARACTERS
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"
    return Piece(text, is_same)


def printable_line(line: bytes) -> str:
    """Return a line without its newline, escaped except for tabs."""
    return "\t".join(for_terminal(part) for part in line.removesuffix(b"\n").split(b"\t"))


# -- bytes -----------------------------------------------------------------------------------------------------------


def _align_bytes(before: bytes, after: bytes) -> Iterator[SideBySideRow]:
    old, new = split_rows(before), split_rows(after)
    end = (0, 0)
    for group in group_opcodes(old, new):
        start = group[0][1], group[0][3]
        if start != end:
            skipped = max(start[0] - end[0], start[1] - end[1]) * HEX_BYTES_PER_ROW
            yield SideBySideRow("gap", text=f"{skipped:,} equal bytes")
        for tag, i1, i2, j1, j2 in group:
            for i, j in zip_longest(range(i1, i2), range(j1, j2)):
                left, right = (None if i is None else (i, old[i])), (None if j is None else (j, new[j]))
                yield SideBySideRow.pair(*align_row(left, right), is_same=tag == "equal")
        end = group[-1][2], group[-1][4]


def split_rows(data: bytes) -> list[bytes]:
    """Return bytes in rows of a hex dump."""
    return [data[start : start + HEX_BYTES_PER_ROW] for start in range(0, len(data), HEX_BYTES_PER_ROW)]


def align_row(before: IndexedLine | None, after: IndexedLine | None) -> tuple[Cell | None, Cell | None]:
    """Return the cells of two rows of a hex dump, with the bytes that differ marked."""
    left = None if before is None else _dump_row(before, b"" if after is None else after[1])
    right = None if after is None else _dump_row(after, b"" if before is None else before[1])
    return left, right


def _dump_row(line: IndexedLine, other: bytes) -> Cell:
    index, row = line
    pieces: list[Piece] = []
    for position, byte in enumerate(row):
        is_same = position < len(other) and other[position] == byte
        if pieces and pieces[-1].is_same == is_same:
            pieces[-1] = Piece(f"{pieces[-1].text} {byte:02x}", is_same)
        else:
            if pieces:
                pieces.append(Piece(" "))
            pieces.append(Piece(f"{byte:02x}", is_same))
    plain = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
    return Cell(
        f"{index * HEX_BYTES_PER_ROW:06x}", (*pieces, Piece("   " * (HEX_BYTES_PER_ROW - len(row)) + f"  {plain}"))
    )


# -- elements, and parts of large strings ----------------------------------------------------------------------------


def _pair_lines(lines: Iterable[DiffLine]) -> Iterator[SideBySideRow]:
    """Yield rows of a difference by lines.

    Removed lines are beside the added ones that follow them.
    """
    removed: list[str] = []
    added: list[str] = []
    for line in lines:
        if line.marker == "-" and not added:
            removed.append(line.text)
        elif line.marker == "+":
            added.append(line.text)
        else:
            yield from _flush_pairs(removed, added)
            removed, added = [], []
            if line.marker == "-":
                removed = [line.text]
            elif line.marker == " ":
                cell = Cell("", (_shorten(line.text, is_same=True),))
                yield SideBySideRow("same", cell, cell)
            else:
                yield SideBySideRow("gap", text=line.text)
    yield from _flush_pairs(removed, added)


def _flush_pairs(removed: Sequence[str], added: Sequence[str]) -> Iterator[SideBySideRow]:
    for old, new in zip_longest(removed, added):
        left, right = _compare_lines(old, new, is_same=False)
        before, after = None if old is None else Cell("", left), None if new is None else Cell("", right)
        yield SideBySideRow.pair(before, after)

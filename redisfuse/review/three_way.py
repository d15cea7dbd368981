"""Three states side by side: as a key was found, as it is now, and an edit. Pure.

The middle one decides where lines are: the two others are compared with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from redisfuse.journal.line_matching import match_lines
from redisfuse.journal.models import State
from redisfuse.journal.patch import CONTEXT_LINES, split_text
from redisfuse.review.side_by_side import (
    MAX_ALIGNED_BYTES,
    MAX_ROWS,
    Cell,
    align_line,
    align_row,
    is_text,
    split_rows,
)


@dataclass(frozen=True, slots=True)
class ThreeWayRow:
    """A line of each state; or a gap, with a text that explains it."""

    found: Cell | None = None
    now: Cell | None = None
    edit: Cell | None = None
    is_found_same: bool = False  # as now
    is_edit_same: bool = False
    text: str = ""


_Indexes = tuple[int | None, int | None, int | None]


def align_three(found: State, now: State, edit: State) -> list[ThreeWayRow] | None:
    """Return the rows of three states.

    None if they can't be aligned: collections, parts of strings, and values over 1 MiB.
    """
    states = (found, now, edit)
    if any(state.kind not in ("absent", "value") for state in states):
        return None
    if any(state.content is not None and state.content.size > MAX_ALIGNED_BYTES for state in states):
        return None
    contents = [state.content.read() if state.content else b"" for state in states]
    are_texts = all(map(is_text, contents))
    lines = [split_text(content) if are_texts else split_rows(content) for content in contents]
    rows = [_build_row(lines, indexes, are_texts=are_texts) for indexes in _align_indexes(*lines)]
    shown = list(_leave_out_equal(rows, "lines" if are_texts else "rows"))
    if len(shown) > MAX_ROWS:
        rest = len(shown) - MAX_ROWS
        shown[MAX_ROWS:] = [ThreeWayRow(text=f"{rest:,} more rows; download the contents to see all")]
    return shown


def _align_indexes(found: Sequence[bytes], now: Sequence[bytes], edit: Sequence[bytes]) -> Iterator[_Indexes]:
    """Yield the indexes of the lines of each row."""
    found_of, found_only = _match(found, now)
    edit_of, edit_only = _match(edit, now)
    for index in range(len(now) + 1):
        for left, right in zip_longest(found_only.get(index, ()), edit_only.get(index, ())):
            yield left, None, right
        if index < len(now):
            yield found_of.get(index), index, edit_of.get(index)


def _match(lines: Sequence[bytes], now: Sequence[bytes]) -> tuple[dict[int, int], dict[int, list[int]]]:
    """Return the line beside each line of `now`.

    And the others, by the line of `now` that they precede.
    """
    beside: dict[int, int] = {}
    others: dict[int, list[int]] = {}
    for _, i1, i2, j1, j2 in match_lines(lines, now):
        for i, j in zip_longest(range(i1, i2), range(j1, j2)):
            if j is None:
                others.setdefault(j2, []).append(i)
            elif i is not None:
                beside[j] = i
    return beside, others


def _build_row(lines: Sequence[Sequence[bytes]], indexes: _Indexes, *, are_texts: bool) -> ThreeWayRow:
    found, now, edit = (
        None if index is None else (index, content[index]) for index, content in zip(indexes, lines, strict=True)
    )
    align = align_line if are_texts else align_row
    found_cell, _ = align(found, now)
    now_cell, edit_cell = align(now, edit)
    is_found_same, is_edit_same = (one is not None and now is not None and one[1] == now[1] for one in (found, edit))
    return ThreeWayRow(found_cell, now_cell, edit_cell, is_found_same, is_edit_same)


def _leave_out_equal(rows: Sequence[ThreeWayRow], unit: str) -> Iterator[ThreeWayRow]:
    """Yield rows with a gap in place of those that are far from a difference."""
    differing = [number for number, row in enumerate(rows) if not (row.is_found_same and row.is_edit_same)]
    near = {
        number
        for center in differing
        for number in range(max(0, center - CONTEXT_LINES), min(len(rows), center + CONTEXT_LINES + 1))
    }
    skipped = 0
    for number, row in enumerate(rows):
        if number not in near:
            skipped += 1
            continue
        if skipped:
            yield ThreeWayRow(text=f"{skipped:,} equal {unit}")
            skipped = 0
        yield row
    if skipped and differing:
        yield ThreeWayRow(text=f"{skipped:,} equal {unit}")

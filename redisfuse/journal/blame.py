"""Which change wrote each line of a text value. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from redisfuse.errors import NotSupportedError
from redisfuse.journal.line_matching import match_lines
from redisfuse.journal.models import Change, State
from redisfuse.journal.patch import SNIFFED_BYTES, split_text


class BlamedLine(NamedTuple):
    """A line with its newline, and the change that wrote it."""

    text: bytes
    change: Change | None  # None: it is older than the journal, or was written by another program


def blame_lines(changes: Iterable[Change]) -> list[BlamedLine]:
    """Return the lines of the value that the last of some changes left.

    `changes`: the applied changes of one key or field, oldest first, through its renames. Raises NotSupportedError for
    a value that is not text, or of which only parts are recorded.
    """
    lines: list[BlamedLine] = []
    is_absent = True
    for change in changes:
        # A value that differs from the one before was changed by a program outside of the journal. A value that was
        # removed and came back, by a rollback or another save, keeps the lines that it had.
        if change.prior.kind != "absent":
            lines = _annotate(lines, _read_lines(change.prior, change), None)
        is_absent = change.new.kind == "absent"
        if not is_absent:
            lines = _annotate(lines, _read_lines(change.new, change), change)
    return [] if is_absent else lines


def _read_lines(state: State, change: Change) -> list[bytes]:
    content = state.content.read() if state.kind == "value" and state.content is not None else None
    if content is None or b"\0" in content[:SNIFFED_BYTES]:
        kind = "a part of a large string" if state.kind == "slice" else "no text"
        raise NotSupportedError(f"change {change.id} is of {kind}: only text has lines to blame")
    return split_text(content)


def _annotate(before: list[BlamedLine], after: list[bytes], change: Change | None) -> list[BlamedLine]:
    """Return lines with the change that wrote each; unchanged ones keep theirs."""
    old = [line.text for line in before]
    if old == after:
        return before
    lines: list[BlamedLine] = []
    for tag, i1, i2, j1, j2 in match_lines(old, after):
        lines += before[i1:i2] if tag == "equal" else [BlamedLine(text, change) for text in after[j1:j2]]
    return lines

"""The difference that a change made, as printable lines. Pure.

Text is compared line by line, other bytes in hex, collections by element. `DiffLine.text` is escaped
(text.escape_text). Contents too large to compare whole are shown from their first difference on, with a line that
reports it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any, Literal

from redisfuse.errors import JournalError
from redisfuse.journal import portable
from redisfuse.journal.content import Blob
from redisfuse.journal.final_newline import ADDED_NEWLINE_MESSAGE, has_added_newline
from redisfuse.journal.models import Change, State
from redisfuse.text import escape_text, iso_utc

DiffMarker = Literal["fact", "place", " ", "-", "+"]
"""A fact about the whole; a position in it; an unchanged line; a line before; a line after."""

MAX_COMPARED_BYTES = 4 << 20  # of a content; a larger one is compared from its first difference on
MAX_DIFFLIB_LINES = 4000  # on either side, because difflib takes quadratic time
CONTEXT_LINES = 3  # unchanged lines shown around a difference
HEX_BYTES_PER_ROW = 16
SORTED_TYPES = (b"set", b"hash")  # their portable copies are sorted, so they can be compared as streams


@dataclass(frozen=True, slots=True)
class DiffLine:
    """One line of a difference."""

    marker: DiffMarker
    text: str


def diff_change(change: Change) -> Iterator[DiffLine]:
    """Yield the difference between the prior and the new state.

    Type, expiry and length are first, then the contents.
    """
    prior, new = change.prior, change.new
    yield from diff_metadata(prior, new)
    if "object" in (prior.kind, new.kind):
        yield from diff_objects(prior, new)
    elif prior.content != new.content or prior.kind != new.kind:
        yield from diff_bytes(prior, new)


def diff_metadata(prior: State, new: State) -> Iterator[DiffLine]:
    """Yield the differences of type, expiry and length, and the notes."""
    if prior.kind == "absent" or new.kind == "absent":
        if prior.kind != new.kind:
            yield DiffLine(
                "fact",
                f"created: {_describe_state(new)}" if prior.kind == "absent" else f"removed: {_describe_state(prior)}",
            )
    elif prior.type != new.type:
        yield DiffLine("fact", f"type: {escape_text(prior.type)} → {escape_text(new.type)}")
    if prior.kind == new.kind == "slice" and prior.total_size != new.total_size:
        yield DiffLine("fact", f"length: {prior.total_size} → {new.total_size} bytes")
    for name, before, after in (
        ("expiry", prior.expires_at, new.expires_at),
        ("expiry of the field", prior.field_expires_at, new.field_expires_at),
    ):
        if before != after and not (before and new.kind == "absent"):
            yield DiffLine("fact", f"{name}: {_format_expiry(before)} → {_format_expiry(after)}")
    if has_added_newline(prior, new):
        yield DiffLine("fact", ADDED_NEWLINE_MESSAGE)
    for when, state in (("before", prior), ("after", new)):
        if state.note:
            yield DiffLine("fact", f"{when}: {escape_text(state.note.encode())}")


def _describe_state(state: State) -> str:
    if state.kind == "directory":
        return "an empty directory"
    expiry = "" if state.expires_at is None else f", expires {_format_expiry(state.expires_at)}"
    if state.kind == "object":
        return f"{escape_text(state.type)}{expiry}"
    return f"{escape_text(state.type)} of {state.size} bytes{expiry}"


def _format_expiry(milliseconds: int | None) -> str:
    return "none" if milliseconds is None else iso_utc(milliseconds)


# -- strings and fields ----------------------------------------------------------------------------------------------


def diff_bytes(prior: State, new: State) -> Iterator[DiffLine]:
    """Yield the difference of two strings or fields."""
    start, before, after, is_truncated = _read_differing_parts(prior.content, new.content)
    base = prior.offset if prior.kind == "slice" else new.offset if new.kind == "slice" else 0
    if start or base:
        yield DiffLine("place", f"from byte {base + start}")
    old_lines, new_lines = _decode_lines(before), _decode_lines(after)
    if old_lines is not None and new_lines is not None:
        yield from _diff_lines(old_lines, new_lines)
    else:
        yield from _diff_lines(_format_hex_dump(before, base + start), _format_hex_dump(after, base + start))
    if is_truncated:
        yield DiffLine(
            "fact",
            f"only {MAX_COMPARED_BYTES} bytes from the first difference are shown; see redisfuse show --prior, --new",
        )


def _read_differing_parts(prior: Blob | None, new: Blob | None) -> tuple[int, bytes, bytes, bool]:
    """Return the parts to show: offset, both parts, and whether bytes follow."""
    sizes = (prior.size if prior else 0, new.size if new else 0)
    if max(sizes) <= MAX_COMPARED_BYTES:
        return 0, prior.read() if prior else b"", new.read() if new else b"", False
    start = 0
    before = prior.iter_chunks() if prior else iter(())
    after = new.iter_chunks() if new else iter(())
    left = right = b""
    for left, right in zip_longest(before, after, fillvalue=b""):
        if left != right:
            break
        start += len(left)
    equal = _measure_common_prefix(left, right) // HEX_BYTES_PER_ROW * HEX_BYTES_PER_ROW
    left = _read_up_to_limit(left[equal:], before)
    right = _read_up_to_limit(right[equal:], after)
    start += equal
    return start, left, right, start + len(left) < sizes[0] or start + len(right) < sizes[1]


def _read_up_to_limit(prefix: bytes, chunks: Iterator[bytes]) -> bytes:
    data = bytearray(prefix)
    for chunk in chunks:
        if len(data) >= MAX_COMPARED_BYTES:
            break
        data += chunk
    return bytes(data[:MAX_COMPARED_BYTES])


def _measure_common_prefix(left: bytes, right: bytes) -> int:
    """Return the length of the common prefix."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[:middle] == right[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _decode_lines(data: bytes) -> list[str] | None:
    """Return the printable lines of a text; None if the bytes are not printable text."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    if not text.replace("\n", "").replace("\t", "").replace("\r", "").isprintable():
        return None
    lines = [escape_text(line) for line in data.split(b"\n")]
    if lines[-1] == "":
        lines.pop()
    else:
        lines[-1] += " (no newline at the end)"
    return lines


def _format_hex_dump(data: bytes, offset: int) -> list[str]:
    lines = []
    for start in range(0, len(data), HEX_BYTES_PER_ROW):
        row = data[start : start + HEX_BYTES_PER_ROW]
        plain = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{offset + start:08x}  {row.hex(' '):<{HEX_BYTES_PER_ROW * 3 - 1}}  {plain}")
    return lines


def _diff_lines(before: Sequence[str], after: Sequence[str]) -> Iterator[DiffLine]:
    """Yield a unified diff.

    Equal lines at both ends are removed first. If the rest is too long for difflib, all of it is shown as replaced.
    """
    shorter = min(len(before), len(after))
    head = next((number for number in range(shorter) if before[number] != after[number]), shorter)
    tail = next((number for number in range(shorter - head) if before[~number] != after[~number]), shorter - head)
    first = max(0, head - CONTEXT_LINES)
    old = before[first : len(before) - max(0, tail - CONTEXT_LINES)]
    new = after[first : len(after) - max(0, tail - CONTEXT_LINES)]
    if max(len(old), len(new)) > MAX_DIFFLIB_LINES:
        yield DiffLine("place", f"@@ -{first + 1},{len(old)} +{first + 1},{len(new)} @@")
        yield from (DiffLine("-", text) for text in before[head : len(before) - tail])
        yield from (DiffLine("+", text) for text in after[head : len(after) - tail])
        return
    for group in difflib.SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(CONTEXT_LINES):
        (_, i1, _, j1, _), (_, _, i2, _, j2) = group[0], group[-1]
        yield DiffLine("place", f"@@ -{first + i1 + 1},{i2 - i1} +{first + j1 + 1},{j2 - j1} @@")
        for tag, a1, a2, b1, b2 in group:
            if tag == "equal":
                yield from (DiffLine(" ", text) for text in old[a1:a2])
                continue
            yield from (DiffLine("-", text) for text in old[a1:a2])
            yield from (DiffLine("+", text) for text in new[b1:b2])


# -- collections -----------------------------------------------------------------------------------------------------


def diff_objects(prior: State, new: State) -> Iterator[DiffLine]:
    """Yield the difference of two collections, by element."""
    for state in (prior, new):
        if state.kind == "object" and state.portable_copy is None:
            yield DiffLine(
                "fact", f"the elements of this {escape_text(state.type)} are not recorded one by one, only its DUMP"
            )
            return
    if prior.kind == new.kind == "object" and prior.type == new.type:
        yield from _diff_same_type(prior, new)
        return
    yield from _list_state(prior, "-")
    yield from _list_state(new, "+")


def _list_state(state: State, marker: DiffMarker) -> Iterator[DiffLine]:
    if state.kind == "object":
        for element in _iter_elements(state):
            yield DiffLine(marker, format_element(state.type, element))
    elif state.content is not None:
        data = state.content.read_prefix(MAX_COMPARED_BYTES)
        for text in _decode_lines(data) or _format_hex_dump(data, state.offset):
            yield DiffLine(marker, text)


def _diff_same_type(prior: State, new: State) -> Iterator[DiffLine]:
    assert prior.portable_copy is not None
    assert new.portable_copy is not None
    if prior.portable_copy == new.portable_copy:
        return
    if prior.type in SORTED_TYPES:
        yield from _diff_sorted(
            prior.type, _iter_element_lines(prior.portable_copy), _iter_element_lines(new.portable_copy)
        )
    elif max(prior.portable_copy.size, new.portable_copy.size) > MAX_COMPARED_BYTES:
        yield DiffLine("fact", "too large to compare by element; see redisfuse show --prior --logical, --new --logical")
    elif prior.type == b"zset":
        yield from _diff_zset(prior, new)
    else:
        before = [text for element in _iter_elements(prior) for text in _format_element_lines(prior.type, element)]
        after = [text for element in _iter_elements(new) for text in _format_element_lines(new.type, element)]
        yield from _diff_lines(before, after)


def _diff_sorted(key_type: bytes, before: Iterator[bytes], after: Iterator[bytes]) -> Iterator[DiffLine]:
    """Merge two sorted copies and yield the elements that only one of them has."""
    old, new = next(before, None), next(after, None)
    while old is not None or new is not None:
        if old == new:
            old, new = next(before, None), next(after, None)
        elif new is None or (old is not None and old < new):
            assert old is not None
            yield DiffLine("-", format_element(key_type, _parse_element(old)))
            old = next(before, None)
        else:
            yield DiffLine("+", format_element(key_type, _parse_element(new)))
            new = next(after, None)


def _diff_zset(prior: State, new: State) -> Iterator[DiffLine]:
    """Yield the members that were removed, were added, or have another score."""
    before = {element[0]: element for element in _iter_elements(prior)}
    after = {element[0]: element for element in _iter_elements(new)}
    for name in [*before, *(name for name in after if name not in before)]:
        if before.get(name) == after.get(name):
            continue
        if name in before:
            yield DiffLine("-", format_element(b"zset", before[name]))
        if name in after:
            yield DiffLine("+", format_element(b"zset", after[name]))


def _iter_elements(state: State) -> Iterator[portable.ElementRecord]:
    assert state.portable_copy is not None
    try:
        _, records = portable.decode_copy(state.portable_copy.iter_chunks())
        yield from records
    except (ValueError, TypeError, KeyError) as error:
        raise JournalError(f"a portable copy in the journal can't be read: {error}") from error


def _iter_element_lines(portable_copy: Blob) -> Iterator[bytes]:
    """Return the stored lines of the elements, without the header line."""
    return islice(portable.split_lines(portable_copy.iter_chunks()), 1, None)


def _parse_element(line: bytes) -> portable.ElementRecord:
    _, records = portable.decode_copy([b"{}\n", line, b"\n"])
    return next(records)


def format_element(key_type: bytes, element: portable.ElementRecord) -> str:
    """Return one element on one line.

    That is `value`, `score  member`, `field: value` or `id field=value …`.
    """
    parts = [escape_text(part) if isinstance(part, bytes) else str(part) for part in element]
    if key_type == b"zset":
        return f"{parts[1]}  {parts[0]}"
    if key_type == b"hash":
        expiry = f"  (expires {iso_utc(element[2])})" if len(element) > 2 and isinstance(element[2], int) else ""
        return f"{parts[0]}: {parts[1]}{expiry}"
    if key_type == b"stream":
        pairs = " ".join(f"{name}={value}" for name, value in zip(parts[1::2], parts[2::2], strict=False))
        return f"{parts[0]}  {pairs}"
    return " ".join(parts)


def _format_element_lines(key_type: bytes, element: portable.ElementRecord) -> list[str]:
    """Return the lines by which an element is compared.

    That is one line, or those of an indented JSON document.
    """
    if key_type == b"ReJSON-RL" and isinstance(element[0], bytes):
        try:
            document: Any = json.loads(element[0])
        except ValueError:
            return [format_element(key_type, element)]
        text = json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True)
        return [escape_text(line.encode("utf-8", "surrogatepass")) for line in text.splitlines()]
    return [format_element(key_type, element)]

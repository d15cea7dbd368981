"""What a change made different, in lines to be shown: text line by line, bytes in hex, collections by element. Pure.

`Line.text` is printable (text.escape_text), `Line.mark` says what it is. Contents too large to be compared whole are shown
from their first difference on, and that is said.
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
from redisfuse.journal.models import Change, Content, State
from redisfuse.text import escape_text, iso_utc

Mark = Literal["fact", "place", " ", "-", "+"]  # a fact about the whole, where in it, unchanged, before, after

LARGE = 4 << 20  # bytes of a content that are compared; of a larger one so many from the first difference on
MANY = 4000  # lines on either side that difflib is given: it takes quadratic time
CONTEXT = 3  # unchanged lines shown around a difference
WIDTH = 16  # bytes in a line of hex
SORTED = (b"set", b"hash")  # whose portable copies are sorted, so that they can be compared as streams


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a difference."""

    mark: Mark
    text: str


def difference(change: Change) -> Iterator[Line]:
    """From the prior state to the new one: facts first (type, expiry, length), then the contents."""
    prior, new = change.prior, change.new
    yield from _facts(prior, new)
    if "object" in (prior.kind, new.kind):
        yield from _objects(prior, new)
    elif prior.content != new.content or prior.kind != new.kind:
        yield from _bytes(prior, new)


def _facts(prior: State, new: State) -> Iterator[Line]:
    if prior.kind == "absent" or new.kind == "absent":
        if prior.kind != new.kind:
            yield Line(
                "fact", f"created: {_described(new)}" if prior.kind == "absent" else f"removed: {_described(prior)}"
            )
    elif prior.type != new.type:
        yield Line("fact", f"type: {escape_text(prior.type)} → {escape_text(new.type)}")
    if prior.kind == new.kind == "slice" and prior.total != new.total:
        yield Line("fact", f"length: {prior.total} → {new.total} bytes")
    for name, before, after in (
        ("expiry", prior.expires_at, new.expires_at),
        ("expiry of the field", prior.field_expires_at, new.field_expires_at),
    ):
        if before != after and not (before and new.kind == "absent"):
            yield Line("fact", f"{name}: {_expiry(before)} → {_expiry(after)}")
    for when, state in (("before", prior), ("after", new)):
        if state.note:
            yield Line("fact", f"{when}: {escape_text(state.note.encode())}")


def _described(state: State) -> str:
    if state.kind == "directory":
        return "an empty directory"
    expiry = "" if state.expires_at is None else f", expires {_expiry(state.expires_at)}"
    if state.kind == "object":
        return f"{escape_text(state.type)}{expiry}"
    return f"{escape_text(state.type)} of {state.size} bytes{expiry}"


def _expiry(milliseconds: int | None) -> str:
    return "none" if milliseconds is None else iso_utc(milliseconds)


# -- strings and fields ----------------------------------------------------------------------------------------------


def _bytes(prior: State, new: State) -> Iterator[Line]:
    start, before, after, cut = _both(prior.content, new.content)
    base = prior.offset if prior.kind == "slice" else new.offset if new.kind == "slice" else 0
    if start or base:
        yield Line("place", f"from byte {base + start}")
    old, fresh = _text(before), _text(after)
    if old is not None and fresh is not None:
        yield from _unified(old, fresh)
    else:
        yield from _unified(_hex(before, base + start), _hex(after, base + start))
    if cut:
        yield Line(
            "fact", f"only {LARGE} bytes from the first difference on are shown; see redisfuse show --prior, --new"
        )


def _both(prior: Content | None, new: Content | None) -> tuple[int, bytes, bytes, bool]:
    """Where the shown parts begin, these parts, and whether there is more behind them."""
    sizes = (prior.size if prior else 0, new.size if new else 0)
    if max(sizes) <= LARGE:
        return 0, prior.read() if prior else b"", new.read() if new else b"", False
    skipped = 0
    before = prior.chunks() if prior else iter(())
    after = new.chunks() if new else iter(())
    one = other = b""
    for one, other in zip_longest(before, after, fillvalue=b""):
        if one != other:
            break
        skipped += len(one)
    equal = _common(one, other) // WIDTH * WIDTH
    one = _more(one[equal:], before)
    other = _more(other[equal:], after)
    skipped += equal
    return skipped, one, other, skipped + len(one) < sizes[0] or skipped + len(other) < sizes[1]


def _more(first: bytes, rest: Iterator[bytes]) -> bytes:
    found = bytearray(first)
    for chunk in rest:
        if len(found) >= LARGE:
            break
        found += chunk
    return bytes(found[:LARGE])


def _common(one: bytes, other: bytes) -> int:
    """How many bytes at their beginning are equal."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _text(data: bytes) -> list[str] | None:
    """The printable lines of a text; None if it is not one."""
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


def _hex(data: bytes, offset: int) -> list[str]:
    lines = []
    for start in range(0, len(data), WIDTH):
        row = data[start : start + WIDTH]
        plain = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{offset + start:08x}  {row.hex(' '):<{WIDTH * 3 - 1}}  {plain}")
    return lines


def _unified(before: Sequence[str], after: Sequence[str]) -> Iterator[Line]:
    """A unified diff. Equal beginnings and ends are cut off first; what is then too long is shown as replaced."""
    shorter = min(len(before), len(after))
    head = next((number for number in range(shorter) if before[number] != after[number]), shorter)
    tail = next((number for number in range(shorter - head) if before[~number] != after[~number]), shorter - head)
    first = max(0, head - CONTEXT)
    one = before[first : len(before) - max(0, tail - CONTEXT)]
    other = after[first : len(after) - max(0, tail - CONTEXT)]
    if max(len(one), len(other)) > MANY:
        yield Line("place", f"@@ -{first + 1},{len(one)} +{first + 1},{len(other)} @@")
        yield from (Line("-", text) for text in before[head : len(before) - tail])
        yield from (Line("+", text) for text in after[head : len(after) - tail])
        return
    for group in difflib.SequenceMatcher(None, one, other, autojunk=False).get_grouped_opcodes(CONTEXT):
        (_, i1, _, j1, _), (_, _, i2, _, j2) = group[0], group[-1]
        yield Line("place", f"@@ -{first + i1 + 1},{i2 - i1} +{first + j1 + 1},{j2 - j1} @@")
        for tag, a1, a2, b1, b2 in group:
            if tag == "equal":
                yield from (Line(" ", text) for text in one[a1:a2])
                continue
            yield from (Line("-", text) for text in one[a1:a2])
            yield from (Line("+", text) for text in other[b1:b2])


# -- collections -----------------------------------------------------------------------------------------------------


def _objects(prior: State, new: State) -> Iterator[Line]:
    for state in (prior, new):
        if state.kind == "object" and state.logical is None:
            yield Line(
                "fact", f"the elements of this {escape_text(state.type)} are not recorded one by one, only its DUMP"
            )
            return
    if prior.kind == new.kind == "object" and prior.type == new.type:
        yield from _same_type(prior, new)
        return
    yield from _whole(prior, "-")
    yield from _whole(new, "+")


def _whole(state: State, mark: Mark) -> Iterator[Line]:
    if state.kind == "object":
        for element in _elements(state):
            yield Line(mark, element_text(state.type, element))
    elif state.content is not None:
        data = state.content.head(LARGE)
        for text in _text(data) or _hex(data, state.offset):
            yield Line(mark, text)


def _same_type(prior: State, new: State) -> Iterator[Line]:
    assert prior.logical is not None
    assert new.logical is not None
    if prior.logical == new.logical:
        return
    if prior.type in SORTED:
        yield from _merged(prior.type, _lines(prior.logical), _lines(new.logical))
    elif max(prior.logical.size, new.logical.size) > LARGE:
        yield Line("fact", "too large to be compared by element; see redisfuse show --prior --logical, --new --logical")
    elif prior.type == b"zset":
        yield from _by_name(prior, new)
    else:
        before = [text for element in _elements(prior) for text in _element_lines(prior.type, element)]
        after = [text for element in _elements(new) for text in _element_lines(new.type, element)]
        yield from _unified(before, after)


def _merged(type: bytes, before: Iterator[bytes], after: Iterator[bytes]) -> Iterator[Line]:
    """Two sorted copies, walked side by side."""
    one, other = next(before, None), next(after, None)
    while one is not None or other is not None:
        if one == other:
            one, other = next(before, None), next(after, None)
        elif other is None or (one is not None and one < other):
            assert one is not None
            yield Line("-", element_text(type, _parsed(one)))
            one = next(before, None)
        else:
            yield Line("+", element_text(type, _parsed(other)))
            other = next(after, None)


def _by_name(prior: State, new: State) -> Iterator[Line]:
    """A sorted set: members that went, came, or have another score."""
    before = {element[0]: element for element in _elements(prior)}
    after = {element[0]: element for element in _elements(new)}
    for name in [*before, *(name for name in after if name not in before)]:
        if before.get(name) == after.get(name):
            continue
        if name in before:
            yield Line("-", element_text(b"zset", before[name]))
        if name in after:
            yield Line("+", element_text(b"zset", after[name]))


def _elements(state: State) -> Iterator[portable.Record]:
    assert state.logical is not None
    try:
        _, records = portable.decode(state.logical.chunks())
        yield from records
    except (ValueError, TypeError, KeyError) as error:
        raise JournalError(f"a portable copy in the journal can't be read: {error}") from error


def _lines(copy: Content) -> Iterator[bytes]:
    """The elements' lines, as they are stored, without the first, which is about the whole."""
    return islice(portable.lines(copy.chunks()), 1, None)


def _parsed(line: bytes) -> portable.Record:
    _, records = portable.decode([b"{}\n", line, b"\n"])
    return next(records)


def element_text(type: bytes, element: portable.Record) -> str:
    """One element on one line: `value`, `score<TAB>member` as `member  score`, `field: value`, `id field=value …`."""
    parts = [escape_text(part) if isinstance(part, bytes) else str(part) for part in element]
    if type == b"zset":
        return f"{parts[1]}  {parts[0]}"
    if type == b"hash":
        expiry = f"  (expires {iso_utc(element[2])})" if len(element) > 2 and isinstance(element[2], int) else ""
        return f"{parts[0]}: {parts[1]}{expiry}"
    if type == b"stream":
        pairs = " ".join(f"{name}={value}" for name, value in zip(parts[1::2], parts[2::2], strict=False))
        return f"{parts[0]}  {pairs}"
    return " ".join(parts)


def _element_lines(type: bytes, element: portable.Record) -> list[str]:
    """A JSON document is compared by the lines of its indented form; other elements are one line each."""
    if type == b"ReJSON-RL" and isinstance(element[0], bytes):
        try:
            document: Any = json.loads(element[0])
        except ValueError:
            return [element_text(type, element)]
        text = json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True)
        return [escape_text(line.encode("utf-8", "surrogatepass")) for line in text.splitlines()]
    return [element_text(type, element)]

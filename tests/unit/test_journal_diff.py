"""The difference that a change made: readable, and complete."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from redisfuse.journal import portable
from redisfuse.journal.content import Blob
from redisfuse.journal.diff import MAX_COMPARED_BYTES, DiffLine, diff_change
from redisfuse.journal.models import ABSENT, DIRECTORY, Change, State


def change(prior: State, new: State) -> Change:
    return Change(1, 1, 1, 0, b"p", "write", b"k", None, prior, new, "applied", None, None, None, None, None, None, "s")


def diff(prior: State | bytes, new: State | bytes) -> list[str]:
    states = [State.from_value(state) if isinstance(state, bytes) else state for state in (prior, new)]
    return [f"{line.marker}{line.text}" for line in diff_change(change(*states))]


def collection(type: str, *elements: Any, **facts: Any) -> State:
    lines = [
        json.dumps({"type": type, **facts}).encode(),
        *(portable.encode_record(element).strip() for element in elements),
    ]
    return State.from_object(type.encode(), b"dump", Blob.from_bytes(b"\n".join(lines) + b"\n"))


def test_text() -> None:
    """Text is compared line by line, with context around a difference."""
    before = b"".join(b"line %d\n" % n for n in range(30))
    assert diff(before, before.replace(b"line 15\n", b"LINE\nmore\n")) == [
        "place@@ -13,7 +13,8 @@",
        *(" line 12", " line 13", " line 14", "-line 15", "+LINE", "+more", " line 16", " line 17", " line 18"),
    ]
    added = ["-b (no newline at the end)", "+b"]
    assert diff(b"a\nb", b"a\nb\n") == ["factnewline added at end", "place@@ -1,2 +1,2 @@", " a", *added]
    assert diff(b"same", b"same") == []
    assert diff(b"", b"x\n") == ["place@@ -1,0 +1,1 @@", "+x"]
    assert (
        len([line for line in diff(before, b"line 0\nx\n" + before[14:] + b"end\n") if line.startswith("place")]) == 2
    )


def test_text_is_printable() -> None:
    """Control characters of a value or an element are escaped."""
    evil = "\x1b[2J\u202e".encode()
    lines = [
        *diff(evil, b"\x1b]0;title\x07"),
        *diff(collection("hash", (evil, b"v\r")), collection("hash", (b"f", evil))),
    ]
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 5


def test_bytes() -> None:
    """Bytes that are not text are compared in lines of hex with their offset."""
    before = bytes(range(256))
    lines = diff(before, before[:100] + b"\xff" + before[101:])
    assert lines[0] == "place@@ -4,7 +4,7 @@"
    assert [line for line in lines if line[0] in "-+"] == [
        "-00000060  60 61 62 63 64 65 66 67 68 69 6a 6b 6c 6d 6e 6f  `abcdefghijklmno",
        "+00000060  60 61 62 63 ff 65 66 67 68 69 6a 6b 6c 6d 6e 6f  `abc.efghijklmno",
    ]


def test_slices() -> None:
    """A range of a string is shown with its offset and with the length of the whole."""
    assert diff(State.from_slice(b"", 1000, 1000), State.from_slice(b"more\n", 1000, 1005)) == [
        "factlength: 1000 → 1005 bytes",
        "placefrom byte 1000",
        "place@@ -1,0 +1,1 @@",
        "+more",
    ]
    assert diff(State.from_slice(b"\xff", 32, 99), State.from_slice(b"\xfe", 32, 99))[2].startswith("-00000020  ff")


def test_large_contents() -> None:
    """Large contents are shown from their first difference on.

    A line reports the limit.
    """
    block = os.urandom(MAX_COMPARED_BYTES - 1) + b"x"  # a final newline would be reported first
    lines = diff(block + b"one\xff", block + b"two\xff" + block + block)
    assert lines[0] == f"placefrom byte {MAX_COMPARED_BYTES}"
    assert lines[-1].startswith("factonly")
    assert lines[2].startswith("-")
    many = b"".join(b"%d\n" % n for n in range(100_000))
    assert len(diff(many, many.replace(b"50000\n", b"x\n"))) == 9
    assert len(diff(many, many.replace(b"\n", b"!\n"))) > 200_000


@pytest.mark.parametrize(
    ("prior", "new", "expected"),
    [
        (
            ABSENT,
            State.from_value(b"abc", expires_at=0),
            "created: string of 3 bytes, expires 1970-01-01T00:00:00.000Z",
        ),
        (State.from_value(b"", b"field"), ABSENT, "removed: field of 0 bytes"),
        (ABSENT, DIRECTORY, "created: an empty directory"),
        (DIRECTORY, ABSENT, "removed: an empty directory"),
        (State.from_value(b"a"), collection("set", (b"a",)), "type: string → set"),
        (State.from_value(b"a"), State.from_value(b"a", expires_at=1), "expiry: none → 1970-01-01T00:00:00.001Z"),
        (State.from_value(b"a", expires_at=1), State.from_value(b"a"), "expiry: 1970-01-01T00:00:00.001Z → none"),
        (
            State.from_value(b"a", field_expires_at=1),
            State.from_value(b"a", field_expires_at=2),
            "expiry of the field: 1970-01-01T00:00:00.001Z → 1970-01-01T00:00:00.002Z",
        ),
        (
            State.from_object(b"odd", b"d", None, note="no copy"),
            State.from_object(b"odd", b"e", None),
            "before: no copy",
        ),
    ],
)
def test_facts(prior: State, new: State, expected: str) -> None:
    """Creation, removal, types and expiries are reported first."""
    assert diff(prior, new)[0] == f"fact{expected}"


def test_collections() -> None:
    """Collections are compared element by element."""
    assert diff(
        collection("set", (b"a",), (b"b",), (b"d",)), collection("set", (b"a",), (b"c",), (b"d",), (b"e",))
    ) == [
        *("-b", "+c", "+e"),
    ]
    assert diff(
        collection("hash", (b"f", b"1"), (b"g", b"2")), collection("hash", (b"f", b"1"), (b"g", b"3", 1000))
    ) == [
        *("-g: 2", "+g: 3  (expires 1970-01-01T00:00:01.000Z)"),
    ]
    assert diff(
        collection("zset", (b"a", b"1"), (b"b", b"2")), collection("zset", (b"b", b"2"), (b"a", b"3"), (b"c", b"4"))
    ) == [
        *("-1  a", "+3  a", "+4  c"),
    ]
    assert diff(collection("list", (b"a",), (b"b",)), collection("list", (b"b",), (b"a",)))[1:] == ["+b", " a", "-b"]
    assert diff(collection("stream", (b"1-1", b"f", b"v")), collection("stream")) == [
        "place@@ -1,1 +1,0 @@",
        "-1-1  f=v",
    ]
    assert diff(collection("set", (b"\xff",)), ABSENT) == ["factremoved: set", "-\\xff"]


def test_documents() -> None:
    """A JSON document is compared by the lines of its indented form."""
    lines = diff(collection("ReJSON-RL", (b'{"a":1,"b":{"c":2}}',)), collection("ReJSON-RL", (b'{"a":1,"b":{"c":3}}',)))
    assert [line for line in lines if line[0] in "+-"] == ['-    "c": 2', '+    "c": 3']


def test_without_a_copy_of_the_elements() -> None:
    """If only DUMPs were recorded, a line reports it."""
    lines = list(diff_change(change(State.from_object(b"odd", b"1", None), State.from_object(b"odd", b"2", None))))
    assert lines == [DiffLine("fact", "the elements of this odd are not recorded one by one, only its DUMP")]

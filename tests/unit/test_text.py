"""The pure half of values/: escapes, lines, JSON text."""

import base64
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisfuse import text as text_module
from redisfuse.rendering import json_encoding, registry
from redisfuse.rendering.iterate import DEDUP_WINDOW_ELEMENTS, BatchSizer, Deduplicator
from redisfuse.rendering.registry import RENDERERS, format_lines
from redisfuse.rendering.renderer import Element, TypeRenderer
from redisfuse.rendering.streams import next_entry_id
from redisfuse.text import escape_line, escape_line_chunks
from tests.support.unescape import unescape

# Bytes as people and programs write them, and as nobody does: text, controls, halves of UTF-8 sequences, escapes.
_PIECES = [
    b"a",
    b"=",
    b"\\",
    b"\t",
    b"\n",
    b"\r",
    b"\\n",
    b"\\x41",
    b"\x00",
    b"\x7f",
    b"\xc2\x85",
    b"\xff",
    b"\xc3",
    b"\xa9",
]
_PIECES += ["é".encode(), "漢".encode(), "😀".encode(), b"\xed\xa0\x80", b"\xf0\x9f", "\u2028".encode()]
anything = st.binary(max_size=60) | st.lists(st.sampled_from(_PIECES), max_size=12).map(b"".join)


@given(anything)
def test_escaping_is_reversible(data: bytes) -> None:
    """Whatever the bytes, unescape(escape_line(data)) is data."""
    assert unescape(escape_line(data)) == data


@given(anything)
def test_escaped_text_is_clean(data: bytes) -> None:
    """Escaped text is valid UTF-8 without any control character, so it can't break a line, a column or a terminal."""
    text = escape_line(data).decode()
    assert not [char for char in text if ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0]


@given(anything, anything)
def test_escapes_differ_where_bytes_differ(one: bytes, other: bytes) -> None:
    """No two values have the same text."""
    assert (escape_line(one) == escape_line(other)) == (one == other)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain text, ~ and \xc3\xa9", b"plain text, ~ and \xc3\xa9"),
        (b"\\", rb"\\"),
        (b"\t\n", rb"\t\n"),
        (b"\r\x00\x7f", rb"\x0d\x00\x7f"),
        (b"\xff\xc3", rb"\xff\xc3"),
        (b"\xc2\x85", rb"\xc2\x85"),
        (b"\xed\xa0\x80", rb"\xed\xa0\x80"),
    ],
)
def test_escapes_by_example(data: bytes, text: bytes) -> None:
    """The spellings are those of DESIGN.md §2."""
    assert escape_line(data) == text


@pytest.mark.parametrize("text", [b"\\", b"\\a", b"\\x4", b"\\xg0", b"ends with \\"])
def test_a_stray_backslash_is_refused(text: bytes) -> None:
    """What escape never writes is no text of any value."""
    with pytest.raises(ValueError, match="backslash"):
        unescape(text)


@given(st.lists(anything, max_size=20).map(b"".join))
def test_pieces_join(data: bytes) -> None:
    """A value that is escaped in pieces has the same text, wherever the cuts fall."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "CHUNK_BYTES", 7)
        assert b"".join(escape_line_chunks(data)) == escape_line(data)


def _elements(kind: TypeRenderer) -> st.SearchStrategy[Element]:
    if kind.has_pairs:
        pairs = st.lists(st.tuples(anything, anything), min_size=1, max_size=3)
        return pairs.map(lambda found: (b"1-1", *itertools.chain(*found)))
    return st.tuples(*[anything] * kind.line_format.count(b"%b"))


@pytest.mark.parametrize("kind", RENDERERS.values(), ids=lambda kind: kind.type.decode())
@given(data=st.data())
def test_lines_are_reversible_and_counted(kind: TypeRenderer, data: st.DataObject) -> None:
    """`wc -l` is the cardinality, and columns, names and values are found again by splitting and unescaping."""
    piece = data.draw(st.lists(_elements(kind), max_size=5))
    text = b"".join(format_lines(kind, piece))
    assert text.count(b"\n") == len(piece)
    read: list[Element] = []
    for line in text.split(b"\n")[:-1]:
        columns = line.split(b"\t")
        if kind.has_pairs:
            columns = [columns[0], *itertools.chain(*[column.split(b"=", 1) for column in columns[1:]])]
        read.append(tuple(map(unescape, columns)))
    assert read == piece


@pytest.mark.parametrize("kind", RENDERERS.values(), ids=lambda kind: kind.type.decode())
@given(data=st.data())
def test_large_elements_read_as_small_ones_do(kind: TypeRenderer, data: st.DataObject) -> None:
    """Elements that are escaped in pieces have the same lines."""
    piece = data.draw(st.lists(_elements(kind), min_size=1, max_size=5))
    expected = b"".join(format_lines(kind, piece))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "CHUNK_BYTES", 0)
        patch.setattr(text_module, "CHUNK_BYTES", 5)
        assert b"".join(format_lines(kind, piece)) == expected


def _bytes_of(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"], validate=True)


@given(st.lists(anything, max_size=20).map(b"".join))
def test_json_text_is_reversible(data: bytes) -> None:
    """Bytes as JSON are a string if they are UTF-8, else base64; in pieces or not; without controls."""
    whole = b"".join(json_encoding.encode_json(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_encoding, "JSON_CHUNK_BYTES", 6)
        assert b"".join(json_encoding.encode_json(data)) == whole
    assert _bytes_of(json.loads(whole)) == data
    assert not [char for char in whole.decode() if ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0]


def test_after_is_the_next_id() -> None:
    """The id after one is the smallest greater one, over the end of the sequence numbers too."""
    assert next_entry_id(b"5-7") == b"5-8"
    assert next_entry_id(b"5-18446744073709551615") == b"6-0"


def test_pace_slows_down_for_large_elements() -> None:
    """Pieces grow to 1000 small elements, and shrink to one where elements are of a MiB."""
    pace = BatchSizer()
    for _ in range(5):
        pace.record_batch([(b"x" * 10,)] * pace.count)
    assert pace.count == 1000
    pace.record_batch([(b"x" * 100_000,)] * 1000)
    assert pace.count == 10
    pace.record_batch([(b"x" * 5_000_000,)] * 10)
    assert pace.count == 1


@given(st.lists(st.binary(min_size=30, max_size=34), max_size=30))
def test_repetitions_are_removed(names: list[bytes]) -> None:
    """Each name passes once, also of names around the length from which digests stand for them."""
    repetitions = Deduplicator()
    passed = [
        name
        for start in range(0, len(names), 3)
        for (name,) in repetitions.filter_new([(n,) for n in names[start:][:3]])
    ]
    assert passed == list(dict.fromkeys(names))


def test_repetitions_are_remembered_long_enough() -> None:
    """A name is recognised after 65 536 others."""
    repetitions = Deduplicator()
    for start in range(0, DEDUP_WINDOW_ELEMENTS, 1000):
        repetitions.filter_new([(b"%d" % number,) for number in range(start, start + 1000)])
    assert not repetitions.filter_new([(b"%d" % number,) for number in range(1000, DEDUP_WINDOW_ELEMENTS)])

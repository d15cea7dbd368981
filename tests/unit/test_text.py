"""Escaped lines, JSON text, and the other pure parts of rendering."""

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
from redisfuse.text import are_plain_lines, escape_line, escape_line_chunks, escape_text
from tests.support.unescape import unescape

# Usual bytes and unusual ones: text, controls, halves of UTF-8 sequences, escapes.
_FRAGMENTS = [
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
_FRAGMENTS += ["é".encode(), "漢".encode(), "😀".encode(), b"\xed\xa0\x80", b"\xf0\x9f", "\u2028".encode()]
any_bytes = st.binary(max_size=60) | st.lists(st.sampled_from(_FRAGMENTS), max_size=12).map(b"".join)


@given(any_bytes)
def test_escaping_is_reversible(data: bytes) -> None:
    """unescape(escape_line(data)) is data, for any bytes."""
    assert unescape(escape_line(data)) == data


@given(any_bytes)
def test_escaped_text_is_clean(data: bytes) -> None:
    """Escaped text is valid UTF-8 without any control character, so it can't break a line, a column or a terminal."""
    text = escape_line(data).decode()
    assert not [char for char in text if ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0]


@given(any_bytes, any_bytes)
def test_escapes_differ_where_bytes_differ(one: bytes, other: bytes) -> None:
    """Two values never have the same text."""
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
    """The escapes are those of redisfuse/docs/reading.md."""
    assert escape_line(data) == text


@pytest.mark.parametrize("text", [b"\\", b"\\a", b"\\x4", b"\\xg0", b"ends with \\"])
def test_a_stray_backslash_is_rejected(text: bytes) -> None:
    """A backslash that escape_line never writes is not the text of any value."""
    with pytest.raises(ValueError, match="backslash"):
        unescape(text)


@given(st.lists(any_bytes, max_size=20).map(b"".join))
def test_escaped_chunks_join(data: bytes) -> None:
    """A value that is escaped in chunks has the same text, wherever the chunks end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_DECODED_BYTES", 7)
        assert b"".join(escape_line_chunks(data)) == escape_line(data)


def _elements(renderer: TypeRenderer) -> st.SearchStrategy[Element]:
    if renderer.has_pairs:
        pairs = st.lists(st.tuples(any_bytes, any_bytes), min_size=1, max_size=3)
        return pairs.map(lambda drawn: (b"1-1", *itertools.chain(*drawn)))
    return st.tuples(*[any_bytes] * renderer.line_format.count(b"%b"))


@pytest.mark.parametrize("renderer", RENDERERS.values(), ids=lambda renderer: renderer.type.decode())
@given(data=st.data())
def test_lines_are_reversible_and_counted(renderer: TypeRenderer, data: st.DataObject) -> None:
    """`wc -l` is the cardinality; splitting and unescaping gives back the columns, names and values."""
    batch = data.draw(st.lists(_elements(renderer), max_size=5))
    text = b"".join(format_lines(renderer, batch))
    assert text.count(b"\n") == len(batch)
    elements: list[Element] = []
    for line in text.split(b"\n")[:-1]:
        columns = line.split(b"\t")
        if renderer.has_pairs:
            columns = [columns[0], *itertools.chain(*[column.split(b"=", 1) for column in columns[1:]])]
        elements.append(tuple(map(unescape, columns)))
    assert elements == batch


@pytest.mark.parametrize("renderer", RENDERERS.values(), ids=lambda renderer: renderer.type.decode())
@given(data=st.data())
def test_large_elements_read_as_small_ones_do(renderer: TypeRenderer, data: st.DataObject) -> None:
    """Elements that are escaped in chunks have the same lines."""
    batch = data.draw(st.lists(_elements(renderer), min_size=1, max_size=5))
    expected = b"".join(format_lines(renderer, batch))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "CHUNK_BYTES", 0)
        patch.setattr(text_module, "_DECODED_BYTES", 5)
        assert b"".join(format_lines(renderer, batch)) == expected


def _bytes_of(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"], validate=True)


@given(st.lists(any_bytes, max_size=20).map(b"".join))
def test_json_text_is_reversible(data: bytes) -> None:
    """Bytes as JSON are a string if they are UTF-8, else base64; in chunks or not; without controls."""
    whole = b"".join(json_encoding.encode_json(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_encoding, "JSON_CHUNK_BYTES", 6)
        assert b"".join(json_encoding.encode_json(data)) == whole
    assert _bytes_of(json.loads(whole)) == data
    assert not [char for char in whole.decode() if ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0]


def test_next_entry_id_is_the_smallest_greater_one() -> None:
    """The next ID of an entry is the smallest greater one, also past the last sequence number."""
    assert next_entry_id(b"5-7") == b"5-8"
    assert next_entry_id(b"5-18446744073709551615") == b"6-0"


def test_batches_shrink_for_large_elements() -> None:
    """Batches grow to 1000 small elements, and shrink to one element of a MiB."""
    sizer = BatchSizer()
    for _ in range(5):
        sizer.record_batch([(b"x" * 10,)] * sizer.count)
    assert sizer.count == 1000
    sizer.record_batch([(b"x" * 100_000,)] * 1000)
    assert sizer.count == 10
    sizer.record_batch([(b"x" * 5_000_000,)] * 10)
    assert sizer.count == 1


@given(st.lists(st.binary(min_size=30, max_size=34), max_size=30))
def test_repetitions_are_removed(names: list[bytes]) -> None:
    """Each name passes once, also around the length from which digests replace names."""
    deduplicator = Deduplicator()
    passed = [
        name
        for start in range(0, len(names), 3)
        for (name,) in deduplicator.filter_new([(n,) for n in names[start:][:3]])
    ]
    assert passed == list(dict.fromkeys(names))
    deduplicator = Deduplicator()
    batches = [names[start:][:3] for start in range(0, len(names), 3)]
    assert [name for batch in batches for name in deduplicator.filter_new_names(batch)] == passed


@given(st.lists(st.binary(max_size=4), max_size=4))
def test_lines_are_plain_if_none_needs_an_escape(lines: list[bytes]) -> None:
    """Bytes at the end of one line and at the beginning of the next are no character."""
    assert are_plain_lines(lines) == all(escape_text(line).encode("utf-8", "surrogateescape") == line for line in lines)
    assert not are_plain_lines([b"\xc3", b"\xa9"])


def test_the_window_of_repetitions() -> None:
    """A name is still recognized after 65 536 others."""
    deduplicator = Deduplicator()
    for start in range(0, DEDUP_WINDOW_ELEMENTS, 1000):
        deduplicator.filter_new([(b"%d" % number,) for number in range(start, start + 1000)])
    assert not deduplicator.filter_new([(b"%d" % number,) for number in range(1000, DEDUP_WINDOW_ELEMENTS)])

"""Two states side by side, and the structure of JSON documents, as `redisfuse review` shows them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redisfuse.journal.content import Blob
from redisfuse.journal.models import ABSENT, State
from redisfuse.journal.portable import encode_header, encode_record
from redisfuse.review.json_changes import compare_documents
from redisfuse.review.side_by_side import MAX_ROWS, Cell, SideBySideRow, align_states
from redisfuse.review.three_way import align_three


def value(data: bytes) -> State:
    """Return the state of a string."""
    return State.from_value(data)


def collection(key_type: bytes, *records: tuple[bytes, ...]) -> State:
    """Return the state of a collection."""
    header = encode_header({"type": key_type.decode(), "elements": len(records)})
    copy = header + b"".join(encode_record(record) for record in records)
    return State.from_object(key_type, None, Blob.from_bytes(copy))


def text(cell: Cell | None) -> str | None:
    """Return the text of a cell, with the pieces that differ in brackets."""
    return None if cell is None else "".join(p.text if p.is_same else f"[{p.text}]" for p in cell.pieces)


def rows(prior: State, new: State) -> list[tuple[str, str | None, str | None]]:
    """Return the rows of two states as texts."""
    return [
        (row.kind, text(row.before) if row.kind != "gap" else row.text, text(row.after))
        for row in align_states(prior, new)
    ]


def test_text_is_compared_by_word() -> None:
    """A changed line is beside the new one with its words marked; other lines have no counterpart."""
    found = rows(value(b"a\nHello you\nc\nd\n"), value(b"a\nWelcome you\nc\nd\ne"))
    assert found == [
        ("same", "a", "a"),
        ("changed", "[Hello] you", "[Welcome] you"),
        ("same", "c", "c"),
        ("same", "d", "d"),
        ("added", None, "[e]"),
    ]
    last = list(align_states(value(b"a\n"), value(b"a\ne")))[-1]
    assert last.after == Cell("2", last.after.pieces, is_open=True)  # type: ignore[union-attr]


def test_equal_lines_are_left_out() -> None:
    """Far from a difference, lines are a gap with their number."""
    before = b"".join(b"%d\n" % number for number in range(100))
    found = rows(value(before), value(before.replace(b"50\n", b"fifty\n")))
    assert found[0] == ("gap", "47 equal lines", None)
    assert found[4] == ("changed", "[50]", "[fifty]")
    assert found[-1] == ("gap", "46 equal lines", None)
    assert rows(value(before), value(before)) == []


def test_a_created_and_a_removed_value() -> None:
    """One side is empty."""
    assert rows(ABSENT, value(b"new\n")) == [("added", None, "[new]")]
    assert rows(value(b"old\n"), ABSENT) == [("removed", "[old]", None)]


def test_controls_are_shown_escaped() -> None:
    """Terminal escapes, marks of direction and carriage returns are visible; a tab remains one."""
    assert rows(ABSENT, value("\x1b[31m\u202e\ta\r\n".encode())) == [("added", None, "[\\x1b[31m\\u202e\ta\\r]")]


def test_bytes_are_compared_in_hex() -> None:
    """Bytes that are not UTF-8 are rows of 16 with offsets, and those that differ are marked."""
    data = bytes(range(200, 240))
    found = list(align_states(value(data), value(data[:20] + b"\x00\x01" + data[22:])))
    assert [row.kind for row in found] == ["same", "changed", "same"]
    assert text(found[1].after) == "d8 d9 da db [00 01] de df e0 e1 e2 e3 e4 e5 e6 e7  ................"
    assert (found[1].before or Cell("", ())).label == "000010"
    assert rows(value(b"\0a"), ABSENT)[0][1] == "[00 61]" + "   " * 14 + "  .a"


def test_collections_are_compared_by_element() -> None:
    """Elements of both sides are beside each other, with their words marked."""
    before, after = collection(b"hash", (b"a", b"1"), (b"b", b"2")), collection(b"hash", (b"a", b"1"), (b"b", b"3"))
    assert rows(before, after) == [("changed", "b: [2]", "b: [3]")]
    assert rows(before, ABSENT) == [("removed", "[a: 1]", None), ("removed", "[b: 2]", None)]
    lists = [collection(b"list", *((b"%d" % n,) for n in numbers)) for numbers in ((1, 2, 3), (1, 3, 4))]
    assert [row[0] for row in rows(*lists) if row[0] != "same"] == ["gap", "removed", "added"]


def test_a_long_difference_is_cut() -> None:
    """A difference has at most MAX_ROWS rows, then their remainder; a long line has its middle left out."""
    found = list(align_states(ABSENT, value(b"x\n" * (MAX_ROWS + 234))))
    assert len(found) == MAX_ROWS + 1
    assert found[-1] == SideBySideRow("gap", text="234 more rows; download both contents to see all")
    (row,) = rows(value(b"a" * 5000 + b" old"), value(b"a" * 5000 + b" new"))
    assert row[1] == "a" * 200 + " … 4,601 characters … " + "a" * 199 + " [old]"


def test_a_value_over_the_limit_is_compared_from_its_first_difference() -> None:
    """Of two values of 3 MiB only the part around the difference is shown."""
    found = rows(value(b"x\n" * (3 << 19) + b"old\n"), value(b"x\n" * (3 << 19) + b"new\n"))
    assert ("changed", "[old]", "[new]") in found
    assert len(found) < 10


# -- JSON ------------------------------------------------------------------------------------------------------------


def changes(before: str, after: str) -> list[tuple[str, str | None, str | None]] | None:
    """Return the differences of two documents."""
    found = compare_documents(value(before.encode()), value(after.encode()))
    return None if found is None else [(one.place, one.before, one.after) for one in found]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}', []),
        ('{"a": 1}', '{"a": 1.0}', [("$.a", "1", "1.0")]),
        ('{"a": 1}', '{"a": "1"}', [("$.a", "1", '"1"')]),
        ('{"a": true}', '{"a": 1}', [("$.a", "true", "1")]),
        ('{"a": null}', "{}", [("$.a", "null", None)]),
        ('{"a b": {"c": [1]}}', '{"a b": {"c": [2]}}', [('$["a b"].c[0]', "1", "2")]),
        ("[1, 2, 3]", "[0, 1, 2, 3]", [("$[0]", None, "0")]),
        ("[1, 2, 3]", "[1, 3]", [("$[1]", "2", None)]),
        ('[{"id": 1, "n": 1}, 5]', '[{"id": 1, "n": 2}, 5]', [("$[0].n", "1", "2")]),
        ('{"a": {}}', '{"a": []}', [("$.a", "{}", "[]")]),
        (
            '{"n": 12345678901234567890123}',
            '{"n": 12345678901234567890124}',
            [("$.n", "1" + "2345678901234567890123", "1" + "2345678901234567890124")],
        ),
        ('{"a": "\\u001b[31m"}', "{}", [("$.a", '"\\u001b[31m"', None)]),
        ("plain", "{}", None),
        ("1", "2", None),
        ("{", "{}", None),
        ("[" * 100_000, "{}", None),
    ],
)
def test_documents_are_compared_by_structure(
    before: str, after: str, expected: list[tuple[str, str | None, str | None]] | None
) -> None:
    """Each place that differs has its value before and after; order of names and spelling are no difference."""
    assert changes(before, after) == expected


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(DOCUMENTS, DOCUMENTS)
@settings(max_examples=60, deadline=None)
def test_documents_without_a_difference_are_equal(before: object, after: object) -> None:
    """There is a difference exactly if the documents differ, for any two."""
    found = changes(json.dumps({"x": before}), json.dumps({"x": after}))
    assert found is not None
    same = json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)
    assert (found == []) == same


# -- three states ----------------------------------------------------------------------------------------------------


def three(found: State, now: State, edit: State) -> list[tuple[str | None, ...]]:
    """Return the rows of three states as texts."""
    aligned = align_three(found, now, edit)
    assert aligned is not None
    return [(row.text,) if row.text else tuple(map(text, (row.found, row.now, row.edit))) for row in aligned]


def test_three_texts_are_aligned_with_the_middle_one() -> None:
    """Lines are beside those of the middle text; what it lacks has rows of its own; words that differ are marked."""
    found = three(
        value(b"a\nold word\nc\ngone\nd\n"), value(b"a\nnew word\nc\nd\nadded\n"), value(b"a\nmy word\nc\nmine\nd\n")
    )
    assert found == [
        ("a", "a", "a"),
        ("[old] word", "[new] word", "[my] word"),
        ("c", "c", "c"),
        ("[gone]", None, "[mine]"),
        ("d", "d", "d"),
        (None, "[added]", None),
    ]


def test_three_long_texts_have_gaps() -> None:
    """Equal lines far from any difference are a gap; equal texts have no rows."""
    before = b"".join(b"%d\n" % number for number in range(100))
    now = before.replace(b"20\n", b"twenty\n")
    found = three(value(before), value(now), value(before.replace(b"70\n", b"seventy\n")))
    assert [row[0] for row in found if len(row) == 1] == ["17 equal lines", "43 equal lines", "26 equal lines"]
    assert ("[20]", "[twenty]", "[20]") in found
    assert ("70", "[70]", "[seventy]") in found
    assert three(value(before), value(before), value(before)) == []
    assert len(three(ABSENT, value(b"x\n" * 5000), ABSENT)) == MAX_ROWS + 1


def test_three_binary_values_are_rows_of_bytes() -> None:
    """Bytes are compared in rows of 16; collections can't be aligned."""
    found = three(value(bytes(20)), value(bytes(19) + b"\xff"), value(bytes(20)))
    assert found[0][0] == found[0][1] == found[0][2]
    assert found[1] != (found[1][0],) * 3
    assert all("[" in str(cell) for cell in found[1])
    assert align_three(value(b"a"), collection(b"set", (b"m",)), value(b"b")) is None


@given(*[st.lists(st.sampled_from([b"a\n", b"b\n", b"c\n", b"d\n"]), max_size=12)] * 3)
def test_each_of_three_texts_can_be_read_in_its_column(one: list[bytes], two: list[bytes], other: list[bytes]) -> None:
    """Without gaps, each column has all lines of its text, in order."""
    rows = align_three(*(value(b"".join(lines)) for lines in (one, two, other))) or []
    if any(row.text for row in rows) or one == two == other:
        return
    for lines, column in ((one, "found"), (two, "now"), (other, "edit")):
        cells = [getattr(row, column) for row in rows]
        assert [text(cell).replace("[", "").replace("]", "") for cell in cells if cell] == [  # type: ignore[union-attr]
            line.decode().strip() for line in lines
        ]

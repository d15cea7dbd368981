"""paths/grammar.py: the examples of the naming rules, one by one."""

import hashlib

import pytest

from redisfuse.errors import BadNameError, NameTooLongError, NotFoundError, UsageError
from redisfuse.paths.grammar import (
    DigestEntry,
    DigestField,
    DigestFieldsDir,
    DigestRoot,
    NameSegment,
    PathCandidates,
    PathCodec,
    RefreshFile,
    RootDir,
)

colon = PathCodec()


def parse_candidates(path: bytes, grammar: PathCodec = colon) -> PathCandidates:
    meaning = grammar.parse(path)
    assert isinstance(meaning, PathCandidates)
    return meaning


def is_rejected(path: bytes, grammar: PathCodec = colon) -> bool:
    try:
        grammar.parse(path)
    except NotFoundError:
        return True
    return False


@pytest.mark.parametrize(
    ("key", "path"),
    [
        (b"hello", b"hello"),
        (b"user:1:name", b"user/1/name"),
        (b".git:info:exclude", b".git/info/exclude"),
        (b"", b"%"),
        (b":", b"%/%"),
        (b"a::b", b"a/%/b"),
        (b":a", b"%/a"),
        (b"a:", b"a/%"),
        (b".", b"%2E"),
        (b"..", b"%2E%2E"),
        (b"...", b"..."),
        (b"a:.:..:b", b"a/%2E/%2E%2E/b"),
        (b"100%", b"100%25"),
        (b"a/b", b"a%2Fb"),
        (b"a\x00\x1f\x7fb", b"a%00%1F%7Fb"),
        ("caf\u00e9 \U0001f600".encode(), "caf\u00e9 \U0001f600".encode()),
        ("a\u0080\u009fb".encode(), b"a%C2%80%C2%9Fb"),
        (b"\xff\xc3(\xe2\x82", b"%FF%C3(%E2%82"),
        (b"\xed\xa0\x80", b"%ED%A0%80"),
        (b"a b\\c", b"a b\\c"),
        (b"v1.2.conf", b"v1.2.conf"),
        (b".updater", b"%2Eupdater"),
        (b".updater:x", b"%2Eupdater/x"),
        (b"x:.updater", b"x/.updater"),
        (b"%long", b"%25long"),
        (b"a%+", b"a%25+"),
    ],
)
def test_key_and_path(key: bytes, path: bytes) -> None:
    """A key has the path that the rules specify, and the path parses to the key."""
    assert colon.key_path(key) == path
    parsed = parse_candidates(path)
    assert parsed.as_key is not None
    assert colon.join_key((*parsed.directory, parsed.as_key)) == key
    assert parse_candidates(b"/" + path) == parsed


@pytest.mark.parametrize(
    ("key", "field", "path"),
    [
        (b"hello", b"howdy", b"hello.howdy"),
        (b"jquery", b"min.js", b"jquery.min.js"),
        (b".x", b"swp", b".x.swp"),
        (b"hello", b"", b"hello.%"),
        (b"", b"f", b"%.f"),
        (b"", b"", b"%.%"),
        (b".", b"x", b"%2E.x"),
        (b"..", b"x", b"%2E%2E.x"),
        (b"hello", b".", b"hello.."),
        (b"hello", b"..", b"hello..."),
        (b"v1.2", b"conf", b"v1%2E2.conf"),
        (b".a.b", b"f", b".a%2Eb.f"),
        (b"hello", b"a:b", b"hello.a:b"),
        (b"hello", b"a/b%\xff", b"hello.a%2Fb%25%FF"),
        (b"user:1", b"name", b"user/1.name"),
    ],
)
def test_field_and_path(key: bytes, field: bytes, path: bytes) -> None:
    """A hash field is an extension of its key, and the path parses to both."""
    assert colon.field_path(key, field) == path
    parsed = parse_candidates(path)
    assert parsed.as_field is not None
    assert (colon.join_key((*parsed.directory, parsed.as_field[0])), parsed.as_field[1]) == (key, field)


@pytest.mark.parametrize("name", [b".gitignore", b"hello.", b"a%2Eb", b"..x", b"...", b"README"])
def test_no_field_dot(name: bytes) -> None:
    """A leading dot, a trailing dot and an escaped dot separate no field."""
    assert parse_candidates(name).as_field is None


@pytest.mark.parametrize(
    "path",
    [
        b"a%zz", b"a%2f", b"%41", b"%C3%A9", b"a%25%%", b"a:b", b".", b"..", b".%2E", b"%2E.", b"a//b", b"a/", b"a/./b",
        b"%%%", b"a%%", b"%+", b"abc%+", b"abc%+/d", b"\xff", b"a\x01", b"%json", b"%dump", b"x/%long", b".updater/x",
        b"hello.%%json", b".%", b"a%long/x", b"%long/xyz", b"hello.x%json%", b"a%/b", b"a%json/b",
        b"\x9b" * 600, b"%long/" * 2000 + b"x", b"a%long/" * 500,
    ],
)  # fmt: skip
def test_strict(path: bytes) -> None:
    """A path that the encoder never writes does not exist."""
    assert is_rejected(path)


def test_any_dot_may_be_escaped() -> None:
    """`%2E` is accepted for any dot, which is then no field dot; there is no other second spelling."""
    assert parse_candidates(b"a%2Eb").as_key == b"a.b"
    assert parse_candidates(b"%2Egit").as_key == b".git"
    assert parse_candidates(b"a.b%2Ec").as_field == (b"a", b"b.c")
    assert parse_candidates(b"a%2Eb/c").directory == (b"a.b",)


def test_directory_and_key() -> None:
    """A plain name may be a directory and a key; the marked name is only a file."""
    assert parse_candidates(b"user") == PathCandidates((), b"user", as_directory=b"user", as_key=b"user")
    assert parse_candidates(b"user%") == PathCandidates((), b"user%", as_key=b"user", has_file_mark=True)
    assert colon.listed_key_name(b"user", is_directory=True) == b"user%"
    assert parse_candidates(b"%%") == PathCandidates((), b"%%", as_key=b"", has_file_mark=True)
    assert parse_candidates(b"a.b%").as_field == (b"a", b"b")
    assert parse_candidates(b"a.b%").as_key == b"a.b"


def test_marks_and_empty_fields() -> None:
    """`hello.%` is the empty field, and the key `hello.` is marked `hello%2E%`."""
    assert colon.add_file_mark(b"hello.") == b"hello%2E%"
    assert parse_candidates(b"hello.%") == PathCandidates((), b"hello.%", as_field=(b"hello", b""))
    assert parse_candidates(b"hello%2E%") == PathCandidates((), b"hello%2E%", as_key=b"hello.", has_file_mark=True)
    assert parse_candidates(b"hello.%%") == PathCandidates(
        (), b"hello.%%", as_field=(b"hello", b""), has_file_mark=True
    )
    assert parse_candidates(b"%.%").as_field == (b"", b"")


def test_shadowed_and_hash() -> None:
    """A key that a field shadows, and a hash, are listed with all dots escaped except a leading one."""
    assert colon.shadowing_field(b"a.b") == (b"a", b"b")
    assert colon.shadowing_field(b".a") is None
    assert colon.shadowing_field(b"a.") is None
    assert colon.listed_key_name(b"a.b", shadowed=True) == b"a%2Eb"
    assert colon.listed_key_name(b".v1.2.conf", is_hash=True) == b".v1%2E2%2Econf"
    assert colon.listed_key_name(b"..", is_hash=True) == b"%2E%2E"
    assert colon.listed_field_name(b"user", b"f", is_directory=True) == b"user.f%"
    assert colon.shadowing_directory(b"v1%2E2.f") == b"v1.2.f"
    assert colon.shadowing_directory(b"hello.a:b") is None


def test_views() -> None:
    """`NAME%json`, `%dump` and `%text` are views of the key of that name, with or without the mark."""
    assert parse_candidates(b"user%json") == PathCandidates((), b"user%json", as_key=b"user", view="json")
    assert parse_candidates(b"a.b%dump") == PathCandidates((), b"a.b%dump", as_key=b"a.b", view="dump")
    assert parse_candidates(b"%%json").as_key == b""
    assert parse_candidates(b"user%%json") == PathCandidates(
        (), b"user%%json", as_key=b"user", has_file_mark=True, view="json"
    )
    assert parse_candidates(b"hello.%json").as_key == b"hello."
    text = parse_candidates(b"a.b%text")
    assert (text.as_field, text.as_key, text.view) == ((b"a", b"b"), b"a.b", "text")
    assert parse_candidates(b"a.%%text").as_field == (b"a", b"")
    assert parse_candidates(b"a.b%json").as_field is None


def test_root_and_updater() -> None:
    """`.updater` and `%long` are special only in the root."""
    assert colon.parse(b"") == RootDir()
    assert colon.parse(b"/") == RootDir()
    assert colon.parse(b"/.updater") == RefreshFile()
    assert parse_candidates(b"%2Eupdater").as_key == b".updater"
    assert parse_candidates(b"x/.updater").as_key == b".updater"
    assert colon.parse(b"%long") == DigestRoot()


@pytest.mark.parametrize(("length", "count"), [(255, 1), (256, 2), (506, 2), (508, 2), (509, 3), (2000, 8)])
def test_cuts(length: int, count: int) -> None:
    """A name of more than 255 bytes is cut into directories, and parsed by joining them."""
    path = colon.key_path(b"x" * length)
    segments = path.split(b"/")
    assert len(segments) == count
    assert all(len(segment) <= 255 for segment in segments)
    assert all(segment.endswith(b"%+") for segment in segments[:-1])
    assert parse_candidates(path).as_key == b"x" * length
    assert parse_candidates(path).directory == ()
    if count > 1:
        assert colon.parse(segments[0]) == NameSegment((), b"x" * 253)
        assert is_rejected(segments[0][1:] + b"/" + b"x" + b"/".join(segments[1:]))


def test_cuts_respect_escapes_and_characters() -> None:
    """No cut falls inside an escape or a UTF-8 sequence, at any offset."""
    for filler in range(8):
        for unit in (b"\xff", "\u00e9".encode(), "\u20ac".encode(), "\U0001f600".encode(), b"%"):
            key = b"d:" + b"x" * filler + unit * 300 + b":leaf"
            path = colon.key_path(key)
            for segment in path.split(b"/"):
                assert len(segment) <= 255
                segment.decode()
                assert segment.endswith(b"%+") or b"%" not in segment[-2:]
            parsed = parse_candidates(path)
            assert colon.join_key((*parsed.directory, parsed.as_key or b"")) == key


def test_long_keys() -> None:
    """A key whose path would exceed 3000 bytes is in `%long` by its SHA-256, and has no other path."""
    key = b"k:" + b"x" * 3000
    name = hashlib.sha256(key).hexdigest()
    assert colon.key_needs_digest(key)
    assert colon.key_path(key) == b"%long/" + name.encode()
    assert colon.parse(colon.key_path(key)) == DigestEntry(name)
    assert colon.parse(colon.key_path(key) + b"%json") == DigestEntry(name, view="json")
    assert colon.parse(colon.field_path(key, b"f") + b"%text") == DigestEntry(
        name, hashlib.sha256(b"f").hexdigest(), view="text"
    )
    assert colon.parse(colon.key_path(key) + b"%") == DigestEntry(name, has_file_mark=True)
    field = hashlib.sha256(b"f").hexdigest()
    assert colon.parse(colon.field_path(key, b"f")) == DigestEntry(name, field)
    assert colon.parse(colon.field_path(key, b"f") + b"%text") == DigestEntry(name, field, view="text")
    assert is_rejected(colon.join_path((b"k",), b"x" * 3000))
    assert not colon.key_needs_digest(b"x" * 2900)
    assert colon.key_needs_digest(b"\x00" * 1000)
    assert colon.key_needs_digest(b"a." * 800)


def test_long_fields() -> None:
    """A field whose path would be too long is in its hash's `HASH%long` by its SHA-256."""
    field = b"f" * 3000
    name = hashlib.sha256(field).hexdigest()
    assert colon.field_path(b"d:v1.2", field) == b"d/v1%2E2%long/" + name.encode()
    assert colon.parse(b"d/v1%2E2%long") == DigestFieldsDir((b"d",), b"v1.2")
    assert colon.parse(colon.field_path(b"d:v1.2", field)) == DigestField((b"d",), b"v1.2", name)
    path = colon.field_path(b"d:v1.2", field)
    assert colon.parse(colon.view_path(path, "text")) == DigestField((b"d",), b"v1.2", name, view="text")
    assert is_rejected(path + b"%json")
    assert colon.parse(colon.field_path(b"", field)) == DigestField((), b"", name)
    assert colon.parse(colon.field_path(b"h" * 255, field)) == DigestField((), b"h" * 255, name)
    assert is_rejected(colon.join_path((), colon.field_name(b"d", field)))
    assert not colon.field_needs_digest(b"d", b"f" * 2900)


def test_separators() -> None:
    """Any byte string can be the separator, even one that needs escaping or overlaps itself."""
    assert PathCodec(b"::").key_path(b"a:::b") == b"a/:b"
    assert parse_candidates(b"a/:b", PathCodec(b"::")).as_key == b":b"
    assert is_rejected(b"a:/b", PathCodec(b"::"))
    assert parse_candidates(b"a:", PathCodec(b"::")) == PathCandidates((), b"a:", as_key=b"a:")
    assert PathCodec(b"%").key_path(b"a%b:c") == b"a/b:c"
    assert PathCodec(b"/").key_path(b"a/b") == b"a/b"
    assert PathCodec(b".").key_path(b"a.b") == b"a/b"
    assert PathCodec(b".").field_path(b"a", b"b.c") == b"a.b.c"
    assert parse_candidates(b"a.b.c", PathCodec(b".")) == PathCandidates((), b"a.b.c", as_field=(b"a", b"b.c"))
    assert PathCodec(b"\xc3").key_path("\u00e9".encode()) == b"%/%A9"
    with pytest.raises(UsageError):
        PathCodec(b"")


def test_paths_for_new_files() -> None:
    """A file can be created at a canonical path only; the error contains the correct one."""
    assert colon.parse_new(b"/a/b.c").as_field == (b"b", b"c")
    assert colon.parse_new(b"/user%").as_key == b"user"
    assert colon.parse_new(b"hello.a:b").as_field == (b"hello", b"a:b")
    with pytest.raises(BadNameError, match="use a/b"):
        colon.parse_new(b"a:b")
    with pytest.raises(BadNameError, match="%25"):
        colon.parse_new(b"100%zz")
    for path in (b"a%json", b"%long", b"%long/" + b"0" * 64, b"a%long", b".updater", b"", b"x" * 253 + b"%+"):
        with pytest.raises(BadNameError):
            colon.parse_new(path)
    for path in (b"x" * 256, b"/".join([b"x" * 250] * 13)):
        with pytest.raises(NameTooLongError):
            colon.parse_new(path)

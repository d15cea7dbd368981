"""The guarantee of names, with random keys, fields and separators.

The model is a server in memory: each key is a string or a hash, and some hashes are listed as one file.
"""

from collections.abc import Iterator

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from redisfuse.errors import NotFoundError, RedisFuseError
from redisfuse.paths.encoding import decode_component, decode_field, encode_component, encode_field, split_long_name
from redisfuse.paths.grammar import (
    DigestEntry,
    DigestField,
    DigestFieldsDir,
    KeyRef,
    NameSegment,
    PathCandidates,
    PathCodec,
    sha256_hex,
)
from tests.support.examples import count_examples

UNITS = [
    b"%",
    b".",
    b":",
    b"a",
    b"b",
    b"/",
    b"\x00",
    b"\x9b",
    b"\xff",
    b"\xc3",
    b"\xc2\x85",
    b"\xc3\xa9",
    b"\xe2\x82\xac",
]
UNITS += [b"\xf0\x9f\x98\x80", b"%2E", b"%25", b"%+", b"%long", b"%json", b".updater", b".%", b"::"]
separators = st.sampled_from([b":", b":", b":", b"::", b".", b"%", b"/", b"a", b"ab", b"aba", b"\xc3", b"\n", b"%2E"])
tiny = st.lists(st.sampled_from([*UNITS[:4], b""]), max_size=4).map(b"".join)
some = st.lists(st.sampled_from(UNITS), max_size=7).map(b"".join)
long_text = st.builds(
    lambda head, unit, count, tail: head + unit * count + tail,
    some,
    st.sampled_from(UNITS),
    st.integers(60, 300) | st.integers(800, 3200),
    some,
)
data = tiny | some | st.binary(max_size=12)
any_data = data | long_text
hashes = st.frozensets(data, min_size=1, max_size=4)
models = st.dictionaries(data, st.none() | hashes, max_size=12)
long_models = st.dictionaries(any_data, st.none() | st.frozensets(any_data, min_size=1, max_size=3), max_size=4)

Model = dict[bytes, frozenset[bytes] | None]


def directories(grammar: PathCodec, model: Model) -> set[tuple[bytes, ...]]:
    """Return the directories that exist because a key (that is not long) is below them."""
    prefixes: set[tuple[bytes, ...]] = {()}
    for key in model:
        if not grammar.key_needs_digest(key):
            parts = grammar.split_key(key)
            prefixes.update(parts[:depth] for depth in range(len(parts)))
    return prefixes


def listed(grammar: PathCodec, model: Model, collapsed: frozenset[bytes]) -> Iterator[tuple[bytes, KeyRef]]:
    """Yield the path and the target of every file of the tree."""
    folders = directories(grammar, model)
    for key, fields in model.items():
        *above, leaf = grammar.split_key(key)
        shadow = grammar.shadowing_field(leaf)
        shadowed = shadow is not None and shadow[1] in (model.get(grammar.join_key([*above, shadow[0]])) or ())
        if fields is None or key in collapsed:
            is_directory = (*above, leaf) in folders
            path = grammar.key_path(key, is_hash=fields is not None, shadowed=shadowed, is_directory=is_directory)
            yield path, KeyRef(key)
            continue
        for field in fields:
            component = grammar.shadowing_directory(grammar.field_name(leaf, field))
            is_directory = component is not None and (*above, component) in folders
            yield grammar.field_path(key, field, is_directory=is_directory), KeyRef(key, field)


def resolve(
    grammar: PathCodec, model: Model, folders: set[tuple[bytes, ...]], path: bytes
) -> KeyRef | tuple[bytes, ...] | None:
    """Return the target of a path, resolved as the filesystem does."""
    try:
        meaning = grammar.parse(path)
    except NotFoundError:
        return None
    if isinstance(meaning, DigestEntry):
        for key, fields in model.items():
            if grammar.key_needs_digest(key) and sha256_hex(key) == meaning.key_digest:
                for field in fields or ():
                    if sha256_hex(field) == meaning.field_digest:
                        return KeyRef(key, field)
                return KeyRef(key) if meaning.field_digest is None else None
    if isinstance(meaning, DigestField):
        key = grammar.join_key([*meaning.directory, meaning.component])
        for field in model.get(key) or ():
            if grammar.field_needs_digest(key, field) and sha256_hex(field) == meaning.digest:
                return KeyRef(key, field)
    if not isinstance(meaning, PathCandidates):
        return None
    above = meaning.directory
    if meaning.as_directory is not None and (*above, meaning.as_directory) in folders:
        return (*above, meaning.as_directory)
    if meaning.as_field is not None:
        key = grammar.join_key([*above, meaning.as_field[0]])
        if meaning.as_field[1] in (model.get(key) or ()):
            return KeyRef(key, meaning.as_field[1])
    if meaning.as_key is not None and grammar.join_key([*above, meaning.as_key]) in model:
        return KeyRef(grammar.join_key([*above, meaning.as_key]))
    return None


def check(grammar: PathCodec, model: Model, collapsed: frozenset[bytes]) -> None:
    paths = list(listed(grammar, model, collapsed))
    files = {path for path, _ in paths}
    folders = directories(grammar, model)
    assert len(files) == len(paths)
    assert not files & {grammar.directory_path(folder) for folder in folders}
    inner = {path.rsplit(b"/", depth)[0] for path in files for depth in range(1, path.count(b"/") + 1)}
    assert not files & inner, "a file can't be a directory, too"
    for path, target in paths:
        assert len(path) < 3500
        for name in path.split(b"/"):
            assert 0 < len(name) <= 255
            assert name not in (b".", b"..")
            assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name.decode("utf-8"))
        assert path != b".updater"
        assert resolve(grammar, model, folders, path) == target
    for folder in sorted(folders - {()}, key=len)[-50:]:
        assert resolve(grammar, model, folders, grammar.directory_path(folder)) == folder


@given(separators, models, st.data())
@settings(deadline=None, max_examples=count_examples(400))
def test_sets(separator: bytes, model: Model, draw: st.DataObject) -> None:
    """In any set of keys and fields, each has exactly one listed path, which is legal and resolves to it."""
    collapsed = draw.draw(st.frozensets(st.sampled_from(sorted(model)))) if model else frozenset()
    check(PathCodec(separator), model, collapsed)


@given(st.dictionaries(tiny, st.none() | st.frozensets(tiny, min_size=1), max_size=25), st.booleans())
@settings(deadline=None, max_examples=count_examples(400))
def test_colliding_sets(model: Model, collapse: bool) -> None:
    """The same, with sets in which nearly all names collide."""
    check(PathCodec(), model, frozenset(model) if collapse else frozenset())


@given(separators, long_models, st.booleans())
@settings(deadline=None, max_examples=count_examples(150), suppress_health_check=[HealthCheck.too_slow])
def test_long_sets(separator: bytes, model: Model, collapse: bool) -> None:
    """The same, for names and paths that are too long for a filesystem."""
    check(PathCodec(separator), model, frozenset(model) if collapse else frozenset())


@given(any_data)
@settings(deadline=None)
def test_escapes_round_trip(text: bytes) -> None:
    """Any bytes are encoded legally and decoded again, as a component and as a field."""
    assert decode_component(encode_component(text)) == text
    assert decode_field(encode_field(text)) == text
    assert b"/" not in encode_component(text)
    assert decode_component(encode_component(text).replace(b".", b"%2E")) == text


@given(data)
@settings(deadline=None, max_examples=count_examples(400))
def test_escapes_are_strict(written: bytes) -> None:
    """Only the output of the encoder can be decoded, except for escaped dots."""
    component = decode_component(written)
    if component is not None:
        assert encode_component(component).replace(b".", b"%2E") == written.replace(b".", b"%2E")
    field = decode_field(written)
    if field is not None:
        assert encode_field(field) == written.replace(b"%2E", b".")


@given(any_data)
@settings(deadline=None)
def test_cuts_join(text: bytes) -> None:
    """The segments of a name join to it, and each is legal."""
    name = encode_component(text)
    joined = b""
    for segment in split_long_name(name):
        assert len(segment) <= 255
        segment.decode("utf-8")
        joined += segment[:-2] if segment != split_long_name(name)[-1] else segment
    assert joined == name


@given(separators, any_data, any_data)
@settings(deadline=None, max_examples=count_examples(300))
def test_marks_and_views(separator: bytes, key: bytes, field: bytes) -> None:
    """The marked name and the views of a key parse to that key; the mark and the view of a field to that field."""
    grammar = PathCodec(separator)
    if grammar.key_needs_digest(key):
        return
    *above, leaf = grammar.split_key(key)
    for dots in (False, True):
        name = grammar.key_name(leaf, escape_dots=dots, in_root=not above)
        for view in ("json", "dump", "text"):
            meaning = grammar.parse(grammar.join_path(above, name + b"%" + view.encode()))
            assert meaning == grammar.parse(grammar.view_path(grammar.join_path(above, name), view))
            assert isinstance(meaning, PathCandidates)
            assert (list(meaning.directory), meaning.as_key, meaning.view) == (above, leaf, view)
            assert meaning.as_directory is None
        meaning = grammar.parse(grammar.join_path(above, grammar.add_file_mark(name)))
        assert isinstance(meaning, PathCandidates)
        assert (list(meaning.directory), meaning.as_key, meaning.has_file_mark) == (above, leaf, True)
        assert meaning.as_directory is None
    if not grammar.field_needs_digest(key, field):
        meaning = grammar.parse(grammar.join_path(above, grammar.add_file_mark(grammar.field_name(leaf, field))))
        assert isinstance(meaning, PathCandidates)
        assert (list(meaning.directory), meaning.as_field, meaning.has_file_mark) == (above, (leaf, field), True)
        path = grammar.join_path(above, grammar.field_name(leaf, field))
        meaning = grammar.parse(grammar.view_path(path, "text"))
        assert isinstance(meaning, PathCandidates)
        assert (list(meaning.directory), meaning.as_field, meaning.view) == (above, (leaf, field), "text")


@given(separators, st.lists(any_data | st.sampled_from([b"x" * 253 + b"%+", b"%long"]), max_size=4).map(b"/".join))
@settings(deadline=None, max_examples=count_examples(400))
def test_any_path(separator: bytes, path: bytes) -> None:
    """Any path is either parsed, to a canonical path, or rejected with a redisfuse error."""
    grammar = PathCodec(separator)
    try:
        meaning = grammar.parse(path)
    except NotFoundError:
        meaning = None
    if isinstance(meaning, PathCandidates) and meaning.as_key is not None:
        name = grammar.key_name(meaning.as_key, in_root=not meaning.directory)
        spelled = grammar.join_path(meaning.directory, name)
        if len(path) <= 255 and meaning.view is None and not meaning.has_file_mark:
            assert path.removeprefix(b"/").replace(b"%2E", b".") == spelled.replace(b"%2E", b".")
        assert grammar.split_key(grammar.join_key([*meaning.directory, meaning.as_key])) == (
            *meaning.directory,
            meaning.as_key,
        )
    if isinstance(meaning, NameSegment | DigestFieldsDir):
        assert meaning.directory == grammar.split_key(grammar.join_key([*meaning.directory, b""]))[:-1]
    try:
        grammar.parse_new(path)
    except RedisFuseError as error:
        text = str(error)
    else:
        text = ""
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in text)

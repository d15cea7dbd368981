"""Path to key: parses a path strictly into what it may mean. Pure.

A path that the builder never writes raises NotFoundError, so that no key has two paths. The exception is `%2E`, which
is accepted for any dot.
"""

from collections.abc import Sequence
from functools import lru_cache

from redisfuse.errors import NotFoundError
from redisfuse.paths.builder import (
    DIGEST_DIR,
    FIELD_VIEWS,
    FILE_MARK,
    PATH_MAX,
    REFRESH_FILE,
    SHORT_KEY_BYTES,
    VIEW_SUFFIXES,
    PathBuilder,
    parse_field_name,
)
from redisfuse.paths.encoding import (
    CONTINUATION,
    NAME_MAX,
    decode_component,
    is_leading_segment,
    is_plain,
    is_utf8,
    split_long_name,
)
from redisfuse.paths.types import (
    DigestEntry,
    DigestField,
    DigestFieldsDir,
    DigestRoot,
    NameSegment,
    ParsedPath,
    PathCandidates,
    RefreshFile,
    RootDir,
)
from redisfuse.text import for_terminal


def _strip_mark_and_view(name: bytes) -> tuple[bytes, bool, str | None]:
    """Return (the name without mark and view, whether it had the mark, its view)."""
    view = VIEW_SUFFIXES.get(name[-5:]) if len(name) > 5 else None
    if view:
        name = name[:-5]
    is_empty_field = name.find(b".", 1) == len(name) - 2
    marked = len(name) > 1 and name.endswith(FILE_MARK) and not is_empty_field
    return (name[:-1] if marked else name), marked, view


def _not_found_error(path: bytes) -> NotFoundError:
    return NotFoundError(f"{for_terminal(path)}: no key has this name")


def _join_segments(path: bytes) -> tuple[list[bytes], bytes | None]:
    """Return the names of a path, each joined from its segments.

    The second value is an unfinished last name, or None.
    """
    elements = path.split(b"/")
    names = []
    unfinished, first = b"", 0
    for number, element in enumerate(elements):
        if element.endswith(CONTINUATION):
            if not is_leading_segment(element):
                raise _not_found_error(path)
            unfinished += element[: -len(CONTINUATION)]
        else:
            name = unfinished + element
            is_cut = bool(unfinished) or len(name) > NAME_MAX
            if not element or (is_cut and split_long_name(name) != tuple(elements[first : number + 1])):
                raise _not_found_error(path)
            names.append(name)
            unfinished, first = b"", number + 1
    return names, unfinished or None


def _parse_directory(builder: PathBuilder, names: Sequence[bytes], path: bytes) -> tuple[bytes, ...]:
    components = []
    for depth, name in enumerate(names):
        component = builder.shadowing_directory(name)
        if component is None or (depth == 0 and name == REFRESH_FILE):
            raise _not_found_error(path)
        components.append(component)
    return tuple(components)


def _parse_hex_digest(name: bytes, path: bytes) -> str:
    if len(name) != 64 or name.strip(b"0123456789abcdef"):
        raise _not_found_error(path)
    return name.decode()


def _parse_digest_entry(name: bytes, path: bytes) -> DigestEntry:
    bare, marked, view = _strip_mark_and_view(name)
    key, dot, field = bare.partition(b".")
    if dot and view and view not in FIELD_VIEWS:
        raise _not_found_error(path)
    return DigestEntry(_parse_hex_digest(key, path), _parse_hex_digest(field, path) if dot else None, marked, view)


def _parse_name(builder: PathBuilder, directory: tuple[bytes, ...], name: bytes, path: bytes) -> PathCandidates:
    if b"." not in name and is_plain(name) and len(path) <= SHORT_KEY_BYTES and builder.separator not in name:
        # The common case; gives the same result as the code below, but faster.
        as_directory = name if builder.can_be_directory(name) else None
        return PathCandidates(directory, name, as_directory, None, name, has_file_mark=False, view=None)
    bare, marked, view = _strip_mark_and_view(name)
    component = decode_component(bare)
    as_key = component if component is not None and builder.separator not in component else None
    as_field = parse_field_name(bare) if view is None or view in FIELD_VIEWS else None
    if as_field and builder.separator in as_field[0]:
        as_field = None
    as_directory = None
    if component is not None and not marked and view is None and builder.can_be_directory(component):
        as_directory = component
    if len(path) > SHORT_KEY_BYTES:
        if as_key is not None and builder.key_needs_digest(builder.join_key((*directory, as_key))):
            as_key = None
        if as_field and builder.field_needs_digest(builder.join_key((*directory, as_field[0])), as_field[1]):
            as_field = None
        if as_directory is not None and len(builder.directory_path((*directory, as_directory))) > PATH_MAX:
            as_directory = None
    if as_key is None and as_field is None and as_directory is None:
        raise _not_found_error(path)
    return PathCandidates(directory, name, as_directory, as_field, as_key, marked, view)


@lru_cache(maxsize=1024)
def _parse_plain_directory(builder: PathBuilder, path: bytes) -> tuple[bytes, ...] | None:
    """Return the components of a directory's path that contains no `%`.

    None if no directory has this path.
    """
    try:
        names, _unfinished = _join_segments(path)
        return _parse_directory(builder, names, path)
    except NotFoundError:
        return None


@lru_cache(maxsize=8192)  # the kernel sends several requests in a row for one path
def parse_path(builder: PathBuilder, path: bytes) -> ParsedPath:
    """Return the meaning of a path that has no leading slash. Raises NotFoundError."""
    if not path:
        return RootDir()
    if path == REFRESH_FILE:
        return RefreshFile()
    if b"%" not in path and path.isascii():  # the common case; gives the same result as the code below, but faster
        parent, slash, last = path.rpartition(b"/")
        directory = _parse_plain_directory(builder, parent) if slash else ()
        if directory is not None and 0 < len(last) <= NAME_MAX:
            return _parse_name(builder, directory, last, path)
    if path == DIGEST_DIR:
        return DigestRoot()
    if not is_utf8(path):
        raise _not_found_error(path)
    names, unfinished = _join_segments(path)
    if unfinished is not None:
        return NameSegment(_parse_directory(builder, names, path), unfinished)
    name = names[-1]
    if name.endswith(DIGEST_DIR) and len(name) > len(DIGEST_DIR):
        owner = _parse_name(builder, _parse_directory(builder, names[:-1], path), name[: -len(DIGEST_DIR)], path)
        if owner.as_key is None or owner.has_file_mark or owner.view:
            raise _not_found_error(path)
        return DigestFieldsDir(owner.directory, owner.as_key)
    if len(names) == 2 and names[0] == DIGEST_DIR:
        return _parse_digest_entry(name, path)
    if len(names) > 1 and names[-2].endswith(DIGEST_DIR) and names[-2] != DIGEST_DIR:
        fields_dir = parse_path(builder, path[: -len(name) - 1])
        bare, marked, view = _strip_mark_and_view(name)
        if not isinstance(fields_dir, DigestFieldsDir) or (view and view not in FIELD_VIEWS):
            raise _not_found_error(path)
        return DigestField(fields_dir.directory, fields_dir.component, _parse_hex_digest(bare, path), marked, view)
    return _parse_name(builder, _parse_directory(builder, names[:-1], path), name, path)

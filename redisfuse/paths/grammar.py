"""Key ⇄ path: the grammar of names. Pure: nothing is looked up, every function is safe from any thread.

A key is split into components by the separator; all but the last are directories. Escapes and cuts are in `paths/encoding.py`,
what a path may mean in `paths/types.py`. A name can carry, in this order: a field (`hello.howdy`), the mark (`user%`: the
file, where `user` is a directory too), a view (`user%json`). Decoding is strict: what the encoder never writes does not
exist, so that no key has two spellings, but for `%2E`, which may be written for any dot.

Who has a plain name when two want it: a directory before a file (the file gets the mark), a field before a key (the
key's dots are written `%2E`). `parse` gives every reading of a path; the caller tries them in this order:
`as_directory`, `as_field`, `as_key`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from redisfuse.errors import BadNameError, NameTooLongError, NotFoundError, UsageError
from redisfuse.paths.encoding import (
    CONTINUATION,
    NAME_MAX,
    decode_component,
    decode_field,
    encode_component,
    encode_field,
    is_leading_segment,
    is_utf8,
    split_long_name,
)
from redisfuse.paths.types import (
    DigestEntry,
    DigestField,
    DigestFieldsDir,
    DigestRoot,
    KeyRef,
    NameSegment,
    ParsedPath,
    PathCandidates,
    RefreshFile,
    RootDir,
)
from redisfuse.text import for_terminal

__all__ = [
    "DIGEST_DIR",
    "FILE_MARK",
    "NAME_MAX",
    "PATH_MAX",
    "REFRESH_FILE",
    "VIEW_SUFFIXES",
    "DigestEntry",
    "DigestField",
    "DigestFieldsDir",
    "DigestRoot",
    "KeyRef",
    "NameSegment",
    "ParsedPath",
    "PathCandidates",
    "PathCodec",
    "RefreshFile",
    "RootDir",
    "sha256_hex",
]

FILE_MARK = b"%"
DIGEST_DIR = b"%long"
REFRESH_FILE = b".updater"
VIEW_SUFFIXES = {b"%json": "json", b"%dump": "dump"}
PATH_MAX = 3000  # bytes from the mount's root; the kernel's 4096 include the mount point

# No byte is written as more than 3, no component adds more than 1, and a cut adds 3 to 250: below this no path is long.
_SAFE_KEY_BYTES = 900


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of a key or field in hex, as `%long` names it."""
    return sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class PathCodec:
    """The names under one separator. Raises UsageError if that is empty."""

    separator: bytes = b":"

    def __post_init__(self) -> None:
        if not self.separator:
            raise UsageError("the separator is empty; give at least one byte, such as ':'")

    # -- keys and components -----------------------------------------------------------------------------------------

    def split_key(self, key: bytes) -> tuple[bytes, ...]:
        """Split a key into its components: at least one, any of them may be empty."""
        return tuple(key.split(self.separator))

    def join_key(self, components: Sequence[bytes]) -> bytes:
        """Join components to a key."""
        return self.separator.join(components)

    def key_prefix(self, directory: Sequence[bytes]) -> bytes:
        """Return what every key in or below a directory starts with."""
        return self.separator.join((*directory, b""))

    # -- written names, uncut ----------------------------------------------------------------------------------------

    def directory_name(self, component: bytes, *, in_root: bool = False) -> bytes:
        """Write a directory's name; `root` if it is in the mount's root, where `.updater` is taken."""
        if in_root and component == REFRESH_FILE:
            return b"%2Eupdater"
        return encode_component(component)

    def key_name(self, component: bytes, *, escape_dots: bool = False, in_root: bool = False) -> bytes:
        """Write a key's name without mark; `dots`: each but a leading one as `%2E` (hashes, shadowed keys)."""
        name = self.directory_name(component, in_root=in_root)
        if escape_dots and b"." in name:
            return name[:1] + name[1:].replace(b".", b"%2E")
        return name

    def field_name(self, component: bytes, field: bytes) -> bytes:
        """Write a field's name without mark: the hash's component, a dot, the field."""
        return self.key_name(component, escape_dots=True) + b"." + encode_field(field)

    def shadowing_field(self, component: bytes) -> tuple[bytes, bytes] | None:
        """Return the hash's component and the field that `key_name(component)` would spell too: they may shadow it."""
        return _parse_field(encode_component(component)) if b"." in component else None

    def shadowing_directory(self, name: bytes) -> bytes | None:
        """Return the directory's component that a file's name spells too: if that exists, the file needs the mark."""
        component = decode_component(name)
        return component if component is not None and self._can_be_directory(component) else None

    def add_file_mark(self, name: bytes) -> bytes:
        """Write `NAME%`; a last dot becomes `%2E`, since `hello.%` is the empty field."""
        if name.endswith(b"."):
            name = name[:-1] + b"%2E"
        return name + FILE_MARK

    def digest_fields_name(self, component: bytes) -> bytes:
        """Write `HASH%long`, the directory of a hash's fields whose own paths would be too long."""
        return self.key_name(component, escape_dots=True) + DIGEST_DIR

    # -- listed names: the one decision about collisions --------------------------------------------------------------

    def listed_key_name(
        self,
        component: bytes,
        *,
        is_hash: bool = False,
        shadowed: bool = False,
        is_directory: bool = False,
        in_root: bool = False,
    ) -> bytes:
        """Write the name under which a key is listed in its directory, uncut.

        `is_hash`: it is listed as one file. `shadowed`: the field of `field_reading(component)` exists.
        `is_directory`: the directory of the same component exists. `root`: it is listed in the mount's root.
        """
        name = self.key_name(component, escape_dots=is_hash or shadowed, in_root=in_root)
        return self.add_file_mark(name) if is_directory else name

    def listed_field_name(self, component: bytes, field: bytes, *, is_directory: bool = False) -> bytes:
        """Write the name under which a field is listed, uncut.

        `is_directory`: the directory of `directory_reading(field_name(component, field))` exists.
        """
        name = self.field_name(component, field)
        return self.add_file_mark(name) if is_directory else name

    # -- paths -------------------------------------------------------------------------------------------------------

    def split_name(self, name: bytes) -> tuple[bytes, ...]:
        """Cut a written name into the names of at most 255 bytes that stand for it."""
        return split_long_name(name)

    def join_path(self, directory: Sequence[bytes], name: bytes) -> bytes:
        """Return the path, from the mount's root and without a leading slash, of a written name in a directory."""
        names = [self.directory_name(component, in_root=depth == 0) for depth, component in enumerate(directory)]
        return b"/".join(piece for part in (*names, name) for piece in split_long_name(part))

    def directory_path(self, directory: Sequence[bytes]) -> bytes:
        """Return the path of a directory; empty for the root."""
        if not directory:
            return b""
        return self.join_path(directory[:-1], self.directory_name(directory[-1], in_root=len(directory) == 1))

    def key_path(
        self, key: bytes, *, is_hash: bool = False, shadowed: bool = False, is_directory: bool = False
    ) -> bytes:
        """Return the listed path of a key; the options are those of `listed_key_name`."""
        if self.key_needs_digest(key):
            return DIGEST_DIR + b"/" + sha256_hex(key).encode()
        *directory, leaf = self.split_key(key)
        root = not directory
        return self.join_path(
            directory,
            self.listed_key_name(leaf, is_hash=is_hash, shadowed=shadowed, is_directory=is_directory, in_root=root),
        )

    def field_path(self, key: bytes, field: bytes, *, is_directory: bool = False) -> bytes:
        """Return the listed path of a field; the option is that of `listed_field_name`."""
        if self.key_needs_digest(key):
            return DIGEST_DIR + b"/" + f"{sha256_hex(key)}.{sha256_hex(field)}".encode()
        *directory, leaf = self.split_key(key)
        if self.field_needs_digest(key, field):
            return self.join_path(directory, self.digest_fields_name(leaf)) + b"/" + sha256_hex(field).encode()
        return self.join_path(directory, self.listed_field_name(leaf, field, is_directory=is_directory))

    def key_needs_digest(self, key: bytes) -> bool:
        """Whether a key is to be found in `%long` only: its path, with the dots written `%2E`, would exceed 3000 bytes.

        With the dots so, because the answer must not change when the key becomes a hash or a field begins to shadow it.
        """
        if len(key) <= _SAFE_KEY_BYTES:
            return False
        if len(key) > PATH_MAX and len(self.separator) == 1:
            return True
        *directory, leaf = self.split_key(key)
        return len(self.join_path(directory, self.key_name(leaf, escape_dots=True, in_root=not directory))) > PATH_MAX

    def field_needs_digest(self, key: bytes, field: bytes) -> bool:
        """Whether a field is to be found by its digest only: its path would exceed 3000 bytes, or its key is long."""
        if len(key) + len(field) <= _SAFE_KEY_BYTES:
            return False
        if len(field) > PATH_MAX or self.key_needs_digest(key):
            return True
        *directory, leaf = self.split_key(key)
        return len(self.join_path(directory, self.field_name(leaf, field))) > PATH_MAX

    # -- reading a path ----------------------------------------------------------------------------------------------

    def parse(self, path: bytes) -> ParsedPath:
        """Return what a path (from the mount's root, with or without its leading slash) may mean.

        Raises NotFoundError for a spelling that no key, field or directory has.
        """
        return _parse_path(self, path.removeprefix(b"/"))

    def parse_new(self, path: bytes) -> PathCandidates:
        """Return what a path may mean that a file or directory is to be made at (or renamed to).

        Raises BadNameError for a spelling that no key has, NameTooLongError if a name or the path is too long.
        """
        try:
            meaning = self.parse(path)
        except NotFoundError:
            raise self.invalid_name_error(path) from None
        if isinstance(meaning, PathCandidates) and meaning.view is None:
            return meaning
        reason = {
            PathCandidates: "is a view of a key, which can't be written",
            NameSegment: "is the beginning of a cut name; it is there when a key with that name is",
            RefreshFile: "starts a rescan; the key of that name is %2Eupdater",
        }.get(type(meaning), "is made by redisfuse itself")
        raise BadNameError(f"{for_terminal(path.removeprefix(b'/'))} {reason}")

    def invalid_name_error(self, path: bytes) -> BadNameError | NameTooLongError:
        """Return the error that says why nothing can be made at a path: its spelling, or its length."""
        path = path.removeprefix(b"/")
        names = path.split(b"/")
        if len(path) > PATH_MAX or any(len(name) > NAME_MAX for name in names):
            return NameTooLongError(
                f"{for_terminal(path[:60])}… is too long: {NAME_MAX} bytes a name, {PATH_MAX} bytes a path (see %+ and %long)"
            )
        for name in names:
            if self.separator in name:
                better = name.replace(self.separator, b"/")
                return BadNameError(
                    f"{for_terminal(name)}: {for_terminal(self.separator)} separates folders in a key; use {for_terminal(better)}"
                )
        return BadNameError(
            f"{for_terminal(path)} is not how a key is written: % begins an escape (%25 is a percent sign)"
        )

    def _can_be_directory(self, component: bytes) -> bool:
        """Whether keys below can be split so: with a separator of several bytes `a:` + `::` + `b` is `a` and `:b`."""
        return (component + self.separator).find(self.separator) == len(component)


def _parse_field(name: bytes) -> tuple[bytes, bytes] | None:
    """Read a written name (no mark, no view) as a hash's component and a field."""
    dot = name.find(b".", 1)
    if dot < 0 or dot + 1 == len(name):
        return None
    component = decode_component(name[:dot])
    field = decode_field(name[dot + 1 :])
    return (component, field) if component is not None and field is not None else None


def _strip_mark_and_view(name: bytes) -> tuple[bytes, bool, str | None]:
    """Take mark and view from a name: return what is left, whether it was marked, and the view."""
    view = VIEW_SUFFIXES.get(name[-5:]) if len(name) > 5 else None
    if view:
        name = name[:-5]
    is_empty_field = name.find(b".", 1) == len(name) - 2
    marked = len(name) > 1 and name.endswith(FILE_MARK) and not is_empty_field
    return (name[:-1] if marked else name), marked, view


def _not_found_error(path: bytes) -> NotFoundError:
    return NotFoundError(f"{for_terminal(path)}: no key is written so")


def _join_segments(path: bytes) -> tuple[list[bytes], bytes | None]:
    """Split a path into written names, each joined from its pieces; and what is left over if the last is a piece."""
    elements = path.split(b"/")
    names = []
    start, begin = b"", 0
    for number, element in enumerate(elements):
        if element.endswith(CONTINUATION):
            if not is_leading_segment(element):
                raise _not_found_error(path)
            start += element[: -len(CONTINUATION)]
        else:
            name = start + element
            if not element or (
                (start or len(name) > NAME_MAX) and split_long_name(name) != tuple(elements[begin : number + 1])
            ):
                raise _not_found_error(path)
            names.append(name)
            start, begin = b"", number + 1
    return names, start or None


def _parse_directory(codec: PathCodec, names: Sequence[bytes], path: bytes) -> tuple[bytes, ...]:
    components = []
    for depth, name in enumerate(names):
        component = codec.shadowing_directory(name)
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
    if dot and view:
        raise _not_found_error(path)
    return DigestEntry(_parse_hex_digest(key, path), _parse_hex_digest(field, path) if dot else None, marked, view)


def _parse_name(codec: PathCodec, directory: tuple[bytes, ...], name: bytes, path: bytes) -> PathCandidates:
    bare, marked, view = _strip_mark_and_view(name)
    component = decode_component(bare)
    as_key = component if component is not None and codec.separator not in component else None
    as_field = _parse_field(bare) if view is None else None
    if as_field and codec.separator in as_field[0]:
        as_field = None
    as_directory = None
    if component is not None and not marked and view is None and codec._can_be_directory(component):
        as_directory = component
    if len(path) > _SAFE_KEY_BYTES:
        if as_key is not None and codec.key_needs_digest(codec.join_key((*directory, as_key))):
            as_key = None
        if as_field and codec.field_needs_digest(codec.join_key((*directory, as_field[0])), as_field[1]):
            as_field = None
        if as_directory is not None and len(codec.directory_path((*directory, as_directory))) > PATH_MAX:
            as_directory = None
    if as_key is None and as_field is None and as_directory is None:
        raise _not_found_error(path)
    return PathCandidates(directory, name, as_directory, as_field, as_key, marked, view)


@lru_cache(maxsize=1024)
def _parse_plain_directory(codec: PathCodec, path: bytes) -> tuple[bytes, ...] | None:
    """The components of a directory's path without a `%`; None for a spelling that no directory has."""
    try:
        names, _start = _join_segments(path)
        return _parse_directory(codec, names, path)
    except NotFoundError:
        return None


@lru_cache(maxsize=8192)  # the kernel asks about one path several times in a row
def _parse_path(codec: PathCodec, path: bytes) -> ParsedPath:
    if not path:
        return RootDir()
    if path == REFRESH_FILE:
        return RefreshFile()
    if b"%" not in path and path.isascii():  # as most are: the same as below, quickly
        above, slash, last = path.rpartition(b"/")
        directory = _parse_plain_directory(codec, above) if slash else ()
        if directory is not None and 0 < len(last) <= NAME_MAX:
            return _parse_name(codec, directory, last, path)
    if path == DIGEST_DIR:
        return DigestRoot()
    if not is_utf8(path):
        raise _not_found_error(path)
    names, start = _join_segments(path)
    if start is not None:
        return NameSegment(_parse_directory(codec, names, path), start)
    name = names[-1]
    if name.endswith(DIGEST_DIR) and len(name) > len(DIGEST_DIR):
        reading = _parse_name(codec, _parse_directory(codec, names[:-1], path), name[: -len(DIGEST_DIR)], path)
        if reading.as_key is None or reading.has_file_mark or reading.view:
            raise _not_found_error(path)
        return DigestFieldsDir(reading.directory, reading.as_key)
    if len(names) == 2 and names[0] == DIGEST_DIR:
        return _parse_digest_entry(name, path)
    if len(names) > 1 and names[-2].endswith(DIGEST_DIR) and names[-2] != DIGEST_DIR:
        parent = _parse_path(codec, path[: -len(name) - 1])
        bare, marked, view = _strip_mark_and_view(name)
        if not isinstance(parent, DigestFieldsDir) or view:
            raise _not_found_error(path)
        return DigestField(parent.directory, parent.component, _parse_hex_digest(bare, path), marked)
    return _parse_name(codec, _parse_directory(codec, names[:-1], path), name, path)

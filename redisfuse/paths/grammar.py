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
    CUT,
    NAME_MAX,
    cut,
    decode_component,
    decode_field,
    encode_component,
    encode_field,
    is_piece,
    is_utf8,
)
from redisfuse.paths.types import (
    LongEntry,
    LongField,
    LongFields,
    LongRoot,
    Meaning,
    Piece,
    Reading,
    Root,
    Target,
    Updater,
)
from redisfuse.text import for_terminal

__all__ = [
    "LONG",
    "MARK",
    "NAME_MAX",
    "PATH_MAX",
    "UPDATER",
    "VIEWS",
    "Grammar",
    "LongEntry",
    "LongField",
    "LongFields",
    "LongRoot",
    "Meaning",
    "Piece",
    "Reading",
    "Root",
    "Target",
    "Updater",
    "digest",
]

MARK = b"%"
LONG = b"%long"
UPDATER = b".updater"
VIEWS = {b"%json": "json", b"%dump": "dump"}
PATH_MAX = 3000  # bytes from the mount's root; the kernel's 4096 include the mount point

# No byte is written as more than 3, no component adds more than 1, and a cut adds 3 to 250: below this no path is long.
_SURELY_SHORT = 900


def digest(data: bytes) -> str:
    """Return the SHA-256 of a key or field in hex, as `%long` names it."""
    return sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Grammar:
    """The names under one separator. Raises UsageError if that is empty."""

    separator: bytes = b":"

    def __post_init__(self) -> None:
        if not self.separator:
            raise UsageError("the separator is empty; give at least one byte, such as ':'")

    # -- keys and components -----------------------------------------------------------------------------------------

    def split(self, key: bytes) -> tuple[bytes, ...]:
        """Split a key into its components: at least one, any of them may be empty."""
        return tuple(key.split(self.separator))

    def join(self, components: Sequence[bytes]) -> bytes:
        """Join components to a key."""
        return self.separator.join(components)

    def prefix(self, directory: Sequence[bytes]) -> bytes:
        """Return what every key in or below a directory starts with."""
        return self.separator.join((*directory, b""))

    # -- written names, uncut ----------------------------------------------------------------------------------------

    def directory_name(self, component: bytes, *, root: bool = False) -> bytes:
        """Write a directory's name; `root` if it is in the mount's root, where `.updater` is taken."""
        if root and component == UPDATER:
            return b"%2Eupdater"
        return encode_component(component)

    def key_name(self, component: bytes, *, dots: bool = False, root: bool = False) -> bytes:
        """Write a key's name without mark; `dots`: each but a leading one as `%2E` (hashes, shadowed keys)."""
        name = self.directory_name(component, root=root)
        if dots and b"." in name:
            return name[:1] + name[1:].replace(b".", b"%2E")
        return name

    def field_name(self, component: bytes, field: bytes) -> bytes:
        """Write a field's name without mark: the hash's component, a dot, the field."""
        return self.key_name(component, dots=True) + b"." + encode_field(field)

    def field_reading(self, component: bytes) -> tuple[bytes, bytes] | None:
        """Return the hash's component and the field that `key_name(component)` would spell too: they may shadow it."""
        return _field(encode_component(component)) if b"." in component else None

    def directory_reading(self, name: bytes) -> bytes | None:
        """Return the directory's component that a file's name spells too: if that exists, the file needs the mark."""
        component = decode_component(name)
        return component if component is not None and self._can_be_directory(component) else None

    def mark(self, name: bytes) -> bytes:
        """Write `NAME%`; a last dot becomes `%2E`, since `hello.%` is the empty field."""
        if name.endswith(b"."):
            name = name[:-1] + b"%2E"
        return name + MARK

    def long_fields_name(self, component: bytes) -> bytes:
        """Write `HASH%long`, the directory of a hash's fields whose own paths would be too long."""
        return self.key_name(component, dots=True) + LONG

    # -- listed names: the one decision about collisions --------------------------------------------------------------

    def listed_key(
        self,
        component: bytes,
        *,
        is_hash: bool = False,
        shadowed: bool = False,
        is_directory: bool = False,
        root: bool = False,
    ) -> bytes:
        """Write the name under which a key is listed in its directory, uncut.

        `is_hash`: it is listed as one file. `shadowed`: the field of `field_reading(component)` exists.
        `is_directory`: the directory of the same component exists. `root`: it is listed in the mount's root.
        """
        name = self.key_name(component, dots=is_hash or shadowed, root=root)
        return self.mark(name) if is_directory else name

    def listed_field(self, component: bytes, field: bytes, *, is_directory: bool = False) -> bytes:
        """Write the name under which a field is listed, uncut.

        `is_directory`: the directory of `directory_reading(field_name(component, field))` exists.
        """
        name = self.field_name(component, field)
        return self.mark(name) if is_directory else name

    # -- paths -------------------------------------------------------------------------------------------------------

    def pieces(self, name: bytes) -> tuple[bytes, ...]:
        """Cut a written name into the names of at most 255 bytes that stand for it."""
        return cut(name)

    def path(self, directory: Sequence[bytes], name: bytes) -> bytes:
        """Return the path, from the mount's root and without a leading slash, of a written name in a directory."""
        names = [self.directory_name(component, root=depth == 0) for depth, component in enumerate(directory)]
        return b"/".join(piece for part in (*names, name) for piece in cut(part))

    def directory_path(self, directory: Sequence[bytes]) -> bytes:
        """Return the path of a directory; empty for the root."""
        if not directory:
            return b""
        return self.path(directory[:-1], self.directory_name(directory[-1], root=len(directory) == 1))

    def key_path(
        self, key: bytes, *, is_hash: bool = False, shadowed: bool = False, is_directory: bool = False
    ) -> bytes:
        """Return the listed path of a key; the options are those of `listed_key`."""
        if self.key_is_long(key):
            return LONG + b"/" + digest(key).encode()
        *directory, leaf = self.split(key)
        root = not directory
        return self.path(
            directory, self.listed_key(leaf, is_hash=is_hash, shadowed=shadowed, is_directory=is_directory, root=root)
        )

    def field_path(self, key: bytes, field: bytes, *, is_directory: bool = False) -> bytes:
        """Return the listed path of a field; the option is that of `listed_field`."""
        if self.key_is_long(key):
            return LONG + b"/" + f"{digest(key)}.{digest(field)}".encode()
        *directory, leaf = self.split(key)
        if self.field_is_long(key, field):
            return self.path(directory, self.long_fields_name(leaf)) + b"/" + digest(field).encode()
        return self.path(directory, self.listed_field(leaf, field, is_directory=is_directory))

    def key_is_long(self, key: bytes) -> bool:
        """Whether a key is to be found in `%long` only: its path, with the dots written `%2E`, would exceed 3000 bytes.

        With the dots so, because the answer must not change when the key becomes a hash or a field begins to shadow it.
        """
        if len(key) <= _SURELY_SHORT:
            return False
        if len(key) > PATH_MAX and len(self.separator) == 1:
            return True
        *directory, leaf = self.split(key)
        return len(self.path(directory, self.key_name(leaf, dots=True, root=not directory))) > PATH_MAX

    def field_is_long(self, key: bytes, field: bytes) -> bool:
        """Whether a field is to be found by its digest only: its path would exceed 3000 bytes, or its key is long."""
        if len(key) + len(field) <= _SURELY_SHORT:
            return False
        if len(field) > PATH_MAX or self.key_is_long(key):
            return True
        *directory, leaf = self.split(key)
        return len(self.path(directory, self.field_name(leaf, field))) > PATH_MAX

    # -- reading a path ----------------------------------------------------------------------------------------------

    def parse(self, path: bytes) -> Meaning:
        """Return what a path (from the mount's root, with or without its leading slash) may mean.

        Raises NotFoundError for a spelling that no key, field or directory has.
        """
        return _parse(self, path.removeprefix(b"/"))

    def creatable(self, path: bytes) -> Reading:
        """Return what a path may mean that a file or directory is to be made at (or renamed to).

        Raises BadNameError for a spelling that no key has, NameTooLongError if a name or the path is too long.
        """
        try:
            meaning = self.parse(path)
        except NotFoundError:
            raise self.refusal(path) from None
        if isinstance(meaning, Reading) and meaning.view is None:
            return meaning
        reason = {
            Reading: "is a view of a key, which can't be written",
            Piece: "is the beginning of a cut name; it is there when a key with that name is",
            Updater: "starts a rescan; the key of that name is %2Eupdater",
        }.get(type(meaning), "is made by redisfuse itself")
        raise BadNameError(f"{for_terminal(path.removeprefix(b'/'))} {reason}")

    def refusal(self, path: bytes) -> BadNameError | NameTooLongError:
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


def _field(name: bytes) -> tuple[bytes, bytes] | None:
    """Read a written name (no mark, no view) as a hash's component and a field."""
    dot = name.find(b".", 1)
    if dot < 0 or dot + 1 == len(name):
        return None
    component = decode_component(name[:dot])
    field = decode_field(name[dot + 1 :])
    return (component, field) if component is not None and field is not None else None


def _bare(name: bytes) -> tuple[bytes, bool, str | None]:
    """Take mark and view from a name: return what is left, whether it was marked, and the view."""
    view = VIEWS.get(name[-5:]) if len(name) > 5 else None
    if view:
        name = name[:-5]
    is_empty_field = name.find(b".", 1) == len(name) - 2
    marked = len(name) > 1 and name.endswith(MARK) and not is_empty_field
    return (name[:-1] if marked else name), marked, view


def _not_found(path: bytes) -> NotFoundError:
    return NotFoundError(f"{for_terminal(path)}: no key is written so")


def _uncut(path: bytes) -> tuple[list[bytes], bytes | None]:
    """Split a path into written names, each joined from its pieces; and what is left over if the last is a piece."""
    elements = path.split(b"/")
    names = []
    start, begin = b"", 0
    for number, element in enumerate(elements):
        if element.endswith(CUT):
            if not is_piece(element):
                raise _not_found(path)
            start += element[: -len(CUT)]
        else:
            name = start + element
            if not element or ((start or len(name) > NAME_MAX) and cut(name) != tuple(elements[begin : number + 1])):
                raise _not_found(path)
            names.append(name)
            start, begin = b"", number + 1
    return names, start or None


def _directory(grammar: Grammar, names: Sequence[bytes], path: bytes) -> tuple[bytes, ...]:
    components = []
    for depth, name in enumerate(names):
        component = grammar.directory_reading(name)
        if component is None or (depth == 0 and name == UPDATER):
            raise _not_found(path)
        components.append(component)
    return tuple(components)


def _hex_digest(name: bytes, path: bytes) -> str:
    if len(name) != 64 or name.strip(b"0123456789abcdef"):
        raise _not_found(path)
    return name.decode()


def _long_entry(name: bytes, path: bytes) -> LongEntry:
    bare, marked, view = _bare(name)
    key, dot, field = bare.partition(b".")
    if dot and view:
        raise _not_found(path)
    return LongEntry(_hex_digest(key, path), _hex_digest(field, path) if dot else None, marked, view)


def _reading(grammar: Grammar, directory: tuple[bytes, ...], name: bytes, path: bytes) -> Reading:
    bare, marked, view = _bare(name)
    component = decode_component(bare)
    as_key = component if component is not None and grammar.separator not in component else None
    as_field = _field(bare) if view is None else None
    if as_field and grammar.separator in as_field[0]:
        as_field = None
    as_directory = None
    if component is not None and not marked and view is None and grammar._can_be_directory(component):
        as_directory = component
    if len(path) > _SURELY_SHORT:
        if as_key is not None and grammar.key_is_long(grammar.join((*directory, as_key))):
            as_key = None
        if as_field and grammar.field_is_long(grammar.join((*directory, as_field[0])), as_field[1]):
            as_field = None
        if as_directory is not None and len(grammar.directory_path((*directory, as_directory))) > PATH_MAX:
            as_directory = None
    if as_key is None and as_field is None and as_directory is None:
        raise _not_found(path)
    return Reading(directory, name, as_directory, as_field, as_key, marked, view)


@lru_cache(maxsize=1024)
def _plain_directory(grammar: Grammar, path: bytes) -> tuple[bytes, ...] | None:
    """The components of a directory's path without a `%`; None for a spelling that no directory has."""
    try:
        names, _start = _uncut(path)
        return _directory(grammar, names, path)
    except NotFoundError:
        return None


@lru_cache(maxsize=8192)  # the kernel asks about one path several times in a row
def _parse(grammar: Grammar, path: bytes) -> Meaning:
    if not path:
        return Root()
    if path == UPDATER:
        return Updater()
    if b"%" not in path and path.isascii():  # as most are: the same as below, quickly
        above, slash, last = path.rpartition(b"/")
        directory = _plain_directory(grammar, above) if slash else ()
        if directory is not None and 0 < len(last) <= NAME_MAX:
            return _reading(grammar, directory, last, path)
    if path == LONG:
        return LongRoot()
    if not is_utf8(path):
        raise _not_found(path)
    names, start = _uncut(path)
    if start is not None:
        return Piece(_directory(grammar, names, path), start)
    name = names[-1]
    if name.endswith(LONG) and len(name) > len(LONG):
        reading = _reading(grammar, _directory(grammar, names[:-1], path), name[: -len(LONG)], path)
        if reading.as_key is None or reading.marked or reading.view:
            raise _not_found(path)
        return LongFields(reading.directory, reading.as_key)
    if len(names) == 2 and names[0] == LONG:
        return _long_entry(name, path)
    if len(names) > 1 and names[-2].endswith(LONG) and names[-2] != LONG:
        parent = _parse(grammar, path[: -len(name) - 1])
        bare, marked, view = _bare(name)
        if not isinstance(parent, LongFields) or view:
            raise _not_found(path)
        return LongField(parent.directory, parent.component, _hex_digest(bare, path), marked)
    return _reading(grammar, _directory(grammar, names[:-1], path), name, path)

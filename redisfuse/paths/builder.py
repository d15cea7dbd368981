"""Key to path: the names of keys, fields and directories. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from redisfuse.errors import UsageError
from redisfuse.paths.encoding import (
    CONTINUATION,
    decode_component,
    decode_field,
    encode_component,
    encode_field,
    split_long_name,
)

FILE_MARK = b"%"
DIGEST_DIR = b"%long"
REFRESH_FILE = b".updater"
VIEW_SUFFIXES = {b"%json": "json", b"%dump": "dump", b"%text": "text"}
FIELD_VIEWS = frozenset(("text",))
"""The views that a hash field has, too."""
PATH_MAX = 3000  # bytes from the mount's root; the kernel's 4096 include the mount point

SHORT_KEY_BYTES = 900
"""No path of a shorter key can exceed PATH_MAX: a byte is written as at most 3 bytes, a component adds at most 1, and
a cut adds 3 bytes to each 250."""


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of a key or field in hex, as `%long` names it."""
    return sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class PathBuilder:
    """The names and paths of keys under one separator.

    Raises UsageError if the separator is empty.
    """

    separator: bytes = b":"

    def __post_init__(self) -> None:
        if not self.separator:
            raise UsageError("the separator is empty; give at least one byte, such as ':'")

    # -- keys and components -----------------------------------------------------------------------------------------

    def split_key(self, key: bytes) -> tuple[bytes, ...]:
        """Split a key into its components: at least one; each may be empty."""
        return tuple(key.split(self.separator))

    def join_key(self, components: Sequence[bytes]) -> bytes:
        """Join components to a key."""
        return self.separator.join(components)

    def key_prefix(self, directory: Sequence[bytes]) -> bytes:
        """Return the prefix of all keys in or below a directory."""
        return self.separator.join((*directory, b""))

    # -- names before they are cut -----------------------------------------------------------------------------------

    def directory_name(self, component: bytes, *, in_root: bool = False) -> bytes:
        """Return a directory's name; in the mount's root `.updater` is reserved."""
        if in_root and component == REFRESH_FILE:
            return b"%2Eupdater"
        return encode_component(component)

    def key_name(self, component: bytes, *, escape_dots: bool = False, in_root: bool = False) -> bytes:
        """Return a key's name without the file mark.

        `escape_dots`: write each dot except a leading one as `%2E` (hashes, shadowed keys).
        """
        name = self.directory_name(component, in_root=in_root)
        if escape_dots and b"." in name:
            return name[:1] + name[1:].replace(b".", b"%2E")
        return name

    def field_name(self, component: bytes, field: bytes) -> bytes:
        """Return a field's name without the file mark: hash component, dot, field."""
        return self.key_name(component, escape_dots=True) + b"." + encode_field(field)

    def shadowing_field(self, component: bytes) -> tuple[bytes, bytes] | None:
        """Return the (hash component, field) that has the same name as a key.

        That field shadows the key if it exists.
        """
        return parse_field_name(encode_component(component)) if b"." in component else None

    def shadowing_directory(self, name: bytes) -> bytes | None:
        """Return the directory component that a file's name also spells.

        If that directory exists, the file needs the mark.
        """
        component = decode_component(name)
        return component if component is not None and self.can_be_directory(component) else None

    def add_file_mark(self, name: bytes) -> bytes:
        """Return `NAME%`.

        A trailing dot becomes `%2E`, because `hello.%` is the empty field.
        """
        if name.endswith(b"."):
            name = name[:-1] + b"%2E"
        return name + FILE_MARK

    def digest_fields_name(self, component: bytes) -> bytes:
        """Return `HASH%long`, the directory of fields whose paths exceed PATH_MAX."""
        return self.key_name(component, escape_dots=True) + DIGEST_DIR

    # -- listed names: collisions are resolved here -------------------------------------------------------------------

    def listed_key_name(
        self,
        component: bytes,
        *,
        is_hash: bool = False,
        shadowed: bool = False,
        is_directory: bool = False,
        in_root: bool = False,
    ) -> bytes:
        """Return the name under which a key is listed in its directory, before it is cut.

        `is_hash`: the key is a hash that is listed as one file.
        `shadowed`: the field of `shadowing_field(component)` exists.
        `is_directory`: a directory of the same component exists.
        `in_root`: the key is listed in the mount's root.
        """
        name = self.key_name(component, escape_dots=is_hash or shadowed, in_root=in_root)
        return self.add_file_mark(name) if is_directory else name

    def listed_field_name(self, component: bytes, field: bytes, *, is_directory: bool = False) -> bytes:
        """Return the name under which a field is listed, before it is cut.

        `is_directory`: the directory of `shadowing_directory(field_name(component, field))` exists.
        """
        name = self.field_name(component, field)
        return self.add_file_mark(name) if is_directory else name

    # -- paths -------------------------------------------------------------------------------------------------------

    def split_name(self, name: bytes) -> tuple[bytes, ...]:
        """Cut an encoded name into path elements of at most 255 bytes."""
        return split_long_name(name)

    def join_path(self, directory: Sequence[bytes], name: bytes) -> bytes:
        """Return the path of an encoded name in a directory, without leading slash."""
        names = [self.directory_name(component, in_root=depth == 0) for depth, component in enumerate(directory)]
        return b"/".join(segment for whole in (*names, name) for segment in split_long_name(whole))

    def view_path(self, path: bytes, view: str) -> bytes:
        """Return the path of a view of the file at `path`."""
        folders = path.split(b"/")
        name = folders.pop()
        while folders and folders[-1].endswith(CONTINUATION):
            name = folders.pop()[: -len(CONTINUATION)] + name
        return b"/".join((*folders, *split_long_name(name + FILE_MARK + view.encode())))

    def directory_path(self, directory: Sequence[bytes]) -> bytes:
        """Return the path of a directory; empty for the root."""
        if not directory:
            return b""
        return self.join_path(directory[:-1], self.directory_name(directory[-1], in_root=len(directory) == 1))

    def key_path(
        self, key: bytes, *, is_hash: bool = False, shadowed: bool = False, is_directory: bool = False
    ) -> bytes:
        """Return the path under which a key is listed.

        The options are those of `listed_key_name`.
        """
        if self.key_needs_digest(key):
            return DIGEST_DIR + b"/" + sha256_hex(key).encode()
        *directory, leaf = self.split_key(key)
        name = self.listed_key_name(
            leaf, is_hash=is_hash, shadowed=shadowed, is_directory=is_directory, in_root=not directory
        )
        return self.join_path(directory, name)

    def field_path(self, key: bytes, field: bytes, *, is_directory: bool = False) -> bytes:
        """Return the path under which a field is listed.

        The option is that of `listed_field_name`.
        """
        if self.key_needs_digest(key):
            return DIGEST_DIR + b"/" + f"{sha256_hex(key)}.{sha256_hex(field)}".encode()
        *directory, leaf = self.split_key(key)
        if self.field_needs_digest(key, field):
            return self.join_path(directory, self.digest_fields_name(leaf)) + b"/" + sha256_hex(field).encode()
        return self.join_path(directory, self.listed_field_name(leaf, field, is_directory=is_directory))

    def key_needs_digest(self, key: bytes) -> bool:
        """Return whether a key is listed in `%long` only.

        It is if its path, with dots written as `%2E`, would exceed PATH_MAX. The dots are counted so because the
        result must not change when the key becomes a hash or a field begins to shadow it.
        """
        if len(key) <= SHORT_KEY_BYTES:
            return False
        if len(key) > PATH_MAX and len(self.separator) == 1:
            return True
        *directory, leaf = self.split_key(key)
        return len(self.join_path(directory, self.key_name(leaf, escape_dots=True, in_root=not directory))) > PATH_MAX

    def field_needs_digest(self, key: bytes, field: bytes) -> bool:
        """Return whether a field is listed by its digest only.

        It is if its path would exceed PATH_MAX, or if its key is listed in `%long`.
        """
        if len(key) + len(field) <= SHORT_KEY_BYTES:
            return False
        if len(field) > PATH_MAX or self.key_needs_digest(key):
            return True
        *directory, leaf = self.split_key(key)
        return len(self.join_path(directory, self.field_name(leaf, field))) > PATH_MAX

    def can_be_directory(self, component: bytes) -> bool:
        """Return whether a key below `component` splits at it.

        With the separator `::`, `a:` + `::` + `b` splits into `a` and `:b`.
        """
        return (component + self.separator).find(self.separator) == len(component)


def parse_field_name(name: bytes) -> tuple[bytes, bytes] | None:
    """Split an encoded name into a hash's component and a field.

    The name has neither mark nor view. Returns None if it is not a field's name.
    """
    dot = name.find(b".", 1)
    if dot < 0 or dot + 1 == len(name):
        return None
    component = decode_component(name[:dot])
    field = decode_field(name[dot + 1 :])
    return (component, field) if component is not None and field is not None else None

"""The results of parsing a path, as frozen values.

Import them from `paths/grammar.py`.
"""

from dataclasses import dataclass
from typing import NamedTuple


class KeyRef(NamedTuple):
    """A value that can be read or written: a key, or one field of a hash.

    With `field` it is that field of the hash at `key`.
    """

    key: bytes
    field: bytes | None = None


@dataclass(frozen=True, slots=True)
class RootDir:
    """The mount's root."""


@dataclass(frozen=True, slots=True)
class RefreshFile:
    """`.updater` at the root: touching it starts a rescan."""


class PathCandidates(NamedTuple):
    """The possible meanings of one path.

    The caller tries them in this order: directory, field, key.
    """

    directory: tuple[bytes, ...]
    """components of the parent directory"""
    name: bytes
    """the last name, still encoded, its segments joined"""
    as_directory: bytes | None = None
    """the component, if the name can be a directory (it has neither mark nor view)"""
    as_field: tuple[bytes, bytes] | None = None
    """the hash's component and the field, if the name can be a field"""
    as_key: bytes | None = None
    """the component, if the name can be a key"""
    has_file_mark: bool = False
    """`NAME%`: a file, even where a directory has that name"""
    view: str | None = None
    """"json", "dump" or "text": a view of the key; a field has "text" only"""


@dataclass(frozen=True, slots=True)
class NameSegment:
    """The beginning of a cut name.

    It is a directory if an encoded name in `directory` begins with `prefix`.
    """

    directory: tuple[bytes, ...]
    prefix: bytes


@dataclass(frozen=True, slots=True)
class DigestRoot:
    """`%long` at the root: the keys whose path would exceed PATH_MAX."""


@dataclass(frozen=True, slots=True)
class DigestEntry:
    """`%long/…`: such a key, or one of its fields, by its SHA-256 in hex."""

    key_digest: str
    field_digest: str | None = None
    has_file_mark: bool = False
    view: str | None = None


@dataclass(frozen=True, slots=True)
class DigestFieldsDir:
    """`HASH%long`: the fields whose paths would exceed PATH_MAX.

    The path of the hash itself does not exceed it.
    """

    directory: tuple[bytes, ...]
    component: bytes


@dataclass(frozen=True, slots=True)
class DigestField:
    """`HASH%long/…`: one of these fields, by its SHA-256 in hex."""

    directory: tuple[bytes, ...]
    component: bytes
    digest: str
    has_file_mark: bool = False
    view: str | None = None


ParsedPath = (
    RootDir | RefreshFile | PathCandidates | NameSegment | DigestRoot | DigestEntry | DigestFieldsDir | DigestField
)

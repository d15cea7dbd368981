"""What a path may mean: the frozen values that `paths/grammar.py` reads paths into. Import them from there."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class KeyRef:
    """One datum that can be read or written: a key, or (field not None) one field of the hash at that key."""

    key: bytes
    field: bytes | None = None


@dataclass(frozen=True, slots=True)
class RootDir:
    """The mount's root."""


@dataclass(frozen=True, slots=True)
class RefreshFile:
    """`.updater` at the root: touching it starts a rescan."""


class PathCandidates(NamedTuple):
    """What one path may mean, in the order in which it is to be tried: directory, field, key."""

    directory: tuple[bytes, ...]
    """components of the parent directory"""
    name: bytes
    """the last name as written, its pieces joined"""
    as_directory: bytes | None = None
    """the component, if the name can be a directory (it has neither mark nor view)"""
    as_field: tuple[bytes, bytes] | None = None
    """the hash's component and the field, if the name can be a field"""
    as_key: bytes | None = None
    """the component, if the name can be a key"""
    has_file_mark: bool = False
    """`NAME%`: a file, even where a directory has that name"""
    view: str | None = None
    """"json" or "dump": a view of the key"""

    @property
    def dotted(self) -> bool:
        """Whether there is a field dot, so that a field of this spelling wins over a key."""
        return self.as_field is not None


@dataclass(frozen=True, slots=True)
class NameSegment:
    """The beginning of a cut name: a directory, if the written form of a name in `directory` starts so."""

    directory: tuple[bytes, ...]
    prefix: bytes


@dataclass(frozen=True, slots=True)
class DigestRoot:
    """`%long` at the root: the keys whose own path would be too long."""


@dataclass(frozen=True, slots=True)
class DigestEntry:
    """`%long/…`: such a key, or one of its fields, by SHA-256 in hex."""

    key_digest: str
    field_digest: str | None = None
    has_file_mark: bool = False
    view: str | None = None


@dataclass(frozen=True, slots=True)
class DigestFieldsDir:
    """`HASH%long`: the fields of a hash, itself not long, whose own paths would be too long."""

    directory: tuple[bytes, ...]
    component: bytes


@dataclass(frozen=True, slots=True)
class DigestField:
    """`HASH%long/…`: one of them, by SHA-256 in hex."""

    directory: tuple[bytes, ...]
    component: bytes
    digest: str
    has_file_mark: bool = False


ParsedPath = (
    RootDir | RefreshFile | PathCandidates | NameSegment | DigestRoot | DigestEntry | DigestFieldsDir | DigestField
)

"""What a path may mean: the frozen values that `paths/grammar.py` reads paths into. Import them from there."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Target:
    """One datum that can be read or written: a key, or (field not None) one field of the hash at that key."""

    key: bytes
    field: bytes | None = None


@dataclass(frozen=True, slots=True)
class Root:
    """The mount's root."""


@dataclass(frozen=True, slots=True)
class Updater:
    """`.updater` at the root: touching it starts a rescan."""


class Reading(NamedTuple):
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
    marked: bool = False
    """`NAME%`: a file, even where a directory has that name"""
    view: str | None = None
    """"json" or "dump": a view of the key"""

    @property
    def dotted(self) -> bool:
        """Whether there is a field dot, so that a field of this spelling wins over a key."""
        return self.as_field is not None


@dataclass(frozen=True, slots=True)
class Piece:
    """The beginning of a cut name: a directory, if the written form of a name in `directory` starts so."""

    directory: tuple[bytes, ...]
    start: bytes


@dataclass(frozen=True, slots=True)
class LongRoot:
    """`%long` at the root: the keys whose own path would be too long."""


@dataclass(frozen=True, slots=True)
class LongEntry:
    """`%long/…`: such a key, or one of its fields, by SHA-256 in hex."""

    key_digest: str
    field_digest: str | None = None
    marked: bool = False
    view: str | None = None


@dataclass(frozen=True, slots=True)
class LongFields:
    """`HASH%long`: the fields of a hash, itself not long, whose own paths would be too long."""

    directory: tuple[bytes, ...]
    component: bytes


@dataclass(frozen=True, slots=True)
class LongField:
    """`HASH%long/…`: one of them, by SHA-256 in hex."""

    directory: tuple[bytes, ...]
    component: bytes
    digest: str
    marked: bool = False


Meaning = Root | Updater | Reading | Piece | LongRoot | LongEntry | LongFields | LongField

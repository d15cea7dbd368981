"""What a path of the mount can turn out to be. Plain values; who made them has already asked the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from redisfuse.paths.grammar import KeyRef

if TYPE_CHECKING:
    from redisfuse.vfs.open_files import OpenFile

FIELD_TYPE = b"field"  # the `type` of a hash field, which Redis has no word for
EDITABLE_TYPES = frozenset((b"string", FIELD_TYPE))


@dataclass(frozen=True, slots=True)
class DirectoryNode:
    """A directory of keys: the components above its children; `()` is the root."""

    directory: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SegmentNode:
    """A directory that is the first part of names too long for one (NAMES.md)."""

    directory: tuple[bytes, ...]
    name_prefix: bytes  # what the pieces so far spell


@dataclass(frozen=True, slots=True)
class DigestRootNode:
    """`%long`: the keys whose path would be too long, by digest."""


@dataclass(frozen=True, slots=True)
class DigestFieldsNode:
    """`HASH%long`: the fields of one hash whose own path would be too long, by digest."""

    directory: tuple[bytes, ...]
    component: bytes
    key: bytes


class KeyNode(NamedTuple):
    """A key, a field or a view of a key, as the server last described it."""

    target: KeyRef
    type: bytes  # Redis's word; FIELD_TYPE for a hash field
    length: int  # bytes of a string or field, elements of a collection
    view: str | None = None  # "json" or "dump"
    version: int = 0  # what `KeyspaceMonitor.change_count` was before the server described it; only in listings

    @property
    def is_plain(self) -> bool:
        """Whether it is a string as it is in Redis: its size is its length, and nothing is rendered."""
        return self.type == b"string" and self.view is None

    @property
    def is_editable(self) -> bool:
        """Whether its bytes can be edited as they are."""
        return self.view is None and self.type in EDITABLE_TYPES


@dataclass(frozen=True, slots=True)
class OpenFileNode:
    """A file that is open for editing, new and not yet in Redis, or unlinked while open: its bytes are here."""

    file: OpenFile


@dataclass(frozen=True, slots=True)
class MemoryNode:
    """Junk: a file or directory of the scratch area."""

    path: bytes
    is_directory: bool


@dataclass(frozen=True, slots=True)
class RefreshNode:
    """`/.updater`: looking at it starts a rescan."""


TreeNode = (
    DirectoryNode | SegmentNode | DigestRootNode | DigestFieldsNode | KeyNode | OpenFileNode | MemoryNode | RefreshNode
)
DIRECTORY_NODE_TYPES = (DirectoryNode, SegmentNode, DigestRootNode, DigestFieldsNode)


class NamedNode(NamedTuple):
    """One name of a listing."""

    name: bytes
    node: TreeNode

"""The kinds of nodes that a path can resolve to.

They are plain values, without a connection to the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from redisfuse.errors import AccessError, NotFoundError
from redisfuse.paths.grammar import KeyRef

if TYPE_CHECKING:
    from redisfuse.vfs.open_file import OpenFile

FIELD_TYPE = b"field"  # the `type` of a hash field, for which Redis has no type name
EDITABLE_TYPES = frozenset((b"string", FIELD_TYPE))


@dataclass(frozen=True, slots=True)
class DirectoryNode:
    """A directory of keys: the components above its children; `()` is the root."""

    directory: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SegmentNode:
    """A directory whose name is the first part of names over NAME_MAX.

    See docs/names.md.
    """

    directory: tuple[bytes, ...]
    name_prefix: bytes  # the segments so far, joined


@dataclass(frozen=True, slots=True)
class DigestRootNode:
    """`%long`: the keys whose path would be longer than PATH_MAX, by digest."""


@dataclass(frozen=True, slots=True)
class DigestFieldsNode:
    """`HASH%long`: the fields of a hash with a path over PATH_MAX, by digest."""

    directory: tuple[bytes, ...]
    component: bytes
    key: bytes


class KeyNode(NamedTuple):
    """A key, a field or a view of a key, with its last fetched metadata."""

    target: KeyRef
    type: bytes  # the reply of TYPE; FIELD_TYPE for a hash field
    length: int  # bytes of a string or field, elements of a collection
    view: str | None = None  # "json", "dump" or "text"
    version: int = 0  # `KeyspaceMonitor.get_version` before the metadata was fetched; only in listings
    listed_at: int = 0  # `KeyspaceMonitor.changed_at` of its directory before that was listed; only in listings

    @property
    def is_plain(self) -> bool:
        """Whether it is a string shown unrendered, so that its size is its length."""
        return self.type == b"string" and self.view is None

    @property
    def is_collection(self) -> bool:
        """Whether it has elements, or a module's type."""
        return self.type not in EDITABLE_TYPES

    @property
    def is_editable(self) -> bool:
        """Whether its bytes can be edited directly."""
        return self.view is None and self.type in EDITABLE_TYPES


@dataclass(frozen=True, slots=True)
class OpenFileNode:
    """A file whose bytes this mount holds.

    It is open for editing, new and not yet in Redis, or unlinked while open.
    """

    file: OpenFile


@dataclass(frozen=True, slots=True)
class MemoryNode:
    """Junk: a file or directory of the memory filesystem."""

    path: bytes
    is_directory: bool


@dataclass(frozen=True, slots=True)
class RefreshNode:
    """`/.updater`: a look-up of it starts a rescan."""


TreeNode = (
    DirectoryNode | SegmentNode | DigestRootNode | DigestFieldsNode | KeyNode | OpenFileNode | MemoryNode | RefreshNode
)
DIRECTORY_NODE_TYPES = (DirectoryNode, SegmentNode, DigestRootNode, DigestFieldsNode)


class NamedNode(NamedTuple):
    """One entry of a directory listing."""

    name: bytes
    node: TreeNode


def is_editable_node(node: KeyNode | OpenFileNode) -> bool:
    """Return whether the bytes of a file can be edited."""
    return isinstance(node, OpenFileNode) or node.is_editable


def require_target(node: TreeNode) -> KeyRef:
    """Return the key or field of a file.

    Raises NotFoundError for an unlinked file, AccessError for a node that is neither a key nor a field.
    """
    if isinstance(node, KeyNode) and node.view is None:
        return node.target
    if isinstance(node, OpenFileNode) and node.file.target is not None:
        return node.file.target
    if isinstance(node, OpenFileNode):
        raise NotFoundError("the file was unlinked")
    raise AccessError("the path is neither a key nor a field")

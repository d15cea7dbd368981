"""Directory listings as the kernel gets them: names with types, and attributes of plain strings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from redisfuse.mount.attributes import AttributeBuilder, inode_number
from redisfuse.paths.grammar import FILE_MARK
from redisfuse.vfs.coherence import Coherence
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.inodes import Inode
from redisfuse.vfs.nodes import DIRECTORY_NODE_TYPES, DirectoryNode, KeyNode, MemoryNode, TreeNode
from redisfuse.vfs.readdir_cache import ReaddirCache


class ReaddirItem(NamedTuple):
    """One name of a directory listing."""

    name: bytes
    mode: int
    inode_number: int
    node: KeyNode | None  # of a string: its attributes go to the kernel with its name


class DirectoryLister:
    """Lists directories. Thread-safe."""

    def __init__(self, filesystem: Filesystem, attributes: AttributeBuilder, coherence: Coherence) -> None:
        self._filesystem = filesystem
        self._attributes = attributes
        self._coherence = coherence
        self.cache: ReaddirCache[ReaddirItem] = ReaddirCache(filesystem.grammar.split_key)

    def iter_listing(self, path: bytes, node: TreeNode) -> Iterator[ReaddirItem]:
        """Yield the names of a directory, cached if they come from Redis alone."""
        # In write mode files in memory and open files are listed too.
        if self._filesystem.overlay is None and isinstance(node, DirectoryNode) and self._coherence.is_coherent:
            return self.cache.get_or_build(node.directory, lambda: self._iter_names(path, node))
        return self._iter_names(path, node)

    def _iter_names(self, path: bytes, node: TreeNode) -> Iterator[ReaddirItem]:
        base = path + b"/" if path else b""
        string_mode = self._attributes.string_mode
        for name, child in self._filesystem.readdir(path, node):
            if type(child) is KeyNode and child.is_plain and not name.endswith(FILE_MARK):
                yield ReaddirItem(name, string_mode, inode_number(base + name), child)
            else:
                # These get attributes only on request: a collection's size is that of its rendering, too expensive for
                # a plain `ls`, and a marked name (`user%`) is invalidated only if it was looked up.
                mode = self._attributes.directory_mode if is_directory_node(child) else string_mode
                yield ReaddirItem(name, mode, inode_number(base + name), None)


@dataclass(frozen=True, slots=True)
class DirectoryListing:
    """An open directory, which each iteration lists again, under the path that it has then."""

    lister: DirectoryLister
    inode: Inode
    node: TreeNode

    def __iter__(self) -> Iterator[ReaddirItem]:
        return self.lister.iter_listing(self.inode.path, self.node)


def is_directory_node(node: TreeNode) -> bool:
    """Return whether a node is a directory, of keys or of the memory filesystem."""
    return isinstance(node, DIRECTORY_NODE_TYPES) or (isinstance(node, MemoryNode) and node.is_directory)

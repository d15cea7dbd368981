"""Directory listings as the kernel gets them.

They are names with types, and attributes of plain strings.

Threads: any. The lock guards the table of open directories; nothing is called under it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from redisfuse.errors import BadHandleError, NotDirectoryError, NotFoundError
from redisfuse.fuse.interface import EntryReply, FileAttributes
from redisfuse.fuse.wire import DirectoryBuffer
from redisfuse.mount.attributes import AttributeBuilder, inode_number
from redisfuse.mount.unopened_files import UnopenedFiles
from redisfuse.paths.grammar import FILE_MARK
from redisfuse.vfs.coherence import Coherence
from redisfuse.vfs.dentry_tracker import DentryTracker
from redisfuse.vfs.directory_handle import DirectoryHandle
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.inodes import MAX_LISTED_INODES, Inode, InodeTable
from redisfuse.vfs.nodes import DIRECTORY_NODE_TYPES, DirectoryNode, KeyNode, MemoryNode, TreeNode
from redisfuse.vfs.readdir_cache import ReaddirCache


class ReaddirItem(NamedTuple):
    """One name of a directory listing."""

    name: bytes
    mode: int
    inode_number: int
    node: KeyNode | None  # of a string: its attributes go to the kernel with its name


@dataclass(frozen=True, slots=True)
class _OpenDirectory:
    inode: Inode
    handle: DirectoryHandle[ReaddirItem]


class DirectoryReader:
    """Opens, lists and closes the directories of a mount."""

    def __init__(
        self,
        filesystem: Filesystem,
        attributes: AttributeBuilder,
        inodes: InodeTable,
        coherence: Coherence,
        dentry_tracker: DentryTracker,
        unopened_files: UnopenedFiles | None,
    ) -> None:
        """`unopened_files` is None where the kernel requests each open."""
        self._filesystem = filesystem
        self._attributes = attributes
        self._inodes = inodes
        self._coherence = coherence
        self._dentry_tracker = dentry_tracker
        self._unopened_files = unopened_files
        self.cache: ReaddirCache[ReaddirItem] = ReaddirCache(filesystem.grammar.split_key)
        self._lock = threading.Lock()
        # Guarded by `_lock`; single look-ups don't need it:
        self._numbers = itertools.count(1)
        self._open_directories: dict[int, _OpenDirectory] = {}

    def open(self, inode: Inode) -> int:
        """Open a directory; return its number. Raises NotFoundError, NotDirectoryError."""
        if inode.is_detached:
            raise NotFoundError("the directory was removed")
        node = self._filesystem.resolver.resolve(inode.path)
        if not is_directory_node(node):
            raise NotDirectoryError("not a directory")
        opened = _OpenDirectory(inode, DirectoryHandle(_DirectoryListing(self, inode, node)))
        with self._lock:
            number = next(self._numbers)
            self._open_directories[number] = opened
        return number

    def close(self, number: int) -> None:
        """Close a directory."""
        self._open_directories.pop(number, None)

    def read(self, number: int, offset: int, buffer: DirectoryBuffer) -> None:
        """Add the entries from `offset` on until one does not fit.

        They include `.` and `..`. Raises BadHandleError.
        """
        opened = self._open_directories.get(number)
        if opened is None:
            raise BadHandleError("no directory is open under this handle")
        directory, mode = opened.inode, self._attributes.directory_mode
        if offset == 0 and not buffer.add_name(b".", mode, inode_number(directory.path), 1):
            return
        if offset <= 1:
            parent = directory.parent or directory
            if not buffer.add_name(b"..", mode, inode_number(parent.path), 2):
                return
            offset = 2
        for batch in opened.handle.batches(offset - 2):
            # Track before checking versions: a change after this point is pushed to the kernel.
            self._dentry_tracker.track_keys([item.node.target.key for item in batch if item.node is not None])
            for item in batch:
                offset += 1
                if not self._add_item(directory, item, offset, buffer):
                    return

    def _add_item(self, directory: Inode, item: ReaddirItem, next_offset: int, buffer: DirectoryBuffer) -> bool:
        name, mode, number, node = item
        if node is None or not buffer.wants_attributes or not self._may_list_attributes(node):
            return buffer.add_name(name, mode, number, next_offset)
        inode = self._inodes.look_up(directory, name, is_directory=False, version=node.version)
        if inode.content is not None or inode.handles:  # these have a size of their own
            self._inodes.forget([(inode.node_id, 1)])
            return buffer.add_name(name, mode, number, next_offset)
        mtime_ns, owner = self._filesystem.get_mtime_ns(node.target), self._attributes.permissions
        attributes = FileAttributes(number, mode, 1, node.length, mtime_ns, mtime_ns, owner.uid, owner.gid)
        valid = self._coherence.valid_seconds
        if not buffer.add_entry(name, EntryReply(inode.node_id, 0, attributes, valid, valid), next_offset):
            self._inodes.forget([(inode.node_id, 1)])
            return False
        inode.size = node.length
        return True

    def _may_list_attributes(self, node: KeyNode) -> bool:
        """Return whether a listed string has not changed since, and will be cached."""
        if self._filesystem.keyspace.get_version(node.target.key) != node.version:
            return False
        if self._unopened_files is not None and self._unopened_files.is_hot_value(node):
            return False
        return len(self._inodes) < MAX_LISTED_INODES

    def iter_names(self, path: bytes, node: TreeNode) -> Iterator[ReaddirItem]:
        """Yield the names of a directory, cached if they come from Redis alone."""
        # In write mode files in memory and open files are listed too.
        if self._filesystem.overlay is None and isinstance(node, DirectoryNode) and self._coherence.is_coherent:
            return self.cache.get_or_build(node.directory, lambda: self._read_names(path, node))
        return self._read_names(path, node)

    def _read_names(self, path: bytes, node: TreeNode) -> Iterator[ReaddirItem]:
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
class _DirectoryListing:
    """An open directory.

    Each iteration lists it again, under the path that it has then.
    """

    reader: DirectoryReader
    inode: Inode
    node: TreeNode

    def __iter__(self) -> Iterator[ReaddirItem]:
        return self.reader.iter_names(self.inode.path, self.node)


def is_directory_node(node: TreeNode) -> bool:
    """Return whether a node is a directory, of keys or of the memory filesystem."""
    return isinstance(node, DIRECTORY_NODE_TYPES) or (isinstance(node, MemoryNode) and node.is_directory)

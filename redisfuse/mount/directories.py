"""Open directories and their listings.

A listing has names with types, and the attributes of plain strings.

Threads: any. The lock is a leaf and guards the table of open directories.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from redisfuse.errors import BadHandleError, ConflictError, NotDirectoryError, NotFoundError
from redisfuse.fuse.interface import FileAttributes
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
from redisfuse.vfs.xattrs import list_names_of_key

MAX_UNPROBED_ENTRIES = 25_000
"""Entries of a listing that have attributes whether or not the program uses them."""

MAX_FOLLOWED_NAMES = 4096
"""Names of a listing after which it can't continue if the directory is renamed."""


class ReaddirItem(NamedTuple):
    """One name of a directory listing."""

    name: bytes
    mode: int
    inode_number: int
    node: KeyNode | None  # of a plain string, which is listed with its attributes


@dataclass(slots=True)
class OpenDirectory:
    """An open directory, and how far it was listed."""

    inode: Inode
    handle: DirectoryHandle[ReaddirItem]
    entry_count: int = 0  # with attributes
    probe: bytes | None = None  # a name of the last portion that was listed without attributes

    def wants_attributes(self) -> bool:
        """Return whether the next portion has attributes.

        In a long listing, one name of each portion has none. If the program uses attributes (`ls -l`, `grep -r`), the
        kernel has looked that name up by the time of the next portion.
        """
        if self.entry_count < MAX_UNPROBED_ENTRIES:
            return True
        probe, self.probe = self.probe, None
        return probe is not None and self.inode.children is not None and probe in self.inode.children

    def take_probe(self, name: bytes) -> bool:
        """Return whether a name of this portion is its probe."""
        if self.entry_count < MAX_UNPROBED_ENTRIES or self.probe is not None:
            return False
        self.probe = name
        return True


class OpenDirectories:
    """The directories of a mount that are open, by handle."""

    def __init__(
        self,
        filesystem: Filesystem,
        attributes: AttributeBuilder,
        inodes: InodeTable,
        coherence: Coherence,
        dentry_tracker: DentryTracker,
        unopened_files: UnopenedFiles | None,
    ) -> None:
        """`unopened_files` is None where the kernel sends OPEN."""
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
        self._open_directories: dict[int, OpenDirectory] = {}

    def open(self, inode: Inode) -> int:
        """Open a directory; return its handle. Raises NotFoundError, NotDirectoryError."""
        if inode.is_detached:
            raise NotFoundError("the directory was removed")
        path = inode.path
        opened = OpenDirectory(inode, DirectoryHandle(_DirectoryListing(self, inode, path, self.resolve(path))))
        with self._lock:
            number = next(self._numbers)
            self._open_directories[number] = opened
        return number

    def resolve(self, path: bytes) -> TreeNode:
        """Return the directory that a path leads to.

        Raises NotFoundError, NotDirectoryError.
        """
        node = self._filesystem.resolver.resolve(path)
        if not is_directory_node(node):
            raise NotDirectoryError("not a directory")
        return node

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
        wants_attributes = buffer.wants_attributes and opened.wants_attributes() and self._has_room()
        for batch in opened.handle.batches(offset - 2):
            reset_count = self._dentry_tracker.reset_count
            certain: Iterator[bool] = iter(())
            if wants_attributes:
                # Tracked before versions are checked: the kernel is notified of any change after this.
                nodes = [item.node for item in batch if item.node is not None]
                certain = iter(self._dentry_tracker.track_listed(nodes))
            for item in batch:
                offset += 1
                has_attributes = wants_attributes and item.node is not None and next(certain)
                if not self._add_item(opened, item, offset, buffer, reset_count if has_attributes else None):
                    return

    def _add_item(
        self,
        opened: OpenDirectory,
        item: ReaddirItem,
        next_offset: int,
        buffer: DirectoryBuffer,
        reset_count: int | None,
    ) -> bool:
        """Add a name, with attributes unless `reset_count` is None.

        Otherwise that of the tracker, from before the name was tracked. Returns False if it does not fit.
        """
        directory, (name, mode, number, node) = opened.inode, item
        if node is None or opened.take_probe(name) or reset_count is None:
            return buffer.add_name(name, mode, number, next_offset)
        mtime_ns = self._filesystem.keyspace.mtime_at(node.target.key, node.version)
        if mtime_ns is None or self._is_hot(node):
            return buffer.add_name(name, mode, number, next_offset)
        known = directory.children.get(name) if directory.children is not None else None
        if known is not None and known.handles:  # its size may be that of edits, or of what is read
            return buffer.add_name(name, mode, number, next_offset)
        inode = self._inodes.look_up(directory, name, is_directory=False, version=node.version)
        has_own_size = inode.content is not None or inode.handles  # of its pinned or edited content
        if has_own_size or self._dentry_tracker.reset_count != reset_count:
            self._inodes.forget([(inode.node_id, 1)])
            return buffer.add_name(name, mode, number, next_offset)
        mtime_ns, owner = max(mtime_ns, self._filesystem.mount_time_ns), self._attributes.permissions
        attributes = FileAttributes(number, mode, 1, node.length, mtime_ns, mtime_ns, owner.uid, owner.gid)
        valid = self._coherence.valid_seconds
        if not buffer.add_entry(name, inode.node_id, attributes, valid, next_offset):
            self._inodes.forget([(inode.node_id, 1)])
            return False
        inode.report_size(node.length)
        inode.xattr_names = list_names_of_key(node)
        if self._unopened_files is not None:
            self._unopened_files.record_listed(inode, node)
        opened.entry_count += 1
        return True

    def _has_room(self) -> bool:
        """Return whether listings may add inodes."""
        return len(self._inodes) < MAX_LISTED_INODES

    def _is_hot(self, node: KeyNode) -> bool:
        """Return whether the kernel must not cache a listed string."""
        if self._unopened_files is None or not self._filesystem.keyspace.has_hot_keys:
            return False
        return self._unopened_files.is_hot_value(node)

    def iter_names(self, path: bytes, node: TreeNode) -> Iterator[ReaddirItem]:
        """Yield the names of a directory, cached if they come from Redis alone."""
        # In write mode, memory files and open files are listed too.
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
                # Listed without attributes: the size of a collection is that of its rendering, too expensive for a
                # plain `ls`, and a marked name (`user%`) is invalidated only if it was looked up.
                mode = self._attributes.directory_mode if is_directory_node(child) else string_mode
                yield ReaddirItem(name, mode, inode_number(base + name), None)


@dataclass(slots=True)
class _DirectoryListing:
    """The names of an open directory, listed again at each iteration.

    A directory that was renamed is listed under its new path.
    """

    reader: OpenDirectories
    inode: Inode
    path: bytes  # at the last iteration
    node: TreeNode  # to which it leads

    def __iter__(self) -> Iterator[ReaddirItem]:
        """Yield the names, each once.

        Raises ConflictError if the directory is renamed after `MAX_FOLLOWED_NAMES`, or renamed twice: a part of the
        names would be missing.
        """
        names, listed = self._iter_names(), set()
        for item in itertools.islice(names, MAX_FOLLOWED_NAMES):
            listed.add(item.name)
            yield item
        yield from names
        if self.inode.path != self.path and len(listed) < MAX_FOLLOWED_NAMES:
            for item in self._iter_names():
                if item.name not in listed:
                    yield item
        if self.inode.path != self.path:
            raise ConflictError("the directory was renamed while it was listed")

    def _iter_names(self) -> Iterator[ReaddirItem]:
        path = self.inode.path
        if path != self.path:
            self.node = self.reader.resolve(path)
            self.path = path
        try:
            yield from self.reader.iter_names(path, self.node)
        except NotFoundError:
            if self.inode.path == path:
                raise


def is_directory_node(node: TreeNode) -> bool:
    """Return whether a node is a directory, of keys or of the memory filesystem."""
    return isinstance(node, DIRECTORY_NODE_TYPES) or (isinstance(node, MemoryNode) and node.is_directory)

"""The tree as programs see it.

Directory listings, sizes and times of what `vfs/resolver.py` resolves. Knows neither FUSE nor a Redis command.
Read-only: `vfs/namespace.py` changes the tree. Every method may be called from any thread; there is no lock here.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from redisfuse.errors import NotDirectoryError, NotFoundError
from redisfuse.keyspace.metadata import UNREADABLE, MetadataStore
from redisfuse.keyspace.monitor import KeyspaceMonitor
from redisfuse.paths.grammar import KeyRef, PathCandidates, PathCodec, RootDir
from redisfuse.vfs.content import ContentLoader
from redisfuse.vfs.empty_dirs import EmptyDirectories
from redisfuse.vfs.junk_rules import JunkRules
from redisfuse.vfs.nodes import (
    DIRECTORY_NODE_TYPES,
    DigestFieldsNode,
    DigestRootNode,
    DirectoryNode,
    KeyNode,
    MemoryNode,
    NamedNode,
    OpenFileNode,
    RefreshNode,
    SegmentNode,
    TreeNode,
)
from redisfuse.vfs.overlay import Overlay
from redisfuse.vfs.readdir import DirectoryReader
from redisfuse.vfs.resolver import PathResolver
from redisfuse.vfs.xattrs import XattrReader

log = logging.getLogger(__name__)


class Stat(NamedTuple):
    """The attributes of a file or directory.

    Size in bytes, mtime in ns since the epoch (UTC).
    """

    is_directory: bool
    size: int
    mtime_ns: int
    is_editable: bool  # write mode can open the file for writing
    is_readable: bool = True  # False: the server's ACL denies reading the key
    mode: int | None = None  # the permission bits of junk; None: those of the mount
    is_streamed: bool = False  # the size is unknown: read with direct I/O until the end
    link_count: int = 1  # of a directory: 2 and its subdirectories, or 1 if these are too many to be counted
    allocated_bytes: int | None = None  # for st_blocks, if it is not the size

    @property
    def has_exact_size(self) -> bool:
        """Whether reading returns `size` bytes."""
        return self.is_readable and not self.is_streamed


class Filesystem:
    """The tree of one mounted database."""

    def __init__(
        self,
        *,
        grammar: PathCodec,
        keyspace: KeyspaceMonitor,
        metadata: MetadataStore,
        content_loader: ContentLoader,
        junk_rules: JunkRules,
        overlay: Overlay | None,
        empty_directories: EmptyDirectories | None,
        resolver: PathResolver,
        xattrs: XattrReader,
        show_junk: bool,
        mount_time_ns: int,
    ) -> None:
        """`overlay` and `empty_directories` exist in write mode only."""
        self.grammar = grammar
        self.keyspace = keyspace
        self.metadata = metadata
        self.content_loader = content_loader
        self.overlay = overlay
        self.resolver = resolver
        self.xattrs = xattrs
        self.mount_time_ns = mount_time_ns
        self._junk_rules = junk_rules
        self._empty_directories = empty_directories
        self._show_junk = show_junk
        self._hidden_junk_logged = False  # hidden junk is logged once

    # -- listing -----------------------------------------------------------------------------------------------------

    def readdir(self, path: bytes, node: TreeNode) -> Iterator[NamedNode]:
        """Yield the names in a directory, querying the server on the way.

        Waits for the first index. Raises NotDirectoryError, NotFoundError (the directory no longer exists),
        UnavailableError (no index).
        """
        if isinstance(node, MemoryNode) and node.is_directory:
            assert self.overlay is not None
            yield from self.overlay.readdir(path)
            return
        if not isinstance(node, DIRECTORY_NODE_TYPES):
            raise NotDirectoryError("not a directory")
        self.resolver.wait_for_index()
        reader = self.resolver.create_reader()
        if isinstance(node, SegmentNode):
            try:
                yield from reader.continuation_entries(node)
            except NotFoundError:
                if not self.resolver.is_dangling_segment(path) and not reader.begins_unlisted_name(node):
                    raise
        elif isinstance(node, DigestRootNode):
            yield from reader.digest_root_entries()
        elif isinstance(node, DigestFieldsNode):
            yield from reader.digest_field_entries(node)
        else:
            yield from self._read_key_directory(path, node.directory, reader)

    def _read_key_directory(
        self, path: bytes, directory: tuple[bytes, ...], reader: DirectoryReader
    ) -> Iterator[NamedNode]:
        """Yield the names in a directory.

        In this order: the overlay's files, empty directories, the overlay's directories, the keys.
        """
        overlay_files = self.overlay.readdir(path) if self.overlay is not None else []
        empty_children = self._empty_directories.children(directory) if self._empty_directories is not None else []
        overlay_names = {entry.name for entry in overlay_files}
        yield from overlay_files
        for component in empty_children:
            name = self.grammar.directory_name(component, in_root=not directory)
            if name not in overlay_names and not reader.index.is_directory((*directory, component)):
                yield NamedNode(name, DirectoryNode((*directory, component)))
        overlay_directories = self._overlay_directories(path, overlay_names, reader)
        yield from overlay_directories
        if reader.index.is_directory(directory):
            yield from self._visible_entries(path, directory, overlay_names, reader)
        elif not (overlay_files or empty_children or overlay_directories or self._is_empty_directory(directory)):
            raise NotFoundError("the directory has no keys any more")

    def _visible_entries(
        self, path: bytes, directory: tuple[bytes, ...], overlay_names: Collection[bytes], reader: DirectoryReader
    ) -> Iterator[NamedNode]:
        """Yield the keys of a directory.

        Without junk, pending removals and names that the overlay has.
        """
        hidden_count = 0
        for entry in reader.entries(directory):
            name, node = entry
            if name in overlay_names or (isinstance(node, KeyNode) and self.resolver.is_pending_removal(node.target)):
                continue
            if not self._show_junk and self._junk_rules.is_hidden(name, in_root=not directory):
                hidden_count += 1
            else:
                yield entry
        if hidden_count and not self._hidden_junk_logged:
            self._hidden_junk_logged = True
            log.info(
                "/%s: %d names are not listed, because they match junk patterns. An exact path opens them, --show-junk "
                "lists them, `redisfuse junk scan` finds all of them on the server",
                os.fsdecode(path),
                hidden_count,
            )

    def _overlay_directories(
        self, path: bytes, listed_names: Collection[bytes], reader: DirectoryReader
    ) -> Sequence[NamedNode]:
        """Return the subdirectories with nothing but junk or files being edited."""
        entries = []
        for name in self.overlay.child_directories(path) if self.overlay is not None else ():
            if name in listed_names:
                continue
            parsed_path = self.grammar.parse(path + b"/" + name if path else name)
            if isinstance(parsed_path, PathCandidates) and parsed_path.as_directory is not None:
                directory = (*parsed_path.directory, parsed_path.as_directory)
                if not reader.index.is_directory(directory) and not self._is_empty_directory(directory):
                    entries.append(NamedNode(name, DirectoryNode(directory)))
        return entries

    def _is_empty_directory(self, directory: tuple[bytes, ...]) -> bool:
        return self._empty_directories is not None and directory in self._empty_directories

    # -- files -------------------------------------------------------------------------------------------------------

    def stat(self, node: TreeNode) -> Stat:
        """Return the attributes of a node. Raises the errors of measuring a collection."""
        if isinstance(node, KeyNode):
            if node.type == UNREADABLE.type:
                return Stat(False, 0, self.mount_time_ns, False, is_readable=False)
            size, is_streamed = self.content_loader.measure_size(node)
            allocated = self.content_loader.measure_memory(node) if is_streamed else None
            return Stat(
                *(False, size, self.get_mtime_ns(node.target), node.is_editable),
                is_streamed=is_streamed,
                allocated_bytes=allocated,
            )
        if isinstance(node, DirectoryNode):
            prefix = self.grammar.key_prefix(node.directory)
            mtime_ns = max(self.keyspace.changed_at(prefix), self.mount_time_ns)
            return Stat(True, 0, mtime_ns, True, link_count=self._count_links(node.directory))
        if isinstance(node, OpenFileNode):
            file = node.file
            mtime = file.mtime_ns or (self.mount_time_ns if file.target is None else self.get_mtime_ns(file.target))
            return Stat(False, file.size or 0, mtime, True, link_count=int(file.target is not None))
        if isinstance(node, MemoryNode):
            assert self.overlay is not None
            junk = self.overlay.memory_fs.stat(node.path)
            links = 2 + self.overlay.memory_fs.count_subdirectories(node.path) if junk.is_directory else 1
            return Stat(junk.is_directory, junk.size, junk.mtime_ns, True, mode=junk.mode, link_count=links)
        if isinstance(node, RefreshNode):
            return Stat(False, 0, self.mount_time_ns, False)
        return Stat(True, 0, self.mount_time_ns, False, link_count=2)

    def is_open(self, node: KeyNode) -> bool:
        """Return whether handles share the node's file, whose lock a commit may hold."""
        return self.overlay is not None and self.overlay.open_files.get(node.target) is not None

    def _count_links(self, directory: tuple[bytes, ...]) -> int:
        """Return 2 and the number of subdirectories.

        Returns 1 (unknown, as Btrfs has it) for a long directory.
        """
        index = self.keyspace.index
        subdirectories: set[bytes] = set()
        try:
            batches = index.iter_child_batches(directory) if self.keyspace.is_ready else iter(())
            for number, batch in enumerate(batches):
                if number:
                    return 1
                subdirectories.update(child.component for child in batch if child.is_directory)
        except NotFoundError:
            pass  # an empty directory
        if self._empty_directories is not None:
            subdirectories.update(self._empty_directories.children(directory))
        count = 2 + len(subdirectories)
        if self.overlay is not None:
            count += self.overlay.memory_fs.count_subdirectories(self.grammar.directory_path(directory))
        return count

    def touch_directory(self, *paths: bytes) -> None:
        """Move the times of directories in which a name was created, removed or renamed."""
        for path in paths:
            with contextlib.suppress(NotFoundError):
                parsed_path = self.grammar.parse(path)
                if isinstance(parsed_path, RootDir):
                    self.keyspace.record_directory_change(b"")
                elif isinstance(parsed_path, PathCandidates) and parsed_path.as_directory is not None:
                    directory = (*parsed_path.directory, parsed_path.as_directory)
                    self.keyspace.record_directory_change(self.grammar.key_prefix(directory))

    def get_mtime_ns(self, target: KeyRef) -> int:
        """Return a file's mtime in ns since the epoch.

        Its last change that was seen, else the start of the mount.
        """
        return max(self.keyspace.mtime_ns(target), self.mount_time_ns)

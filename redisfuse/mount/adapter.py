"""The kernel's requests, served from the tree.

Paths, flags and handles in, attributes and bytes out. The only module that knows both `fuse` and `vfs`. Every method
may run in many threads at once. The lock guards the table of handles; nothing blocks and nothing is called while it is
held.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, Protocol

from redisfuse.errors import (
    AccessError,
    BadHandleError,
    ExistsError,
    InvalidArgumentError,
    IsDirectoryError,
    NoAttributeError,
    NotDirectoryError,
    NotFoundError,
    NotPermittedError,
    NotSupportedError,
    ReadOnlyError,
)
from redisfuse.fuse import procfs
from redisfuse.fuse.interface import UTIME_OMIT, Binding, Dirent, FileAttributes, OpenReply, UtimensTime
from redisfuse.paths.grammar import FILE_MARK
from redisfuse.paths.stale_names import is_stale, strip_stale_marker
from redisfuse.vfs.coherence import Coherence
from redisfuse.vfs.content_types import FileContent, InlineContent
from redisfuse.vfs.dentry_tracker import DentryTracker
from redisfuse.vfs.directory_handle import DirectoryHandle
from redisfuse.vfs.filesystem import Filesystem, Stat
from redisfuse.vfs.growing_content import GrowingContent, inline_bytes
from redisfuse.vfs.handles import Handle, MemoryHandle, ReadHandle, ReadWriteHandle
from redisfuse.vfs.inode_content import InodeContentCache, PinnedContent
from redisfuse.vfs.inode_source import TreeContentSource
from redisfuse.vfs.memory_fs import MemoryFS
from redisfuse.vfs.namespace import NamespaceOperations
from redisfuse.vfs.nodes import (
    DIRECTORY_NODE_TYPES,
    DirectoryNode,
    KeyNode,
    MemoryNode,
    OpenFileNode,
    RefreshNode,
    TreeNode,
)
from redisfuse.vfs.overlay import Overlay
from redisfuse.vfs.readdir_cache import ReaddirCache
from redisfuse.vfs.statfs import StatfsProvider
from redisfuse.vfs.xattrs import DERIVED_XATTRS, TTL_XATTR, XATTR_PREFIX, parse_ttl

MAX_HOT_VALUE_BYTES = 64 * 1024
"""A longer value is not fetched before it is read."""

_WRITE_FLAGS = os.O_ACCMODE | os.O_TRUNC  # open(2) flags that are all zero only when opening for reading
RENAME_NOREPLACE = 1  # renameat2(2)
STATUS_XATTR = b"user.redisfuse.status"  # on the root, never listed; `redisfuse status` reads it


@dataclass(frozen=True, slots=True)
class Permissions:
    """Owner and permission bits.

    Files have 0400 and directories 0500, in write mode 0600 and 0700, widened by `-o umask=`.
    """

    uid: int
    gid: int
    umask: int
    is_writable: bool

    def file_mode(self, file_stat: Stat) -> int:
        """Return the type and permission bits."""
        if file_stat.mode is not None:
            return (stat.S_IFDIR if file_stat.is_directory else stat.S_IFREG) | file_stat.mode
        bits = 0o777 if file_stat.is_directory else 0o666 if file_stat.is_readable else 0
        if not self.is_writable or not file_stat.is_editable:
            bits &= ~0o222
        return (stat.S_IFDIR if file_stat.is_directory else stat.S_IFREG) | (bits & ~self.umask)


class MountControl(Protocol):
    """The mount around the tree: its start and end, its refresh file, and its status."""

    def start(self) -> None:
        """Start what serves the mount: it answers requests now."""

    def stop(self) -> None:
        """Commit what is left and stop: the mount has ended."""

    def refresh(self) -> None:
        """Scan the keyspace again."""

    def encode_status(self) -> bytes:
        """Return the status as JSON."""


class ReaddirItem(NamedTuple):
    """One name of a directory listing."""

    name: bytes
    mode: int
    inode: int
    node: KeyNode | None  # of a string: its attributes go to the kernel with its name


@dataclass(slots=True)
class OpenFileEntry:
    """An open file and its path, as far as this mount knows it."""

    handle: Handle
    path: bytes
    is_unlinked: bool = False  # unlinked or replaced through this mount


class FuseAdapter:
    """Serves the kernel's requests from the tree.

    Implements `fuse.interface.FuseOperations`.
    """

    def __init__(
        self,
        filesystem: Filesystem,
        namespace: NamespaceOperations | None,
        permissions: Permissions,
        *,
        mount: MountControl,
        mountpoint: bytes,
        binding: Binding,
        coherence: Coherence,
        dentry_tracker: DentryTracker,
        statfs: StatfsProvider,
    ) -> None:
        """`namespace` is None in a read-only mount.

        Every request that would change something raises ReadOnlyError.
        """
        self._filesystem = filesystem
        self._namespace = namespace
        self._permissions = permissions
        self._string_mode = permissions.file_mode(Stat(False, 0, 0, True))
        self._mount = mount
        self._mountpoint = mountpoint
        self._binding = binding
        self._coherence = coherence
        self._dentry_tracker = dentry_tracker
        self._statfs = statfs
        self._lock = threading.Lock()
        self._handle_numbers = itertools.count(1)
        self._file_handles: dict[int, OpenFileEntry] = {}
        self._directory_handles: dict[int, DirectoryHandle[ReaddirItem]] = {}
        self.readdir_cache: ReaddirCache[ReaddirItem] = ReaddirCache(filesystem.grammar.split_key)
        self._content_source = TreeContentSource(filesystem, coherence)
        self.content_cache = InodeContentCache(self._content_source)

    def _caller_tid(self) -> int:
        """Return the thread that made the current request."""
        return self._binding.get_caller()[2]

    # -- start and end -----------------------------------------------------------------------------------------------

    def init(self) -> None:
        self._mount.start()

    def destroy(self) -> None:
        self._mount.stop()

    # -- attributes --------------------------------------------------------------------------------------------------

    def getattr(self, path: bytes | None, handle: int | None) -> FileAttributes:
        if handle is not None:
            self._binding.prepare_to_block()
            if (attributes := self._open_file_attr(handle, has_path=path is not None)) is not None:
                return attributes
        if path is None:
            raise BadHandleError("no file is open under this handle")
        if (pinned := self.content_cache.get_pinned(path)) is not None:
            self._dentry_tracker.track_path(path[1:])
            return self._pinned_attr(path[1:], pinned, for_read=False)
        path = path[1:]
        self._dentry_tracker.track_path(path)
        node: TreeNode | None = self._filesystem.resolver.resolve_cached(path) if self._namespace is None else None
        if node is None:
            self._binding.prepare_to_block()
            node = self._filesystem.resolver.resolve(path)
        if type(node) is KeyNode:
            if self._is_hot_value(node):
                return self._prefetch_attr(path, node)
            if node.is_plain:
                return self._string_attr(path, node)
        if isinstance(node, RefreshNode):
            self._mount.refresh()
        return self._reply_attr(path, self._filesystem.stat(node))

    def _is_hot_value(self, node: KeyNode) -> bool:
        """Return whether a value changes so often that it may differ when it is read.

        Applies only to mounts without OPEN requests.
        """
        if not self._filesystem.keyspace.is_hot(node.target.key) or not self._binding.uses_no_open:
            return False
        return node.is_editable and node.length <= MAX_HOT_VALUE_BYTES

    def _prefetch_attr(self, path: bytes, node: KeyNode) -> FileAttributes:
        """Return the attributes, and pin the content that they describe until it is read."""
        self._binding.prepare_to_block()
        pinned = self.content_cache.preload(b"/" + path, self._content_source.load_node(node, None))
        return self._build_attr(path, Stat(False, pinned.content.size, pinned.mtime_ns, True))

    def getattr_node(self, node: bytes, *, for_read: bool) -> FileAttributes:
        path = strip_stale_marker(node)[1:]
        self._binding.prepare_to_block()
        if path == node[1:]:
            self._dentry_tracker.track_path(path)
        else:
            self._binding.disable_attr_cache()
        pinned = self.content_cache.get_pinned(node)
        if pinned is None:
            file_stat = self._filesystem.stat(self._filesystem.resolver.resolve(path))
            if not for_read or file_stat.has_exact_size or procfs.is_reading(self._caller_tid()) is False:
                return self._reply_attr(path, file_stat)
            pinned = self.content_cache.get_or_load(node, self._binding.current_node_id())
        return self._pinned_attr(path, pinned, for_read=for_read)

    def _reply_attr(self, path: bytes, file_stat: Stat) -> FileAttributes:
        """Return the attributes.

        The kernel must not cache the size of a streamed file that it doesn't open.
        """
        if not file_stat.has_exact_size and self._binding.uses_no_open:
            self._binding.disable_attr_cache()
        return self._build_attr(path, file_stat)

    def _pinned_attr(self, path: bytes, pinned: PinnedContent, *, for_read: bool) -> FileAttributes:
        """Return the attributes of a file with pinned content.

        The size is that of the pinned content plus the appended bytes.
        """
        if pinned.stale_since or pinned.is_streamed or is_stale(pinned.node_path):
            self._binding.disable_attr_cache()
        if pinned.is_streamed:
            if for_read:
                self.content_cache.stream_more(
                    pinned, self._binding, until_end=not procfs.is_reading(self._caller_tid())
                )
            return self._build_attr(path, Stat(False, pinned.streamed_bytes, pinned.mtime_ns, True))
        mtime = pinned.mtime_ns
        if isinstance(pinned.content, GrowingContent) and is_stale(pinned.node_path):
            self._binding.prepare_to_block()
            before = pinned.content.size
            pinned.content.refresh()
            if pinned.content.size != before:
                mtime = pinned.mtime_ns = time.time_ns()
        return self._build_attr(path, Stat(False, pinned.content.size, mtime, True))

    def _open_file_attr(self, handle: int, *, has_path: bool) -> FileAttributes | None:
        """Return the attributes of an edited, new or unlinked file.

        Whatever its path leads to now.

        Without `has_path` (libfuse no longer has one), also those of any other open file; else None for these.
        """
        entry = self._file_handles.get(handle)
        if entry is None:
            return None
        opened, path = entry.handle, entry.path
        if isinstance(opened, ReadWriteHandle) and opened.file.size is not None:
            return self._build_attr(path, self._filesystem.stat(OpenFileNode(opened.file)))
        if has_path:
            return None
        if not entry.is_unlinked:
            with contextlib.suppress(NotFoundError):
                file_stat = self._filesystem.stat(self._filesystem.resolver.resolve(path))
                if not file_stat.is_directory:
                    return self._build_attr(path, file_stat)
        # The size of what the handle reads.
        return self._build_attr(
            path, Stat(False, opened.size, self._filesystem.mount_time_ns, isinstance(opened, ReadWriteHandle))
        )

    def _string_attr(self, path: bytes, node: KeyNode) -> FileAttributes:
        """Return what `_build_attr` would, faster: most files are plain strings."""
        owner, tree = self._permissions, self._filesystem
        return FileAttributes(
            inode_number(path), self._string_mode, 1, node.length, tree.get_mtime_ns(node.target), owner.uid, owner.gid
        )

    def _build_attr(self, path: bytes, file_stat: Stat) -> FileAttributes:
        owner = self._permissions
        nlink = 2 if file_stat.is_directory else int(file_stat.is_linked)
        return FileAttributes(
            inode_number(path),
            owner.file_mode(file_stat),
            nlink,
            file_stat.size,
            file_stat.mtime_ns,
            owner.uid,
            owner.gid,
            file_stat.allocated_bytes,
        )

    # -- directories -------------------------------------------------------------------------------------------------

    def opendir(self, path: bytes) -> int:
        path = path[1:]
        node = self._filesystem.resolver.resolve(path)
        if not isinstance(node, DIRECTORY_NODE_TYPES) and not (isinstance(node, MemoryNode) and node.is_directory):
            raise NotDirectoryError("not a directory")
        handle = DirectoryHandle(_DirectoryListing(self, path, node))
        with self._lock:
            number = next(self._handle_numbers)
            self._directory_handles[number] = handle
        return number

    def _iter_listing(self, path: bytes, node: TreeNode) -> Iterator[ReaddirItem]:
        # Only listings that come from Redis alone are cached; in write mode memory files and open files are listed too.
        if self._namespace is None and isinstance(node, DirectoryNode) and self._coherence.is_coherent:
            return self.readdir_cache.get_or_build(node.directory, lambda: self._iter_names(path, node))
        return self._iter_names(path, node)

    def _iter_names(self, path: bytes, node: TreeNode) -> Iterator[ReaddirItem]:
        base = path + b"/" if path else b""
        for name, child in self._filesystem.readdir(path, node):
            if type(child) is KeyNode and child.is_plain and not name.endswith(FILE_MARK):
                yield ReaddirItem(name, self._string_mode, inode_number(base + name), child)
            else:
                # These get attributes only on request: a collection's size is that of its rendering, too expensive for
                # a plain `ls`, and a marked name (`user%`) is invalidated only if it was looked up.
                directory = isinstance(child, DIRECTORY_NODE_TYPES) or (
                    isinstance(child, MemoryNode) and child.is_directory
                )
                yield ReaddirItem(
                    name, self._permissions.file_mode(Stat(directory, 0, 0, True)), inode_number(base + name), None
                )

    def readdir(self, handle: int, offset: int) -> Iterator[Dirent]:
        directory = self._directory_handles.get(handle)
        if directory is None:
            raise BadHandleError("no directory is open under this handle")
        for batch in directory.batches(offset):
            # Track before checking versions: a change after this point is pushed to the kernel.
            self._dentry_tracker.track_keys([node.target.key for _, _, _, node in batch if node is not None])
            for name, mode, inode, node in batch:
                yield Dirent(name, mode, None if node is None else self._readdirplus_attr(inode, node), inode)

    def _readdirplus_attr(self, inode: int, node: KeyNode) -> FileAttributes | None:
        """Return the attributes of a listed string.

        Returns None if it may have changed since the listing was built.
        """
        owner, tree = self._permissions, self._filesystem
        key = node.target.key
        if tree.keyspace.get_version(key) != node.version:
            return None
        if self.content_cache.has_stale_content(key) or self._is_hot_value(node):
            return None
        return FileAttributes(
            inode, self._string_mode, 1, node.length, tree.get_mtime_ns(node.target), owner.uid, owner.gid
        )

    def releasedir(self, handle: int) -> None:
        self._directory_handles.pop(handle, None)

    # -- opening -----------------------------------------------------------------------------------------------------

    def open(self, path: bytes, flags: int) -> OpenReply:
        path = path[1:]
        if (
            self._namespace is None
            and not flags & _WRITE_FLAGS
            and (content := self._filesystem.open_cached(path)) is not None
        ):
            return self._reply_open_content(content, path)
        self._binding.prepare_to_block()
        node = self._filesystem.resolver.resolve(path)
        writing = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if writing and self._namespace is None:
            raise ReadOnlyError("the mount is read-only: mount with --write to change keys")
        if isinstance(node, MemoryNode) and not node.is_directory:
            return self._open_memory_file(path, flags)
        if isinstance(node, OpenFileNode) or (
            self._overlay is not None and isinstance(node, KeyNode) and node.is_editable
        ):
            return self._open_key_file(path, node, flags, writing)
        if writing:
            raise AccessError("only strings and hash fields can be edited")
        if isinstance(node, RefreshNode):
            self._mount.refresh()
            return self._reply_open_content(InlineContent(b""), path)
        if not isinstance(node, KeyNode):
            raise IsDirectoryError("a directory")
        content, is_streamed = self._filesystem.content_loader.open_content(node)
        return self._reply_open_content(content, path, is_streamed=is_streamed)

    @property
    def _overlay(self) -> Overlay | None:
        return self._filesystem.overlay

    def _open_memory_file(self, path: bytes, flags: int) -> OpenReply:
        assert self._overlay is not None
        file = self._overlay.memory_fs.open(path)
        if flags & os.O_TRUNC:
            file.truncate(0)
        return self._reply_open(MemoryHandle(file), path, None, shares_pages=True)

    def _open_key_file(self, path: bytes, node: KeyNode | OpenFileNode, flags: int, writing: bool) -> OpenReply:
        assert self._overlay is not None
        files = self._overlay.open_files
        if isinstance(node, OpenFileNode):
            file = files.add_handle(node.file, is_writer=writing)
        else:
            if writing:
                files.key_writer.check_allowed(node.target.key)
            file = files.open_handle(node.target, path, is_writer=writing)
        try:
            content = None
            if writing:
                file.begin_edit()
                if flags & os.O_TRUNC:
                    file.truncate(0)
            elif file.size is None and file.target is not None:
                content = self._filesystem.content_loader.open_growing(file.target)
        except BaseException:
            files.close_handle(file, is_writer=writing)
            raise
        opener = self._caller_tid() if writing else 0
        handle = ReadWriteHandle(files, file, content, flags, is_writer=writing, opener_tid=opener)
        return self._reply_open(handle, path, content, shares_pages=file.readers_share_content(handle))

    def create(self, path: bytes, flags: int, mode: int) -> OpenReply:
        path = path[1:]
        if self._namespace is None or self._overlay is None:
            raise ReadOnlyError("the mount is read-only: mount with --write to change keys")
        opener = self._caller_tid()
        file = self._namespace.create(path, exclusive=bool(flags & os.O_EXCL), mode=mode, caller=opener)
        if isinstance(file, bytes):
            return self._open_memory_file(file, flags)
        try:
            if not file.is_new:
                file.begin_edit()
                if flags & os.O_TRUNC:
                    file.truncate(0)
        except BaseException:
            self._overlay.open_files.close_handle(file, is_writer=True)
            raise
        handle = ReadWriteHandle(self._overlay.open_files, file, None, flags, is_writer=True, opener_tid=opener)
        return self._reply_open(handle, path, None, shares_pages=file.readers_share_content(handle))

    def _reply_open_content(self, content: FileContent, path: bytes, *, is_streamed: bool = False) -> OpenReply:
        """Open a handle that only reads."""
        number = self._register_handle(ReadHandle(content), path)
        if is_streamed:
            return OpenReply(number, direct_io=True)
        return OpenReply(
            number, keep_cache=self._coherence.is_coherent, size=content.size, content_hash=_hash_content(content)
        )

    def _reply_open(self, handle: Handle, path: bytes, content: FileContent | None, *, shares_pages: bool) -> OpenReply:
        """Open a handle in write mode.

        It reads `content`, or (None) the file being edited.
        """
        size = None if content is None else content.size
        number, keep = self._register_handle(handle, path), self._coherence.is_coherent
        return OpenReply(
            number, keep_cache=keep, size=size, shares_pages=shares_pages, content_hash=_hash_content(content)
        )

    def _register_handle(self, handle: Handle, path: bytes) -> int:
        with self._lock:
            number = next(self._handle_numbers)
            self._file_handles[number] = OpenFileEntry(handle, path)
        return number

    def _get_handle(self, handle: int) -> Handle:
        return self._get_open_file(handle).handle

    def _get_open_file(self, handle: int) -> OpenFileEntry:
        entry = self._file_handles.get(handle)
        if entry is None:
            raise BadHandleError("no file is open under this handle")
        return entry

    def _retarget_open_files(self, old: bytes, new: bytes | None) -> None:
        """Update the paths of files open at or below a renamed path.

        A new path of None means that the file was unlinked.
        """
        below = old + b"/"
        with self._lock:
            for entry in self._file_handles.values():
                if entry.is_unlinked or not (entry.path == old or entry.path.startswith(below)):
                    continue
                if new is None:
                    entry.is_unlinked = True
                else:
                    entry.path = new + entry.path[len(old) :]

    # -- bytes -------------------------------------------------------------------------------------------------------

    def read(self, handle: int, size: int, offset: int) -> bytes:
        opened = self._get_handle(handle)
        if type(opened) is ReadHandle and (data := opened.try_read(offset, size)) is not None:
            return data
        self._binding.prepare_to_block()
        return opened.read(offset, size)

    # Requests of files that the kernel does not open (read-only mounts).

    def read_node(self, node: bytes, size: int, offset: int, kernel_size: int | None, is_size_stable: bool) -> bytes:
        cache, node_id = self.content_cache, self._binding.current_node_id()
        data = cache.read_cached(node, node_id, size, offset, kernel_size, is_size_stable)
        if data is not None:
            return data
        self._binding.prepare_to_block()
        return cache.read(node, node_id, size, offset, kernel_size, is_size_stable, self._binding)

    def detach_node(self, node: bytes, stale_node: bytes) -> None:
        self.content_cache.detach(node, stale_node)

    def forget(self, node_ids: Iterable[int]) -> None:
        self.content_cache.drop_forgotten(node_ids, self._binding)

    def has_been_read(self, node: bytes) -> bool:
        return self.content_cache.was_read(node)

    def list_read_nodes(self) -> Sequence[bytes]:
        return self.content_cache.list_read_paths()

    def write(self, handle: int, data: bytes, offset: int, *, append: bool) -> int:
        opened = self._get_handle(handle)
        if not (type(opened) is ReadWriteHandle and opened.try_write(offset, data, append=append)):
            self._binding.prepare_to_block()
            opened.write(offset, data, append=append)
        return len(data)

    def truncate(self, path: bytes | None, length: int, handle: int | None) -> None:
        if handle is not None:
            self._get_handle(handle).truncate(length)
            return
        assert path is not None
        path = path[1:]
        namespace = self._require_namespace()
        node = self._filesystem.resolver.resolve(path)
        if isinstance(node, MemoryNode):
            assert self._overlay is not None
            file = self._overlay.memory_fs.open(path)
            file.truncate(length)
            file.close()
        else:
            namespace.truncate(path, length)

    def flush(self, handle: int) -> None:
        entry = self._get_open_file(handle)
        opened = entry.handle
        if type(opened) is ReadWriteHandle and not opened.is_writer:
            return
        self._binding.prepare_to_block()
        is_final = True
        if isinstance(opened, ReadWriteHandle) and opened.file.is_dirty:
            is_final = self._is_final_close(opened.opener_tid, entry.path, has_writes=opened.file.has_unsaved_writes)
        opened.flush(is_final)

    def _is_final_close(self, opener: int, path: bytes, *, has_writes: bool) -> bool:
        """Return whether a close(2) ends the writing.

        It doesn't when a child closes what it inherited while the process that opened the file still has it open:
        `sh -c 'a; b' > file` closes once for each command. A file to which nothing was written yet is still to be
        written if the program that closes it has another descriptor: a shell duplicates the descriptor of `> file`,
        and closes the first one before it writes.
        """
        caller, absolute_path = self._caller_tid(), self._mountpoint + b"/" + path
        if caller != opener:
            process = procfs.find_process_id(opener)
            if process != procfs.find_process_id(caller) and procfs.has_file_open(process, absolute_path):
                return False
        # False, not None: if /proc may not be read, the last close is known only at its release.
        return has_writes or procfs.has_file_open(caller, absolute_path) is False

    def fsync(self, handle: int, datasync: bool) -> None:
        self._get_handle(handle).fsync()

    def release(self, handle: int) -> None:
        with self._lock:
            entry = self._file_handles.pop(handle, None)
        if entry is None:
            return
        opened = entry.handle
        if type(opened) is ReadWriteHandle and opened.try_release():
            return
        if type(opened) is not ReadHandle or not opened.is_in_memory:
            self._binding.prepare_to_block()
        opened.release()

    # -- the tree ----------------------------------------------------------------------------------------------------

    def _require_namespace(self) -> NamespaceOperations:
        if self._namespace is None:
            raise ReadOnlyError("the mount is read-only: mount with --write to change keys")
        return self._namespace

    def mkdir(self, path: bytes, mode: int) -> None:
        self._require_namespace().mkdir(path[1:], mode)

    def rmdir(self, path: bytes) -> None:
        self._require_namespace().rmdir(path[1:])

    def unlink(self, path: bytes) -> None:
        self._require_namespace().unlink(path[1:], caller=self._caller_tid())

    def unlink_open(self, path: bytes, hidden_path: bytes) -> None:
        caller = self._caller_tid()
        self._require_namespace().unlink_open(
            path[1:], hidden_path[1:], is_removal=procfs.is_unlinking(caller), caller=caller
        )
        self._retarget_open_files(path[1:], None)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        if flags & ~RENAME_NOREPLACE:
            raise InvalidArgumentError("of the flags of renameat2(2), only RENAME_NOREPLACE is supported")
        self._require_namespace().rename(old[1:], new[1:], replace=not flags & RENAME_NOREPLACE)
        self._retarget_open_files(old[1:], new[1:])

    def symlink(self, target: bytes, path: bytes) -> None:
        raise NotPermittedError("Redis has no symbolic links")

    def link(self, old: bytes, new: bytes) -> None:
        raise NotPermittedError("Redis has no hard links")

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        if not stat.S_ISREG(mode):
            raise NotPermittedError("Redis has no devices, pipes or sockets")
        opened = self.create(path, os.O_WRONLY | os.O_EXCL, mode | 0o044)
        self.release(opened.handle)

    def _find_memory_fs(self, path: bytes) -> MemoryFS | None:
        """Return the memory filesystem if the path is in it."""
        overlay = self._overlay
        return overlay.memory_fs if overlay is not None and overlay.memory_fs.exists(path[1:]) else None

    def chmod(self, path: bytes | None, mode: int, handle: int | None) -> None:
        """Succeed without effect, except on memory files: programs fail otherwise."""
        self.getattr(path, handle)
        if path is not None and (memory_fs := self._find_memory_fs(path)) is not None:
            memory_fs.set_mode(path[1:], mode)

    def chown(self, path: bytes | None, uid: int, gid: int, handle: int | None) -> None:
        """Succeed without effect: programs fail otherwise."""
        self.getattr(path, handle)

    def utimens(self, path: bytes | None, atime: UtimensTime, mtime: UtimensTime, handle: int | None) -> None:
        """Succeed without effect, except on memory files: programs fail otherwise."""
        self.getattr(path, handle)
        if mtime != UTIME_OMIT and path is not None and (memory_fs := self._find_memory_fs(path)) is not None:
            memory_fs.set_mtime(path[1:], mtime if isinstance(mtime, int) else time.time_ns())

    def statfs(self, path: bytes) -> Mapping[str, int]:
        return self._statfs.statfs()

    # -- extended attributes -----------------------------------------------------------------------------------------

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        path = path[1:]
        if name.startswith(XATTR_PREFIX):
            return self._filesystem.xattrs.get(self._filesystem.resolver.resolve(path), name)
        if name == STATUS_XATTR and not path:
            return self._mount.encode_status()
        if self._overlay is not None and self._overlay.memory_fs.exists(path):
            return self._overlay.memory_fs.getxattr(path, name)
        raise NoAttributeError("no such attribute")

    def listxattr(self, path: bytes) -> Sequence[bytes]:
        path = path[1:]
        node = self._filesystem.resolver.resolve(path)
        if isinstance(node, MemoryNode):
            assert self._overlay is not None
            return self._overlay.memory_fs.listxattr(path)
        return self._filesystem.xattrs.list_names(node)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        path = path[1:]
        namespace = self._require_namespace()
        if self._overlay is not None and self._overlay.memory_fs.exists(path):
            self._overlay.memory_fs.setxattr(path, name, value, flags)
            return
        if name in DERIVED_XATTRS:
            return  # succeed without effect, as chmod does: programs that copy a file's attributes fail otherwise
        if name != TTL_XATTR:
            raise NotSupportedError("only user.redis.ttl can be set")
        if flags & os.XATTR_CREATE:
            raise ExistsError("user.redis.ttl always exists")
        namespace.set_expiry(path, parse_ttl(value))

    def removexattr(self, path: bytes, name: bytes) -> None:
        path = path[1:]
        namespace = self._require_namespace()
        if self._overlay is not None and self._overlay.memory_fs.exists(path):
            self._overlay.memory_fs.removexattr(path, name)
        elif name == TTL_XATTR:
            namespace.set_expiry(path, -1)
        else:
            raise NoAttributeError("no such attribute")


@dataclass(frozen=True, slots=True)
class _DirectoryListing:
    """An open directory, which each iteration lists again."""

    adapter: FuseAdapter
    path: bytes
    node: TreeNode

    def __iter__(self) -> Iterator[ReaddirItem]:
        return self.adapter._iter_listing(self.path, self.node)


def _hash_content(content: FileContent | None) -> int | None:
    """Return a hash of the bytes of a content that is in memory; else None."""
    data = inline_bytes(content)
    return None if data is None else hash(data)


def inode_number(path: bytes) -> int:
    """Return the inode number of a path, the same in every mount.

    Two paths share one with probability 2^-63.
    """
    return int.from_bytes(blake2b(path, digest_size=8).digest(), "little") >> 1 or 1

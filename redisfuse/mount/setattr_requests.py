"""Requests to change attributes: truncate(2), chmod(2) and utimensat(2)."""

from __future__ import annotations

import contextlib
import time

from redisfuse.errors import ConflictError
from redisfuse.fuse.interface import TIME_NOW, SetAttributes
from redisfuse.mount.open_handles import OpenHandles
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.handles import MemoryHandle, ReadWriteHandle
from redisfuse.vfs.inodes import Inode
from redisfuse.vfs.namespace import NamespaceOperations
from redisfuse.vfs.nodes import MemoryNode


class SetattrRequests:
    """Changes of size, mode and times. Stateless and thread-safe."""

    def __init__(self, filesystem: Filesystem, handles: OpenHandles) -> None:
        self._filesystem = filesystem
        self._handles = handles

    def apply(self, namespace: NamespaceOperations, inode: Inode, changes: SetAttributes, handle: int | None) -> None:
        """Change the size of a file, by its handle if there is one.

        Mode and times are changed in memory files only; for others that succeeds without effect, because programs fail
        where it is an error. Raises ConflictError for an unlinked file that is not open for writing.
        """
        if changes.size is not None:
            self._truncate(namespace, inode, changes.size, handle)
        overlay, path = self._filesystem.overlay, inode.path
        if overlay is not None and not inode.is_detached and overlay.memory_fs.exists(path):
            if changes.mode is not None:
                overlay.memory_fs.set_mode(path, changes.mode)
            if changes.mtime_ns is not None:
                now = changes.mtime_ns == TIME_NOW
                overlay.memory_fs.set_mtime(path, time.time_ns() if now else changes.mtime_ns)

    def _truncate(self, namespace: NamespaceOperations, inode: Inode, size: int, handle: int | None) -> None:
        inode.page_token = None
        if handle is not None:
            self._handles.get_file(handle).handle.truncate(size)
            return
        if inode.is_detached:  # through /proc/PID/fd; its path may lead to another file by now
            _truncate_detached(inode, size)
            return
        path = inode.path
        node = self._filesystem.resolver.resolve(path)
        if isinstance(node, MemoryNode):
            assert self._filesystem.overlay is not None
            with contextlib.closing(self._filesystem.overlay.memory_fs.open(path)) as file:
                file.truncate(size)
        else:
            namespace.truncate(path, size)


def _truncate_detached(inode: Inode, size: int) -> None:
    for handle in inode.handles:
        if isinstance(handle, MemoryHandle) or (isinstance(handle, ReadWriteHandle) and handle.is_writer):
            handle.truncate(size)
            return
    raise ConflictError("the file was unlinked, and is not open for writing")

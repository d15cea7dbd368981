"""Opening files: the handle that serves a descriptor, and the flags of the reply."""

from __future__ import annotations

import os

from redisfuse.errors import AccessError, ConflictError, IsDirectoryError
from redisfuse.fuse.interface import OpenFlag, OpenReply
from redisfuse.mount.open_handles import OpenFileEntry, OpenHandles, share_pages
from redisfuse.vfs.coherence import Coherence
from redisfuse.vfs.content_types import FileContent, InlineContent
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.handles import Handle, MemoryHandle, ReadHandle, ReadWriteHandle
from redisfuse.vfs.inodes import Inode
from redisfuse.vfs.nodes import KeyNode, MemoryNode, OpenFileNode, RefreshNode, TreeNode
from redisfuse.vfs.open_file import OpenFile
from redisfuse.vfs.overlay import Overlay


class FileOpener:
    """Opens the files of a mount. Thread-safe.

    `writes_directly`, set at the start: descriptors that write use direct I/O. Through the page cache, the kernel would
    divide a write(2) at the first page that it fills in part, and a commit could come between (docs/kernel-notes.md).
    """

    def __init__(self, filesystem: Filesystem, handles: OpenHandles, coherence: Coherence) -> None:
        self._filesystem = filesystem
        self._handles = handles
        self._coherence = coherence
        self.writes_directly = False

    @property
    def _overlay(self) -> Overlay:
        assert self._filesystem.overlay is not None  # write mode
        return self._filesystem.overlay

    def open(self, inode: Inode, node: TreeNode, flags: int, *, writing: bool, opener: int) -> OpenReply:
        """Open the node that an inode's path was resolved to.

        `opener` is the calling thread. Raises AccessError, IsDirectoryError, and the errors of fetching the content.
        """
        if isinstance(node, MemoryNode) and not node.is_directory:
            return self._open_memory_file(inode, flags)
        if isinstance(node, OpenFileNode):
            file = self._overlay.open_files.add_handle(node.file, is_writer=writing)
            return self._open_file(inode, file, flags, writing=writing, opener=opener)
        if self._filesystem.overlay is not None and isinstance(node, KeyNode) and node.is_editable:
            files = self._overlay.open_files
            if writing:
                files.key_writer.check_allowed(node.target.key)
            file = files.open_handle(node.target, inode.path, is_writer=writing)
            return self._open_file(inode, file, flags, writing=writing, opener=opener)
        if writing:
            raise AccessError("only strings and hash fields can be edited")
        if isinstance(node, RefreshNode):
            content: FileContent = InlineContent(b"")
            return self._reply(inode, ReadHandle(content), content, flags)
        if not isinstance(node, KeyNode):
            raise IsDirectoryError("a directory")
        content, is_streamed = self._filesystem.content_loader.open_content(node)
        return self._reply(inode, ReadHandle(content), content, flags, is_streamed=is_streamed)

    def open_detached(self, inode: Inode, flags: int, *, writing: bool, opener: int) -> OpenReply:
        """Open an unlinked file again, through /proc/PID/fd.

        Raises ConflictError if it is not open: its name may lead to another file by now.
        """
        for handle in inode.handles:
            if isinstance(handle, ReadWriteHandle):
                file = self._overlay.open_files.add_handle(handle.file, is_writer=writing)
                return self._open_file(inode, file, flags, writing=writing, opener=opener)
        raise ConflictError("the file was removed or replaced before it was opened")  # ESTALE: looked up again

    def open_created(self, inode: Inode, created: OpenFile | bytes, flags: int, *, opener: int) -> OpenReply:
        """Open a file that `NamespaceOperations.create` returned."""
        if isinstance(created, bytes):
            return self._open_memory_file(inode, flags)
        return self._open_file(inode, created, flags, writing=True, opener=opener)

    def discard_created(self, created: OpenFile | bytes) -> None:
        """Close a file that `NamespaceOperations.create` returned."""
        if not isinstance(created, bytes):
            self._overlay.open_files.close_handle(created, is_writer=True)

    def _open_memory_file(self, inode: Inode, flags: int) -> OpenReply:
        file = self._overlay.memory_fs.open(inode.path)
        if flags & os.O_TRUNC:
            file.truncate(0)
            inode.set_size(0)
        return self._reply(inode, MemoryHandle(file), None, flags)

    def _open_file(self, inode: Inode, file: OpenFile, flags: int, *, writing: bool, opener: int) -> OpenReply:
        """Open a handle, which the file counts already."""
        files, content = self._overlay.open_files, None
        try:
            file.drop_outdated_base()
            if writing and not file.is_new:
                file.begin_edit()
            elif not writing and file.target is not None and (file.size is None or file.shows_redis):
                content = self._filesystem.content_loader.open_growing(file.target)
            handle = ReadWriteHandle(files, file, content, flags, is_writer=writing, opener_tid=opener)
        except BaseException:
            files.close_handle(file, is_writer=writing)
            raise
        if writing and flags & os.O_TRUNC:
            try:
                handle.truncate(0)
            except BaseException:
                handle.release()
                raise
            inode.set_size(0)
        return self._reply(inode, handle, content or file.clean_content, flags)

    def _reply(
        self, inode: Inode, handle: Handle, content: FileContent | None, flags: int, *, is_streamed: bool = False
    ) -> OpenReply:
        number = self._handles.add_file(inode, handle, flags)
        is_writer = flags & os.O_ACCMODE != os.O_RDONLY or (isinstance(handle, ReadWriteHandle) and handle.is_writer)
        reply_flags = 0 if is_writer else OpenFlag.NOFLUSH
        if is_streamed:
            reply_flags |= OpenFlag.DIRECT_IO
        else:
            reply_flags |= share_pages(inode, handle, content, is_coherent=self._coherence.is_coherent)
            if not is_writer and not inode.has_size(handle.size):
                self._coherence.kernel_cache.expire_attributes_now(inode, handle.size)
            if self.writes_directly and isinstance(handle, ReadWriteHandle) and handle.is_writer:
                reply_flags |= OpenFlag.DIRECT_IO
        return OpenReply(number, reply_flags)

    # -- renames between Redis and memory ----------------------------------------------------------------------------

    def follow_rename(self, inode: Inode, path: bytes) -> None:
        """Replace the handles of a file that was renamed from Redis to memory or back.

        Its descriptors then write to the file's new place.
        """
        for entry in self._handles.list_files(inode):
            handle = self._open_renamed(entry, path)
            if handle is not None:
                old = entry.handle
                self._handles.replace_handle(entry, handle)
                old.release()

    def _open_renamed(self, entry: OpenFileEntry, path: bytes) -> Handle | None:
        memory_fs, files = self._overlay.memory_fs, self._overlay.open_files
        if isinstance(entry.handle, ReadWriteHandle) and memory_fs.exists(path):
            return MemoryHandle(memory_fs.open(path))
        if not isinstance(entry.handle, MemoryHandle) or memory_fs.exists(path):
            return None
        node, is_writer = self._filesystem.resolver.resolve(path), entry.flags & os.O_ACCMODE != os.O_RDONLY
        if isinstance(node, OpenFileNode):
            file = files.add_handle(node.file, is_writer=is_writer)
        elif isinstance(node, KeyNode) and node.is_editable:
            file = files.open_handle(node.target, path, is_writer=is_writer)
        else:
            return None
        return ReadWriteHandle(files, file, None, entry.flags, is_writer=is_writer, opener_tid=0)

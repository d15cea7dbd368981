"""The kernel's requests, served from the tree.

Node ids to inodes, their paths to the tree, attributes and bytes out.

The only module that knows both `fuse` and `vfs`. Every method may run in many threads at once; there is no lock here.
Each reply says how long the kernel may cache it: for long while every change is pushed to the kernel, else briefly.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Sequence

from redisfuse.errors import (
    AccessError,
    InvalidArgumentError,
    NotFoundError,
    NotPermittedError,
    ReadOnlyError,
)
from redisfuse.fuse.interface import (
    TIME_NOW,
    AttributesReply,
    Buffer,
    ConnectionInfo,
    EntryReply,
    FileAttributes,
    OpenReply,
    RequestContext,
    SetAttributes,
    StatfsReply,
)
from redisfuse.fuse.wire import DirectoryBuffer
from redisfuse.mount.attributes import AttributeBuilder
from redisfuse.mount.closing import ends_writing
from redisfuse.mount.control import MountControl
from redisfuse.mount.directories import DirectoryReader, is_directory_node
from redisfuse.mount.open_handles import OpenHandles
from redisfuse.mount.opening import FileOpener
from redisfuse.mount.unopened_files import UnopenedFiles
from redisfuse.mount.xattr_requests import XattrRequests
from redisfuse.vfs.coherence import Coherence
from redisfuse.vfs.dentry_tracker import DentryTracker
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.handles import ReadHandle, ReadWriteHandle
from redisfuse.vfs.inodes import Inode, InodeTable
from redisfuse.vfs.namespace import NamespaceOperations
from redisfuse.vfs.nodes import KeyNode, MemoryNode, RefreshNode, TreeNode
from redisfuse.vfs.statfs import StatfsProvider

RENAME_NOREPLACE = 1  # renameat2(2)


class FuseAdapter:
    """Serves the kernel's requests from the tree.

    Implements `fuse.interface.FuseOperations`.
    """

    blocking_operations = frozenset(
        (
            *("setattr", "mknod", "mkdir", "unlink", "rmdir", "rename", "create", "fsync", "fsyncdir", "opendir"),
            *("readdir", "statfs", "getxattr", "listxattr", "setxattr", "removexattr"),
        )
    )

    def __init__(
        self,
        filesystem: Filesystem,
        namespace: NamespaceOperations | None,
        attributes: AttributeBuilder,
        inodes: InodeTable,
        *,
        mount: MountControl,
        mountpoint: bytes,
        coherence: Coherence,
        dentry_tracker: DentryTracker,
        directories: DirectoryReader,
        unopened_files: UnopenedFiles | None,
        xattr_requests: XattrRequests,
        statfs: StatfsProvider,
    ) -> None:
        """`namespace` is None in a read-only mount.

        Every request that would change something raises ReadOnlyError.

        `unopened_files` is None where the kernel requests each open.
        """
        self._filesystem = filesystem
        self._namespace = namespace
        self._attributes = attributes
        self._inodes = inodes
        self._mount = mount
        self._mountpoint = mountpoint
        self._coherence = coherence
        self._dentry_tracker = dentry_tracker
        self._directories = directories
        self._unopened_files = unopened_files
        self._xattrs = xattr_requests
        self._statfs = statfs
        self._handles = OpenHandles(inodes)
        self._opener = FileOpener(filesystem, self._handles, coherence)
        self._is_root = os.geteuid() == 0

    # -- start and end -----------------------------------------------------------------------------------------------

    def init(self, connection: ConnectionInfo) -> None:
        self._mount.start()

    def destroy(self) -> None:
        self._mount.stop()

    # -- names and attributes ----------------------------------------------------------------------------------------

    def lookup(self, context: RequestContext, name: bytes) -> EntryReply | float:
        parent = self._inodes.get(context.node_id)
        try:
            return self._entry(context, parent, name)
        except NotFoundError:
            seconds = self._coherence.absent_seconds
            return seconds if seconds and self._inodes.record_absent(parent, name) else 0.0

    def _entry(self, context: RequestContext, parent: Inode, name: bytes) -> EntryReply:
        """Look up a name; the reply counts as a lookup of its inode."""
        if parent.is_detached:
            raise NotFoundError("the directory was removed")
        path = parent.child_path(name)
        self._dentry_tracker.track_path(path)
        node = self._resolve(context, path)
        valid = self._coherence.valid_seconds
        if isinstance(node, RefreshNode):
            self._mount.refresh()
            valid = 0.0
        if self._unopened_files is not None and isinstance(node, KeyNode):
            inode, attributes, is_settled = self._unopened_files.look_up(context, parent, name, node)
            valid = valid if is_settled else 0.0
        else:
            inode = self._inodes.look_up(parent, name, is_directory=is_directory_node(node))
            attributes = self._stat(path, node)
        inode.size = attributes.size
        return EntryReply(inode.node_id, 0, attributes, valid, valid)

    def _resolve(self, context: RequestContext, path: bytes) -> TreeNode:
        node: TreeNode | None = self._filesystem.resolver.resolve_cached(path) if self._namespace is None else None
        if node is None:
            context.prepare_to_block()
            node = self._filesystem.resolver.resolve(path)
        return node

    def _stat(self, path: bytes, node: TreeNode) -> FileAttributes:
        if type(node) is KeyNode and node.is_plain:
            return self._attributes.of_string(path, node)
        return self._attributes.of_stat(path, self._filesystem.stat(node))

    def forget(self, forgets: Iterable[tuple[int, int]]) -> None:
        forgotten = self._inodes.forget(forgets)
        if self._unopened_files is not None:
            self._unopened_files.forget(forgotten)

    def getattr(self, context: RequestContext, handle: int | None) -> AttributesReply:
        inode = self._inodes.get(context.node_id)
        reply = self._getattr(context, inode, is_descriptor=handle is not None)
        inode.size = reply.attributes.size
        return reply

    def access(self, context: RequestContext, mask: int) -> None:
        """Check permissions where the kernel checks none.

        Then requests come from the owner alone.
        """
        mode = self._getattr(context, self._inodes.get(context.node_id), is_descriptor=False).attributes.mode
        granted = mode >> 6 & 7
        if self._is_root:
            granted |= os.R_OK | os.W_OK
        if mask & ~granted:
            raise AccessError("the mode of the file does not allow this")

    def _getattr(self, context: RequestContext, inode: Inode, *, is_descriptor: bool) -> AttributesReply:
        valid = self._coherence.valid_seconds
        if self._unopened_files is not None and not inode.is_directory:
            attributes, is_settled = self._unopened_files.getattr(context, inode, is_descriptor=is_descriptor)
            return AttributesReply(attributes, valid if is_settled else 0.0)
        return AttributesReply(self._describe(context, inode), valid)

    def _describe(self, context: RequestContext, inode: Inode) -> FileAttributes:
        if inode.handles:
            context.prepare_to_block()
            if (attributes := self._attributes.of_edited(inode)) is not None:
                return attributes
        if inode.is_detached:
            return self._attributes.of_open(inode)
        path = inode.path
        self._dentry_tracker.track_path(path)
        try:
            return self._stat(path, self._resolve(context, path))
        except NotFoundError:
            if not inode.handles:
                raise
            return self._attributes.of_open(inode)

    def setattr(self, context: RequestContext, changes: SetAttributes, handle: int | None) -> AttributesReply:
        """Change the size.

        Mode and times of memory files only, as programs fail where that is an error.
        """
        namespace = self._require_namespace()
        inode = self._inodes.get(context.node_id)
        if changes.size is not None:
            self._truncate(namespace, inode, changes.size, handle)
        overlay, path = self._filesystem.overlay, inode.path
        if overlay is not None and not inode.is_detached and overlay.memory_fs.exists(path):
            if changes.mode is not None:
                overlay.memory_fs.set_mode(path, changes.mode)
            if changes.mtime_ns is not None:
                now = changes.mtime_ns == TIME_NOW
                overlay.memory_fs.set_mtime(path, time.time_ns() if now else changes.mtime_ns)
        return self.getattr(context, handle)

    def _truncate(self, namespace: NamespaceOperations, inode: Inode, size: int, handle: int | None) -> None:
        inode.page_token = None
        if handle is not None:
            self._handles.get_file(handle).handle.truncate(size)
            return
        path = inode.path
        node = self._filesystem.resolver.resolve(path)
        if isinstance(node, MemoryNode):
            assert self._filesystem.overlay is not None
            with contextlib.closing(self._filesystem.overlay.memory_fs.open(path)) as file:
                file.truncate(size)
        else:
            namespace.truncate(path, size)

    def statfs(self, context: RequestContext) -> StatfsReply:
        fields = self._statfs.statfs()
        return StatfsReply(
            *(fields["f_blocks"], fields["f_bfree"], fields["f_bavail"], fields["f_files"], 0),
            block_size=fields["f_bsize"],
            name_max=fields["f_namemax"],
        )

    # -- directories -------------------------------------------------------------------------------------------------

    def opendir(self, context: RequestContext, flags: int) -> OpenReply:
        return OpenReply(self._directories.open(self._inodes.get(context.node_id)))

    def readdir(self, context: RequestContext, handle: int, offset: int, buffer: DirectoryBuffer) -> None:
        self._directories.read(handle, offset, buffer)

    def releasedir(self, context: RequestContext, handle: int) -> None:
        self._directories.close(handle)

    def fsyncdir(self, context: RequestContext, handle: int, datasync: bool) -> None:
        """Do nothing.

        Each change of a directory is in Redis when its system call returns.
        """

    # -- opening -----------------------------------------------------------------------------------------------------

    def open(self, context: RequestContext, flags: int) -> OpenReply | None:
        if self._unopened_files is not None:
            return None
        inode = self._inodes.get(context.node_id)
        writing = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if self._namespace is None:
            if writing:
                raise ReadOnlyError("the mount is read-only: mount with --write to change keys")
            if (reply := self._opener.open_cached(inode, flags)) is not None:
                return reply
        context.prepare_to_block()
        if inode.is_detached:  # through /proc/PID/fd
            return self._opener.open_detached(inode, flags, writing=writing, opener=context.pid)
        node = self._filesystem.resolver.resolve(inode.path)
        if isinstance(node, RefreshNode):
            self._mount.refresh()
        return self._opener.open(inode, node, flags, writing=writing, opener=context.pid)

    def create(self, context: RequestContext, name: bytes, flags: int, mode: int) -> tuple[EntryReply, OpenReply]:
        parent = self._inodes.get(context.node_id)
        path = parent.child_path(name)
        created = self._require_namespace().create(
            path, exclusive=bool(flags & os.O_EXCL), mode=mode, caller=context.pid
        )
        self._filesystem.touch_directory(parent.path)
        try:
            entry = self._entry(context, parent, name)
        except BaseException:
            self._opener.discard_created(created)
            raise
        inode = self._inodes.get(entry.node_id)
        return entry, self._opener.open_created(inode, created, flags, opener=context.pid)

    # -- bytes -------------------------------------------------------------------------------------------------------

    def read(self, context: RequestContext, handle: int, offset: int, size: int) -> Buffer:
        if self._unopened_files is not None:
            return self._unopened_files.read(context, self._inodes.get(context.node_id), offset, size)
        opened = self._handles.get_file(handle).handle
        if type(opened) is ReadHandle and (data := opened.try_read(offset, size)) is not None:
            return data
        context.prepare_to_block()
        return opened.read(offset, size)

    def write(self, context: RequestContext, handle: int, offset: int, data: memoryview, flags: int) -> int:
        entry, written, append = self._handles.get_file(handle), bytes(data), bool(flags & os.O_APPEND)
        opened, inode = entry.handle, entry.inode
        inode.page_token = None
        if not (type(opened) is ReadWriteHandle and opened.try_write(offset, written, append=append)):
            context.prepare_to_block()
            opened.write(offset, written, append=append)
        inode.size = max(inode.size, offset + len(written))
        return len(written)

    def flush(self, context: RequestContext, handle: int) -> None:
        entry = self._handles.get_file(handle)
        opened = entry.handle
        if not isinstance(opened, ReadWriteHandle) or not opened.is_writer:
            return
        context.prepare_to_block()
        path = self._mountpoint + b"/" + entry.inode.path
        opened.flush(not opened.file.is_dirty or ends_writing(context.pid, opened, path))

    def fsync(self, context: RequestContext, handle: int, datasync: bool) -> None:
        self._handles.get_file(handle).handle.fsync()

    def release(self, context: RequestContext, handle: int) -> None:
        entry = self._handles.remove_file(handle)
        if entry is None:
            return
        opened = entry.handle
        if type(opened) is ReadWriteHandle and opened.try_release():
            return
        if type(opened) is not ReadHandle or not opened.is_in_memory:
            context.prepare_to_block()
        opened.release()

    # -- the tree ----------------------------------------------------------------------------------------------------

    def _require_namespace(self) -> NamespaceOperations:
        if self._namespace is None:
            raise ReadOnlyError("the mount is read-only: mount with --write to change keys")
        return self._namespace

    def mknod(self, context: RequestContext, name: bytes, mode: int, device: int) -> EntryReply:
        if not stat.S_ISREG(mode):
            raise NotPermittedError("Redis has no devices, pipes or sockets")
        entry, opened = self.create(context, name, os.O_WRONLY | os.O_EXCL, mode | 0o044)
        self.release(context, opened.handle)
        return entry

    def mkdir(self, context: RequestContext, name: bytes, mode: int) -> EntryReply:
        parent = self._inodes.get(context.node_id)
        self._require_namespace().mkdir(parent.child_path(name), mode)
        self._filesystem.touch_directory(parent.path, parent.child_path(name))
        return self._entry(context, parent, name)

    def rmdir(self, context: RequestContext, name: bytes) -> None:
        parent = self._inodes.get(context.node_id)
        self._require_namespace().rmdir(parent.child_path(name))
        self._inodes.detach(parent, name)
        self._filesystem.touch_directory(parent.path)

    def unlink(self, context: RequestContext, name: bytes) -> None:
        parent = self._inodes.get(context.node_id)
        self._require_namespace().unlink(parent.child_path(name), caller=context.pid)
        self._inodes.detach(parent, name)
        self._filesystem.touch_directory(parent.path)

    def rename(self, context: RequestContext, name: bytes, new_parent_id: int, new_name: bytes, flags: int) -> None:
        if flags & ~RENAME_NOREPLACE:
            raise InvalidArgumentError("of the flags of renameat2(2), only RENAME_NOREPLACE is supported")
        parent, new_parent = self._inodes.get(context.node_id), self._inodes.get(new_parent_id)
        old, new = parent.child_path(name), new_parent.child_path(new_name)
        replace = not flags & RENAME_NOREPLACE
        self._require_namespace().rename(old, new, replace=replace, caller=context.pid)
        if old != new:
            moved = self._inodes.rename(parent, name, new_parent, new_name)
            if moved is not None and moved.handles:
                self._opener.follow_rename(moved, new)
        self._filesystem.touch_directory(parent.path, new_parent.path)

    # -- extended attributes -----------------------------------------------------------------------------------------

    def getxattr(self, context: RequestContext, name: bytes) -> bytes:
        return self._xattrs.get(self._inodes.get(context.node_id).path, name)

    def listxattr(self, context: RequestContext) -> Sequence[bytes]:
        return self._xattrs.list_names(self._inodes.get(context.node_id).path)

    def setxattr(self, context: RequestContext, name: bytes, value: bytes, flags: int) -> None:
        self._xattrs.set(self._require_namespace(), self._inodes.get(context.node_id).path, name, value, flags)

    def removexattr(self, context: RequestContext, name: bytes) -> None:
        self._xattrs.remove(self._require_namespace(), self._inodes.get(context.node_id).path, name)

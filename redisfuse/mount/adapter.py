"""The operations of the FUSE session, served from the tree.

A node id leads to its inode, the path of the inode to the tree. Each reply has its own time-outs: long ones while the
kernel is notified of every change, else short ones.

Threads: many workers call every method at once. This module has no lock.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import (
    AccessError,
    ConflictError,
    InvalidArgumentError,
    NoAttributeError,
    NotFoundError,
    NotPermittedError,
    ReadOnlyError,
)
from redisfuse.fuse.interface import (
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
from redisfuse.fuse.wire import DirectoryBuffer, InitFlag
from redisfuse.mount.attributes import AttributeBuilder
from redisfuse.mount.closing import ends_writing
from redisfuse.mount.control import MountControl
from redisfuse.mount.directories import OpenDirectories, is_directory_node
from redisfuse.mount.inode_versions import InodeVersions
from redisfuse.mount.open_handles import OpenHandles
from redisfuse.mount.opening import FileOpener
from redisfuse.mount.setattr_requests import SetattrRequests
from redisfuse.mount.unopened_files import UnopenedFiles, end_pause
from redisfuse.mount.xattr_requests import XattrRequests
from redisfuse.vfs.coherence import Coherence
from redisfuse.vfs.dentry_tracker import DentryTracker
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.handles import ReadHandle, ReadWriteHandle
from redisfuse.vfs.inodes import Inode, InodeTable
from redisfuse.vfs.namespace import NamespaceOperations
from redisfuse.vfs.nodes import KeyNode, RefreshNode, TreeNode
from redisfuse.vfs.statfs import StatfsProvider
from redisfuse.vfs.xattrs import list_names_of_key

RENAME_NOREPLACE = 1  # renameat2(2)


class FuseAdapter:
    """The operations of one mount; implements `fuse.interface.FuseOperations`."""

    blocking_operations = frozenset(
        (
            *("setattr", "mknod", "mkdir", "unlink", "rmdir", "rename", "create", "fsync", "fsyncdir", "opendir"),
            *("readdir", "statfs", "listxattr", "setxattr", "removexattr"),
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
        directories: OpenDirectories,
        unopened_files: UnopenedFiles | None,
        xattr_requests: XattrRequests,
        statfs: StatfsProvider,
    ) -> None:
        """Keep the parts of a mount.

        `namespace` is None in a read-only mount, where every request to change something raises ReadOnlyError.
        `unopened_files` is None where the kernel sends OPEN.
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
        self._versions = InodeVersions(filesystem, attributes)
        self._handles = OpenHandles(inodes)
        self._setattrs = SetattrRequests(filesystem, self._handles)
        self._opener = FileOpener(filesystem, self._handles, coherence)
        self._is_root = os.geteuid() == 0

    # -- start and end -----------------------------------------------------------------------------------------------

    def init(self, connection: ConnectionInfo) -> None:
        self._opener.writes_directly = bool(connection.flags & InitFlag.DIRECT_IO_ALLOW_MMAP)
        self._mount.start()

    def destroy(self) -> None:
        self._mount.stop()

    # -- names and attributes ----------------------------------------------------------------------------------------

    def lookup(self, context: RequestContext, name: bytes) -> EntryReply | float:
        parent = self._inodes.get(context.node_id)
        path = parent.child_path(name)
        token = self._track_path(context, path)
        try:
            return self._entry(context, parent, name, path, token)
        except NotFoundError:
            seconds = self._coherence.absent_seconds
            if not seconds or not self._inodes.record_absent(parent, name):
                return 0.0
            return seconds if self._dentry_tracker.is_current(token) else 0.0

    def _look_up_created(self, context: RequestContext, parent: Inode, name: bytes) -> EntryReply:
        path = parent.child_path(name)
        return self._entry(context, parent, name, path, self._track_path(context, path))

    def _track_path(self, context: RequestContext, path: bytes) -> int:
        end_pause(context, self._filesystem, path)
        return self._dentry_tracker.track_path(path)

    def _entry(self, context: RequestContext, parent: Inode, name: bytes, path: bytes, token: int) -> EntryReply:
        """Return the entry of a name, and count a lookup of its inode."""
        if parent.is_detached:
            raise NotFoundError("the directory was removed")
        node = self._resolve(context, path)
        valid = self._coherence.valid_seconds
        if isinstance(node, RefreshNode):
            self._mount.refresh()
            valid = 0.0
        if self._unopened_files is not None and isinstance(node, KeyNode):
            inode, attributes, is_settled = self._unopened_files.look_up(context, parent, name, node)
            valid = valid if is_settled else 0.0
        else:
            known = parent.children.get(name) if parent.children is not None else None
            version = 0
            if known is not None and self._versions.is_superseded(context, known, node):
                version = self._versions.version_of(node)
                for handle in known.handles:
                    handle.freeze()
            inode = self._inodes.look_up(parent, name, is_directory=is_directory_node(node), version=version)
            attributes, is_settled = self._versions.stat_current(inode, path, node)
            valid = valid if is_settled else 0.0
        inode.report_size(attributes.size)
        inode.xattr_names = list_names_of_key(node) if isinstance(node, KeyNode) else ()
        if not self._dentry_tracker.is_current(token):
            valid = 0.0  # it may have changed since it was resolved
        return EntryReply(inode.node_id, 0, attributes, valid, valid)

    def _resolve(self, context: RequestContext, path: bytes) -> TreeNode:
        node = self._filesystem.resolver.resolve(path)
        if isinstance(node, KeyNode) and not node.is_editable:
            context.prepare_to_block()  # rendering or decoding takes long
        return node

    def forget(self, forgets: Iterable[tuple[int, int]]) -> None:
        forgotten = self._inodes.forget(forgets)
        if self._unopened_files is not None:
            self._unopened_files.forget(forgotten)

    def getattr(self, context: RequestContext, handle: int | None) -> AttributesReply:
        inode = self._inodes.get(context.node_id)
        reply = self._getattr(context, inode, is_descriptor=handle is not None)
        inode.report_size(reply.attributes.size)
        return reply

    def access(self, context: RequestContext, mask: int) -> None:
        """Check the permissions of the owner.

        Where the kernel checks none, all requests come from the owner or root.
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
        attributes, is_settled = self._describe(context, inode)
        return AttributesReply(attributes, valid if is_settled else 0.0)

    def _describe(self, context: RequestContext, inode: Inode) -> tuple[FileAttributes, bool]:
        """Return the attributes of an inode, and whether the kernel may cache them.

        The kernel takes an inode that changes its kind for damaged: ESTALE makes it look the name up again.
        """
        if inode.handles and (attributes := self._attributes.of_edited(inode)) is not None:
            return attributes, True
        if inode.is_detached:
            context.prepare_to_block()
            return self._attributes.of_open(inode), True
        path = inode.path
        self._track_path(context, path)
        try:
            node = self._resolve(context, path)
            is_replaced = is_directory_node(node) is not inode.is_directory
            if is_replaced and not inode.handles:
                raise ConflictError("the name leads to a directory instead of a file, or a file instead of a directory")
            if is_replaced or self._versions.is_superseded(context, inode, node):
                return self._attributes.of_open(inode), True
            return self._versions.stat_current(inode, path, node)
        except NotFoundError:
            if not inode.handles:
                raise
            context.prepare_to_block()
            return self._attributes.of_open(inode), True

    def setattr(self, context: RequestContext, changes: SetAttributes, handle: int | None) -> AttributesReply:
        inode = self._inodes.get(context.node_id)
        self._setattrs.apply(self._require_namespace(), inode, changes, handle)
        return self.getattr(context, handle)

    def statfs(self, context: RequestContext) -> StatfsReply:
        blocks, free_blocks, files, free_files, block_size, name_max = self._statfs.statfs()
        return StatfsReply(blocks, free_blocks, free_blocks, files, free_files, block_size, name_max)

    # -- directories -------------------------------------------------------------------------------------------------

    def opendir(self, context: RequestContext, flags: int) -> OpenReply:
        return OpenReply(self._directories.open(self._inodes.get(context.node_id)))

    def readdir(self, context: RequestContext, handle: int, offset: int, buffer: DirectoryBuffer) -> None:
        self._directories.read(handle, offset, buffer)

    def releasedir(self, context: RequestContext, handle: int) -> None:
        self._directories.close(handle)

    def fsyncdir(self, context: RequestContext, handle: int, datasync: bool) -> None:
        """Do nothing: a change of a directory is in Redis when its call returns."""

    # -- opening -----------------------------------------------------------------------------------------------------

    def open(self, context: RequestContext, flags: int) -> OpenReply | None:
        if self._unopened_files is not None:
            return None
        inode = self._inodes.get(context.node_id)
        writing = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if writing:
            self._require_namespace()
        if inode.is_detached or inode.handles:
            context.prepare_to_block()
        if inode.is_detached:  # through /proc/PID/fd
            return self._opener.open_detached(inode, flags, writing=writing, opener=context.pid)
        try:
            path = inode.path
            end_pause(context, self._filesystem, path)
            node = self._filesystem.resolver.resolve(path)
            if (
                not isinstance(node, KeyNode)
                or not node.is_editable
                or node.length > CHUNK_BYTES
                or self._filesystem.is_open(node)
            ):
                context.prepare_to_block()
            if isinstance(node, RefreshNode):
                self._mount.refresh()
            # Before the comparison with what the other handles read: a change after it must make the inode outdated.
            version = 0 if writing or (inode.handles and not inode.version) else self._versions.version_of(node)
            if self._versions.is_superseded(context, inode, node):
                raise ConflictError("the file was changed before it was opened")  # looked up again, see below
            reply = self._opener.open(inode, node, flags, writing=writing, opener=context.pid)
            self._inodes.set_version(inode, version)
            return reply
        except NotFoundError as error:  # with ESTALE the kernel looks the name up once more, and creates it if O_CREAT
            context.prepare_to_block()
            self._filesystem.keyspace.wait_for_invalidations()
            raise ConflictError("the file was removed before it was opened") from error

    def create(self, context: RequestContext, name: bytes, flags: int, mode: int) -> tuple[EntryReply, OpenReply]:
        parent = self._inodes.get(context.node_id)
        path = parent.child_path(name)
        created = self._require_namespace().create(
            path, exclusive=bool(flags & os.O_EXCL), mode=mode, caller=context.pid
        )
        self._filesystem.touch_directory(parent.path)
        try:
            entry = self._look_up_created(context, parent, name)
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
        data = opened.try_read(offset, size)
        if data is None:
            context.prepare_to_block()
            data = opened.read(offset, size)
        return data

    def write(
        self, context: RequestContext, handle: int, offset: int, data: memoryview, flags: int, is_mapped: bool
    ) -> int:
        entry, written, append = self._handles.get_file(handle), bytes(data), bool(flags & os.O_APPEND)
        opened, inode = entry.handle, entry.inode
        inode.page_token = None
        if is_mapped and isinstance(opened, ReadWriteHandle):
            context.prepare_to_block()
            opened.write_mapped(offset, written)
        elif not (type(opened) is ReadWriteHandle and opened.try_write(offset, written, append=append)):
            context.prepare_to_block()
            opened.write(offset, written, append=append)
        inode.set_size(max(inode.size, offset + len(written)))
        return len(written)

    def flush(self, context: RequestContext, handle: int) -> None:
        entry = self._handles.get_file(handle)
        opened = entry.handle
        if not isinstance(opened, ReadWriteHandle) or not opened.is_writer:
            return
        context.prepare_to_block()
        opened.flush(not opened.file.is_dirty or ends_writing(context.pid, opened, self._mountpoint, entry.inode.path))

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
        return self._look_up_created(context, parent, name)

    def rmdir(self, context: RequestContext, name: bytes) -> None:
        parent = self._inodes.get(context.node_id)
        self._require_namespace().rmdir(parent.child_path(name))
        self._inodes.detach(parent, name)
        self._filesystem.touch_directory(parent.path)

    def unlink(self, context: RequestContext, name: bytes) -> None:
        parent = self._inodes.get(context.node_id)
        with self._inodes.leaving(parent, name):
            self._require_namespace().unlink(parent.child_path(name), caller=context.pid)
        self._inodes.detach(parent, name)
        self._filesystem.touch_directory(parent.path)

    def rename(self, context: RequestContext, name: bytes, new_parent_id: int, new_name: bytes, flags: int) -> None:
        if flags & ~RENAME_NOREPLACE:
            raise InvalidArgumentError("of the flags of renameat2(2), only RENAME_NOREPLACE is supported")
        parent, new_parent = self._inodes.get(context.node_id), self._inodes.get(new_parent_id)
        old, new = parent.child_path(name), new_parent.child_path(new_name)
        replace = not flags & RENAME_NOREPLACE
        with self._inodes.leaving(parent, name):
            self._require_namespace().rename(old, new, replace=replace, caller=context.pid)
        if old != new:
            moved = self._inodes.rename(parent, name, new_parent, new_name)
            if moved is not None and moved.handles:
                self._opener.follow_rename(moved, new)
            if moved is not None and moved.is_directory:
                self._filesystem.touch_directory(new)
        self._filesystem.touch_directory(parent.path, new_parent.path)

    # -- extended attributes -----------------------------------------------------------------------------------------

    def getxattr(self, context: RequestContext, name: bytes) -> bytes:
        inode = self._inodes.get(context.node_id)
        if inode.is_detached:
            raise NoAttributeError("the file was unlinked, and has no attributes any more")
        context.prepare_to_block()
        return self._xattrs.get(inode.path, name)

    def listxattr(self, context: RequestContext) -> Sequence[bytes]:
        inode = self._inodes.get(context.node_id)
        if inode.is_detached:
            return ()
        if inode.xattr_names and not inode.handles:
            return inode.xattr_names  # current as long as the kernel caches the name
        return self._xattrs.list_names(inode.path)

    def setxattr(self, context: RequestContext, name: bytes, value: bytes, flags: int) -> None:
        inode = self._inodes.get_attached(context.node_id)
        self._xattrs.set(self._require_namespace(), inode.path, name, value, flags)

    def removexattr(self, context: RequestContext, name: bytes) -> None:
        self._xattrs.remove(self._require_namespace(), self._inodes.get_attached(context.node_id).path, name)

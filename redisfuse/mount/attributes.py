"""The attributes of files and directories, in the form of FUSE replies."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from hashlib import blake2b

from redisfuse.fuse.interface import FileAttributes
from redisfuse.vfs.filesystem import Filesystem, Stat
from redisfuse.vfs.handles import Handle, MemoryHandle, ReadWriteHandle
from redisfuse.vfs.inodes import Inode
from redisfuse.vfs.nodes import KeyNode, OpenFileNode


@dataclass(frozen=True, slots=True)
class Permissions:
    """Owner and permission bits.

    By default 0400 and 0500, in write mode 0600 and 0700; `-o umask=` grants more.
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


class AttributeBuilder:
    """Builds attributes from the state of the tree. Stateless and thread-safe."""

    def __init__(self, filesystem: Filesystem, permissions: Permissions) -> None:
        self._filesystem = filesystem
        self.permissions = permissions
        self.string_mode = permissions.file_mode(Stat(False, 0, 0, True))
        self.directory_mode = permissions.file_mode(Stat(True, 0, 0, True))

    def of_stat(self, path: bytes, file_stat: Stat) -> FileAttributes:
        """Return the attributes of a file or directory."""
        owner, mtime_ns = self.permissions, file_stat.mtime_ns
        return FileAttributes(
            inode_number(path),
            owner.file_mode(file_stat),
            file_stat.link_count,
            file_stat.size,
            mtime_ns,
            mtime_ns,
            owner.uid,
            owner.gid,
            file_stat.allocated_bytes,
        )

    def of_string(self, path: bytes, node: KeyNode) -> FileAttributes:
        """Return the attributes of a plain string, the same as those of `of_stat`.

        This is faster, and most files are plain strings.
        """
        owner, mtime_ns = self.permissions, self._filesystem.get_mtime_ns(node.target)
        return FileAttributes(
            inode_number(path), self.string_mode, 1, node.length, mtime_ns, mtime_ns, owner.uid, owner.gid
        )

    def of_edited(self, inode: Inode) -> FileAttributes | None:
        """Return the attributes of an edited, new or unlinked file.

        They don't depend on its path, which may lead to another file by now. None for any other file.
        """
        for handle in inode.handles:
            if not isinstance(handle, ReadWriteHandle) or handle.edited_size is None:
                continue
            if not handle.file.may_be_outdated:
                return self.of_stat(inode.path, self._filesystem.stat(OpenFileNode(handle.file)))
        return None

    def of_open(self, inode: Inode) -> FileAttributes:
        """Return the attributes of an unlinked or superseded inode.

        They are those of its open handles.
        """
        mtime_ns = self._filesystem.mount_time_ns
        if inode.is_directory or not inode.handles:
            file_stat = Stat(inode.is_directory, 0, mtime_ns, True, link_count=0)
        else:
            file_stat = self._stat_handle(inode.handles[0], mtime_ns)
        return self.of_stat(inode.path, file_stat)

    def _stat_handle(self, handle: Handle, mtime_ns: int) -> Stat:
        if isinstance(handle, MemoryHandle):
            junk = handle.file.stat
            return Stat(False, junk.size, junk.mtime_ns, True, mode=junk.mode, link_count=0)
        return Stat(False, handle.size, mtime_ns, isinstance(handle, ReadWriteHandle), link_count=0)


def inode_number(path: bytes) -> int:
    """Return the inode number of a path, the same in every mount.

    Two paths share one with probability 2^-63.
    """
    return int.from_bytes(blake2b(path, digest_size=8).digest(), "little") >> 1 or 1

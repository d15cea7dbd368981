"""The version of the content that an open inode has, where the kernel sends OPEN.

The kernel has one size for each inode. So all handles of an inode that was opened for reading only read one version of
the content, `Inode.version`: once another client has changed it, the name gets a new inode.
"""

from __future__ import annotations

from redisfuse.fuse.interface import FileAttributes, RequestContext
from redisfuse.mount.attributes import AttributeBuilder
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.handles import ReadWriteHandle
from redisfuse.vfs.inodes import Inode
from redisfuse.vfs.nodes import KeyNode, TreeNode


class InodeVersions:
    """Compares open inodes with what their paths lead to. Stateless and thread-safe."""

    def __init__(self, filesystem: Filesystem, attributes: AttributeBuilder) -> None:
        self._filesystem = filesystem
        self._attributes = attributes

    def version_of(self, node: TreeNode) -> int:
        """Return the current version of the content of a key's file; 0 for others."""
        return self._filesystem.keyspace.get_version(node.target.key) if isinstance(node, KeyNode) else 0

    def is_superseded(self, context: RequestContext, inode: Inode, node: TreeNode) -> bool:
        """Return whether an inode's handles read another content than its path's."""
        if not inode.version or not isinstance(node, KeyNode):
            return False
        if inode.handles:
            context.prepare_to_block()
        if self._reads_other_length(inode, node):  # the server's message has yet to arrive
            self._filesystem.metadata.invalidate([node.target.key])
            self._filesystem.keyspace.mark_dirty(node.target.key)
        version = self.version_of(node)
        if not inode.is_outdated(version):
            return False
        by_others = self._filesystem.keyspace.was_changed_by_others(node.target.key, inode.version)
        if by_others and not all(handle.follow() for handle in inode.handles):
            return True
        inode.version = version
        return False

    def stat_current(self, inode: Inode, path: bytes, node: TreeNode) -> tuple[FileAttributes, bool]:
        """Return the attributes of an inode, and whether the kernel may cache them.

        It is not superseded. Their size is the one that is being read, also if the file has grown since the node was
        resolved.
        """
        if inode.version and isinstance(node, KeyNode) and self._reads_other_length(inode, node):
            return self._attributes.of_open(inode), False
        return self._stat(path, node), True

    def _reads_other_length(self, inode: Inode, node: KeyNode) -> bool:
        readers = (each for each in inode.handles if not (isinstance(each, ReadWriteHandle) and each.is_writer))
        reader = next(readers, None)
        return reader is not None and node.is_editable and reader.size != node.length

    def _stat(self, path: bytes, node: TreeNode) -> FileAttributes:
        if type(node) is KeyNode and node.is_plain:
            return self._attributes.of_string(path, node)
        return self._attributes.of_stat(path, self._filesystem.stat(node))

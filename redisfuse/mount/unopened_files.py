"""Files that the kernel opens without a request.

After ENOSYS in reply to OPEN, in read-only mounts. Each inode is one version of its file.

A warm open, read and close never leaves the kernel. Which files are open is not known here, so what an inode was read
as, it stays: a changed file gets a new inode at the next look-up of its name.
"""

from __future__ import annotations

from collections.abc import Iterable

from redisfuse.fuse import procfs
from redisfuse.fuse.interface import FileAttributes, RequestContext
from redisfuse.mount.attributes import AttributeBuilder
from redisfuse.vfs.dentry_tracker import DentryTracker
from redisfuse.vfs.filesystem import Filesystem, Stat
from redisfuse.vfs.growing_content import GrowingContent
from redisfuse.vfs.inodes import Inode, InodeTable
from redisfuse.vfs.nodes import KeyNode, RefreshNode, TreeNode
from redisfuse.vfs.pinned_contents import PinnedContent, PinnedContents

MAX_HOT_VALUE_BYTES = 64 * 1024
"""A longer value is not fetched before it is read."""


class UnopenedFiles:
    """Attributes and bytes of the files of such a mount.

    Thread-safe; it has no state of its own.
    """

    def __init__(
        self,
        filesystem: Filesystem,
        attributes: AttributeBuilder,
        inodes: InodeTable,
        contents: PinnedContents,
        dentry_tracker: DentryTracker,
    ) -> None:
        self._filesystem = filesystem
        self._attributes = attributes
        self._inodes = inodes
        self._contents = contents
        self._dentry_tracker = dentry_tracker

    def is_hot_value(self, node: KeyNode) -> bool:
        """Return whether a value changes so often that it may differ when it is read."""
        return (
            self._filesystem.keyspace.is_hot(node.target.key)
            and node.is_editable
            and node.length <= MAX_HOT_VALUE_BYTES
        )

    def look_up(
        self, context: RequestContext, parent: Inode, name: bytes, node: KeyNode
    ) -> tuple[Inode, FileAttributes, bool]:
        """Return a file's inode with one lookup more, and its attributes.

        The last value: whether the kernel may cache both.
        """
        version = self._contents.current_version(node.target.key)
        inode = self._inodes.look_up(parent, name, is_directory=False, version=version)
        try:
            return inode, *self._describe(context, inode, node)
        except BaseException:
            self.forget(self._inodes.forget([(inode.node_id, 1)]))
            raise

    def getattr(self, context: RequestContext, inode: Inode, *, is_descriptor: bool) -> tuple[FileAttributes, bool]:
        """Return the attributes of a file, and whether the kernel may cache them.

        `is_descriptor`: for a read or a seek. A file of unknown length is then read further, into the kernel's pages.
        """
        path = inode.path
        self._dentry_tracker.track_path(path)
        pinned = inode.content
        if pinned is None:
            node: TreeNode | None = self._filesystem.resolver.resolve_cached(path)
            if node is None:
                context.prepare_to_block()
                node = self._filesystem.resolver.resolve(path)
            if isinstance(node, RefreshNode):
                return self._attributes.of_stat(path, self._filesystem.stat(node)), False
            if isinstance(node, KeyNode):
                attributes, is_exact = self._describe(context, inode, node)
                if is_exact or not is_descriptor or procfs.is_reading(context.pid) is False:
                    return attributes, is_exact
            context.prepare_to_block()
            pinned = self._contents.load(inode)
        if is_descriptor and pinned.is_streamed:
            context.prepare_to_block()
            self._contents.stream_more(inode, pinned, until_end=not procfs.is_reading(context.pid))
        return self._describe_pinned(context, inode, pinned)

    def _describe(self, context: RequestContext, inode: Inode, node: KeyNode) -> tuple[FileAttributes, bool]:
        pinned = inode.content
        if pinned is None and self.is_hot_value(node):
            context.prepare_to_block()
            pinned = self._contents.load(inode, node)
        if pinned is not None:
            return self._describe_pinned(context, inode, pinned)
        path = inode.path
        if node.is_plain:
            return self._attributes.of_string(path, node), True
        context.prepare_to_block()
        file_stat = self._filesystem.stat(node)
        return self._attributes.of_stat(path, file_stat), file_stat.has_exact_size

    def _describe_pinned(
        self, context: RequestContext, inode: Inode, pinned: PinnedContent
    ) -> tuple[FileAttributes, bool]:
        """Return the size as it was read, plus what was appended."""
        if isinstance(pinned.content, GrowingContent) and not pinned.content.is_current:
            context.prepare_to_block()
        is_settled = not self._contents.refresh(inode, pinned)
        return self._attributes.of_stat(inode.path, Stat(False, pinned.size, pinned.mtime_ns, True)), is_settled

    def read(self, context: RequestContext, inode: Inode, offset: int, size: int) -> bytes:
        """Return bytes of a file, pinning its content.

        Raises as `PinnedContents.read` does.
        """
        data = self._contents.read_cached(inode, offset, size)
        if data is None:
            context.prepare_to_block()
            data = self._contents.read(inode, offset, size)
        return data

    def forget(self, inodes: Iterable[Inode]) -> None:
        """Drop what is kept of inodes that the kernel has forgotten."""
        self._contents.forget(inodes)

    def close(self) -> None:
        """Stop the timers."""
        self._contents.close()

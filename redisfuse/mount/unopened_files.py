"""Files that the kernel opens without a request.

In read-only mounts, after ENOSYS in reply to OPEN: a warm open, read and close never leaves the kernel. Because the
open files are unknown, an inode keeps the version of the content that was read first. A changed file gets a new inode
at the next lookup of its name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from redisfuse.fuse.interface import FileAttributes, RequestContext
from redisfuse.mount import procfs
from redisfuse.mount.attributes import AttributeBuilder
from redisfuse.vfs.dentry_tracker import DentryTracker
from redisfuse.vfs.filesystem import Filesystem, Stat
from redisfuse.vfs.growing_content import GrowingContent
from redisfuse.vfs.inodes import Inode, InodeTable
from redisfuse.vfs.nodes import KeyNode, RefreshNode
from redisfuse.vfs.pinned_contents import PinnedContent, PinnedContents

MAX_HOT_VALUE_BYTES = 64 * 1024
"""A longer value is fetched at its first READ only."""

MAX_LISTED_FILES = 20_000
"""Listed strings whose keys are remembered, so that their first READ does not resolve their path again."""


class UnopenedFiles:
    """The attributes and bytes of such files. Thread-safe."""

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
        self._listed: OrderedDict[int, KeyNode] = OrderedDict()  # by node id, oldest first; each call is atomic

    def record_listed(self, inode: Inode, node: KeyNode) -> None:
        """Remember the plain string of a listed inode."""
        if len(self._listed) >= MAX_LISTED_FILES:
            self._listed.popitem(last=False)
        self._listed[inode.node_id] = node

    def _take_listed(self, inode: Inode) -> KeyNode | None:
        """Return the string of a listed inode, once, if it has not changed since."""
        node = self._listed.pop(inode.node_id, None)
        if node is None or not self._contents.is_current(node):
            return None
        self._filesystem.keyspace.record_use()
        return node

    def is_hot_value(self, node: KeyNode) -> bool:
        """Return whether a value changes so often that it may differ at the READ."""
        return (
            self._filesystem.keyspace.is_hot(node.target.key)
            and node.is_editable
            and node.length <= MAX_HOT_VALUE_BYTES
        )

    def look_up(
        self, context: RequestContext, parent: Inode, name: bytes, node: KeyNode
    ) -> tuple[Inode, FileAttributes, bool]:
        """Return (inode, attributes, is_settled) of a file, and count a lookup.

        The kernel may cache both if `is_settled`.
        """
        version = self._contents.current_version(node.target.key)
        inode = self._inodes.look_up(parent, name, is_directory=False, version=version)
        self._listed.pop(inode.node_id, None)  # the name may lead to another key or field now
        try:
            return inode, *self._describe(context, inode, node)
        except BaseException:
            self.forget(self._inodes.forget([(inode.node_id, 1)]))
            raise

    def getattr(self, context: RequestContext, inode: Inode, *, is_descriptor: bool) -> tuple[FileAttributes, bool]:
        """Return the attributes of a file, and whether the kernel may cache them.

        With `is_descriptor` the request precedes a read or a seek: more of a file of unknown size is stored in the
        kernel's pages.
        """
        path = inode.path
        end_pause(context, self._filesystem, path)
        self._dentry_tracker.track_path(path)
        pinned = inode.content
        if pinned is None:
            self._listed.pop(inode.node_id, None)
            node = self._filesystem.resolver.resolve(path)
            if isinstance(node, RefreshNode):
                return self._attributes.of_stat(path, self._filesystem.stat(node)), False
            if isinstance(node, KeyNode):
                attributes, is_exact = self._describe(context, inode, node)
                if is_exact or not is_descriptor or procfs.is_reading(context.pid) is False:
                    return attributes, is_exact
            pinned = self._contents.load(inode)
        if is_descriptor and pinned.is_streamed:
            context.prepare_to_block()
            self._contents.stream_more(inode, pinned, until_end=not procfs.is_reading(context.pid))
        return self._describe_pinned(context, inode, pinned)

    def _describe(self, context: RequestContext, inode: Inode, node: KeyNode) -> tuple[FileAttributes, bool]:
        pinned = inode.content
        if pinned is None and self.is_hot_value(node):
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
        """Return the attributes of a pinned content, including appended bytes."""
        if isinstance(pinned.content, GrowingContent) and not pinned.content.is_current:
            context.prepare_to_block()
        is_settled = not self._contents.refresh(inode, pinned)
        return self._attributes.of_stat(inode.path, Stat(False, pinned.size, pinned.mtime_ns, True)), is_settled

    def read(self, context: RequestContext, inode: Inode, offset: int, size: int) -> bytes:
        """Return bytes of a file, and pin its content.

        Raises the errors of `PinnedContents.load` and `read`.
        """
        pinned = inode.content
        if pinned is None:
            node = self._take_listed(inode)
            if node is None and b"%" in inode.name:  # decoding a view takes long
                context.prepare_to_block()
            pinned = self._contents.load_at(inode, offset, node)
        data = self._contents.read_cached(inode, pinned, offset, size)
        if data is None:
            context.prepare_to_block()
            data = self._contents.read(inode, pinned, offset, size)
        return data

    def forget(self, inodes: Sequence[Inode]) -> None:
        """Drop the contents of inodes that the kernel has forgotten."""
        for inode in inodes:
            self._listed.pop(inode.node_id, None)
        self._contents.forget(inodes)

    def close(self) -> None:
        """Stop the timers."""
        self._contents.close()


def end_pause(context: RequestContext, filesystem: Filesystem, path: bytes) -> None:
    """Prepare to wait for the index, and resume following, so that a path is tracked.

    The reset of a resumption ends the tracking of all paths. Not for the root, which `redisfuse status` looks up.
    """
    keyspace = filesystem.keyspace
    if keyspace.may_wait:
        context.prepare_to_block()
        if keyspace.is_paused and path:
            keyspace.record_use()

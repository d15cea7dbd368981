"""The source of contents for files that are not opened: the tree."""

from __future__ import annotations

from collections.abc import Collection

from redisfuse.errors import IsDirectoryError
from redisfuse.vfs.coherence import Coherence
from redisfuse.vfs.content_types import InlineContent
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.inode_content import PinnedContent
from redisfuse.vfs.nodes import KeyNode, RefreshNode


class TreeContentSource:
    """Loads contents by path.

    Implements InodeContentSource; paths begin with a slash.
    """

    def __init__(self, filesystem: Filesystem, coherence: Coherence) -> None:
        self._filesystem = filesystem
        self._coherence = coherence

    def load_content(self, path: bytes, expected_size: int | None) -> PinnedContent:
        """Return the content at a path.

        Raises NotFoundError, IsDirectoryError, and the errors of fetching it.
        """
        node = self._filesystem.resolver.resolve(path[1:])
        if isinstance(node, RefreshNode):
            return PinnedContent(InlineContent(b""), b"", self._filesystem.mount_time_ns, 0)
        if not isinstance(node, KeyNode):
            raise IsDirectoryError("a directory")
        return self.load_node(node, expected_size)

    def load_node(self, node: KeyNode, expected_size: int | None) -> PinnedContent:
        """Return the content of a file that was just resolved."""
        key = node.target.key
        version, mtime_ns = self.content_version(key), self._filesystem.get_mtime_ns(node.target)
        content, is_streamed = self._filesystem.content_loader.open_content(node, expected_size)
        if node.is_editable and content.size != node.length:
            # The key changed after it was resolved; the server's announcement follows.
            self._filesystem.metadata.invalidate([key])
            self._filesystem.keyspace.mark_dirty(key)
        return PinnedContent(content, key, mtime_ns, version, is_streamed)

    def load_cached_content(self, path: bytes) -> PinnedContent | None:
        """Return the content at a path if it is cached, without blocking; else None."""
        node = self._filesystem.resolver.resolve_cached(path[1:])
        if not isinstance(node, KeyNode):
            return None
        key = node.target.key
        version, mtime_ns = self.content_version(key), self._filesystem.get_mtime_ns(node.target)
        content = self._filesystem.content_loader.open_cached(node.target)
        return None if content is None else PinnedContent(content, key, mtime_ns, version)

    def content_version(self, key: bytes) -> int:
        """Return a number that grows with each change of a key."""
        return self._filesystem.keyspace.get_version(key)

    def is_recently_changed(self, key: bytes) -> bool:
        """Return whether the key changed less than a second ago."""
        return self._filesystem.keyspace.is_recently_changed(key)

    def invalidate_paths(self, paths: Collection[bytes]) -> None:
        """Make the kernel look up these paths again; return at once."""
        self._coherence.kernel_cache.invalidate(paths)

    def max_age(self) -> float:
        """Return the seconds that a content is valid if its change is not announced."""
        return self._coherence.max_age()

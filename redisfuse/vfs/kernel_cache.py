"""The kernel's cache of a mount, and its invalidation by node id.

Threads: any; every method queues and returns. There is no lock here: a walk of the inode table is a few dictionary
look-ups, each atomic.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from redisfuse.vfs.inodes import Inode, InodeTable

MAX_INVALIDATED_NAMES = 50_000
"""Past so many names the kernel's epoch is incremented instead, where it has one (Linux 6.16)."""


class KernelNotifier(Protocol):
    """Sends notifications to the kernel in order.

    `fuse/notify.py` implements it, with a thread of its own.
    """

    has_inc_epoch: bool

    @property
    def is_supported(self) -> bool:
        """Whether every notification reaches the kernel."""

    @property
    def unsupported_reason(self) -> str:
        """Why not; empty if every notification reaches the kernel."""

    def invalidate_inode(self, node_id: int) -> None:
        """Drop the attributes and all pages of a node."""

    def invalidate_attributes(self, node_id: int) -> None:
        """Drop the attributes of a node, and keep its pages."""

    def invalidate_entry(self, parent_id: int, name: bytes, *, expire_only: bool = False) -> None:
        """Drop a name.

        `expire_only`: look it up again, but leave it to the programs that use it.
        """

    def increment_epoch(self) -> None:
        """Let every name be looked up again."""

    def expire_attributes_now(self, node_id: int) -> None:
        """Drop the attributes of a node before returning."""

    def store_now(self, node_id: int, offset: int, data: bytes) -> None:
        """Put bytes into the page cache of a node before returning."""


class KernelCache:
    """The kernel's cache of names, attributes and pages.

    `keeps_pages`: an inode stands for one version of its content, so a change leaves the pages of files as they are.
    """

    def __init__(self, inodes: InodeTable, notifier: KernelNotifier, *, keeps_pages: bool) -> None:
        self._inodes = inodes
        self._notifier = notifier
        self._keeps_pages = keeps_pages

    @property
    def is_supported(self) -> bool:
        """Whether the kernel accepts invalidations."""
        return self._notifier.is_supported

    def invalidate(self, paths: Iterable[bytes], *, keep_dentry: bool = False, ancestors: bool = False) -> None:
        """Invalidate what is at these paths, and their names unless `keep_dentry`.

        A known name expires: it is looked up again, and a directory that still exists keeps its dentry. With
        `ancestors`, the directories above are invalidated too.
        """
        for path in paths:
            self._invalidate_path(path, keep_dentry=keep_dentry, ancestors=ancestors)

    def _invalidate_path(self, path: bytes, *, keep_dentry: bool, ancestors: bool) -> None:
        directory: Inode = self._inodes.root
        names = path.split(b"/") if path else []
        for depth, name in enumerate(names):
            child = directory.children.get(name) if directory.children is not None else None
            if ancestors:
                self._notifier.invalidate_inode(directory.node_id)
            if depth == len(names) - 1:
                if child is not None:
                    self._invalidate_inode(child)
                if child is None or not keep_dentry:
                    self._notifier.invalidate_entry(directory.node_id, name, expire_only=child is not None)
            elif child is None:
                if ancestors:
                    self._notifier.invalidate_entry(directory.node_id, name)
                return
            else:
                directory = child
        if not names:
            self._notifier.invalidate_inode(directory.node_id)

    def _invalidate_inode(self, inode: Inode) -> None:
        if self._keeps_pages and not inode.is_directory:
            self._notifier.invalidate_attributes(inode.node_id)
        else:
            self._notifier.invalidate_inode(inode.node_id)

    def invalidate_all(self) -> None:
        """Invalidate everything: every name, attribute and page."""
        notifier, inodes = self._notifier, self._inodes.list_all()
        if len(inodes) > MAX_INVALIDATED_NAMES and notifier.has_inc_epoch:
            notifier.increment_epoch()
            inodes = [inode for inode in inodes if inode.is_directory or inode.handles or inode.content is not None]
        else:
            for inode in inodes:
                if inode.parent is not None and not inode.is_detached:
                    notifier.invalidate_entry(inode.parent.node_id, inode.name, expire_only=True)
        for parent_id, name in self._inodes.take_absent():
            notifier.invalidate_entry(parent_id, name)
        for inode in inodes:
            self._invalidate_inode(inode)

    def expire_attributes_now(self, inode: Inode) -> None:
        """Let the kernel fetch an inode's size before it assumes the end of the file."""
        self._notifier.expire_attributes_now(inode.node_id)

    def store_now(self, inode: Inode, offset: int, data: bytes) -> None:
        """Put bytes into the page cache of an inode, which grows to hold them."""
        self._notifier.store_now(inode.node_id, offset, data)

"""The kernel's cache of a mount, and its invalidation by node id.

Threads: any. Every method queues its notifications, except those with `now` in their names. This module has no lock: a
path takes a few look-ups in the inode table, each of them atomic.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from redisfuse.vfs.inodes import Inode, InodeTable

if TYPE_CHECKING:
    from redisfuse.vfs.pinned_contents import PinnedContent

MAX_INVALIDATED_NAMES = 50_000
"""For more names, the kernel's epoch is incremented instead (Linux 6.16)."""

POSTPONE_SECONDS = 0.05
"""In which a program that has read a part of a file continues to its end."""


class CachedTree(Protocol):
    """The tree as a notifier sees it when it writes; `KernelCache` implements it."""

    def keeps_dentry(self, parent_id: int, name: bytes) -> bool:
        """Return whether an invalidated name only expires."""

    def postpones_attributes(self, node_id: int) -> bool:
        """Return whether the attributes of a node are invalidated later."""

    def write_everything(self) -> None:
        """Invalidate all that the kernel knows."""


class NotificationSender(Protocol):
    """Sends notifications to the kernel in order; `fuse/notify.py` implements it."""

    has_inc_epoch: bool
    cached_tree: CachedTree

    @property
    def is_supported(self) -> bool:
        """Whether every notification reaches the kernel."""

    @property
    def unsupported_reason(self) -> str:
        """The reason if `is_supported` is False; otherwise empty."""

    def invalidate_inode(self, node_id: int) -> None:
        """Drop the attributes and all pages of a node."""

    def invalidate_attributes(self, node_id: int) -> None:
        """Drop the attributes of a node, and keep its pages."""

    def invalidate_entry(self, parent_id: int, name: bytes, *, keeps_dentry: bool = False) -> None:
        """Drop a name.

        With `keeps_dentry`, of this or of `CachedTree`, programs keep using it meanwhile.
        """

    def invalidate_everything(self) -> None:
        """Have `CachedTree.write_everything` called in the thread that writes."""

    def increment_epoch(self) -> None:
        """Let every name be looked up again."""

    def expire_attributes_now(self, node_id: int) -> None:
        """Drop the attributes of a node before returning."""

    def store_now(self, node_id: int, offset: int, data: bytes) -> None:
        """Put bytes into the page cache of a node before returning."""


class KernelCache:
    """The kernel's cache of names, attributes and pages.

    With `keeps_pages`, an inode has one version of its content, and a change invalidates no pages of files.
    """

    def __init__(self, inodes: InodeTable, notifier: NotificationSender, *, keeps_pages: bool) -> None:
        self._inodes = inodes
        self._notifier = notifier
        self._keeps_pages = keeps_pages
        notifier.cached_tree = self
        if keeps_pages:  # a later invalidation of the name does not reach the inode
            inodes.on_superseded = self._invalidate_inode

    @property
    def is_supported(self) -> bool:
        """Whether the kernel accepts invalidations."""
        return self._notifier.is_supported

    def invalidate(
        self,
        paths: Iterable[bytes],
        *,
        keep_dentry: bool = False,
        still_exist: bool = False,
        ancestors: bool = False,
    ) -> None:
        """Invalidate the inodes at these paths, and their names unless `keep_dentry`.

        With `still_exist`, the names only expire where the kernel sends OPEN: an open compares the content again, so
        that a name which stays valid by mistake does no harm. With `ancestors`, the directories above are invalidated
        too.
        """
        expires = still_exist and not self._keeps_pages
        for path in paths:
            self._invalidate_path(path, keep_dentry=keep_dentry, expires=expires, ancestors=ancestors)

    def _invalidate_path(self, path: bytes, *, keep_dentry: bool, expires: bool, ancestors: bool) -> None:
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
                    self._notifier.invalidate_entry(directory.node_id, name, keeps_dentry=expires)
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
        self._notifier.invalidate_everything()

    def keeps_dentry(self, parent_id: int, name: bytes) -> bool:
        """Return whether the dentry of an invalidated name must stay.

        The name of a directory or open file expires: it is looked up again, and what still exists keeps its dentry, so
        that getcwd(3) and /proc/PID/fd show its path. So does a name without an inode, or one that an unlink or a
        rename is taking away: mkdir(2) may be about to create it, and the notification waits for that. Other names are
        dropped: a dentry that expires while the kernel revalidates it stays valid.
        """
        inode = self._inodes.find_child(parent_id, name)
        return inode is None or inode.is_directory or inode.is_leaving or bool(inode.handles)

    def postpones_attributes(self, node_id: int) -> bool:
        """Return whether the attributes of a file are invalidated later.

        That is so if they were expired a moment ago. If they are invalidated while the kernel fetches them, it discards
        the reply, and a program takes the former size for the end of the file.
        """
        inode = self._inodes.find_node(node_id)
        content = inode.content if inode is not None else None
        if inode is None or content is None or time.monotonic() - content.expired_at > POSTPONE_SECONDS:
            return False
        if not content.is_postponed:
            content.is_postponed = True
            timer = threading.Timer(POSTPONE_SECONDS, self._invalidate_postponed, [inode, content])
            timer.daemon = True
            timer.start()
        return True

    def _invalidate_postponed(self, inode: Inode, content: PinnedContent) -> None:
        content.is_postponed = False
        self._invalidate_inode(inode)

    def write_everything(self) -> None:
        """Invalidate all that the kernel knows when this is called."""
        notifier, inodes = self._notifier, self._inodes.list_all()
        if len(inodes) > MAX_INVALIDATED_NAMES and notifier.has_inc_epoch:
            notifier.increment_epoch()
            inodes = [inode for inode in inodes if inode.is_directory or inode.handles or inode.content is not None]
        else:
            for inode in inodes:
                if inode.parent is not None and not inode.is_detached:
                    notifier.invalidate_entry(inode.parent.node_id, inode.name)
        for parent_id, name in self._inodes.take_absent():
            notifier.invalidate_entry(parent_id, name)
        for inode in inodes:
            self._invalidate_inode(inode)

    def expire_attributes_now(self, inode: Inode, size: int) -> None:
        """Invalidate the attributes of an inode before returning.

        The kernel then fetches its size, which is `size`, before it assumes the end of the file.
        """
        self._notifier.expire_attributes_now(inode.node_id)
        inode.set_size(size)

    def store_now(self, inode: Inode, offset: int, data: bytes) -> None:
        """Put bytes into the pages of an inode, which grows, before returning."""
        self._notifier.store_now(inode.node_id, offset, data)

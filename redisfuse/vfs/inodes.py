"""The files and directories that the kernel knows, by node id.

An inode exists from the first reply that contains its node id until the kernel's FORGET. Its path follows from its
parent and name, so that a rename of a directory changes the paths of all inodes below it. An unlinked inode is
detached: it has descriptors but no name. Node ids are never reused, so their generation is always 0.

An inode that is open for reading only, or that the kernel opens without a request (`vfs/pinned_contents.py`), stands
for one version of its content. A file that another client has changed gets a new inode under the same name, and
descriptors on the old one keep its content and size: the kernel has one size for each inode.

Memory: about 330 bytes for each inode, as many as the kernel caches; listings add none beyond `MAX_LISTED_INODES`.

Threads: any. The lock is a leaf, held for bookkeeping only. Reading a single field of an inode needs no lock.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from redisfuse.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from redisfuse.vfs.handles import Handle
    from redisfuse.vfs.pinned_contents import PinnedContent

ROOT_NODE_ID = 1
MAX_LISTED_INODES = 150_000  # with as many inodes, listings add none and have no attributes
MAX_ABSENT_NAMES = 100_000  # names that the kernel may cache as absent for COHERENT_SECONDS


class Inode:
    """One file or directory that the kernel knows."""

    __slots__ = (
        "absent_names",
        "children",
        "content",
        "handles",
        "is_detached",
        "is_directory",
        "is_leaving",
        "least_size",
        "lookup_count",
        "name",
        "node_id",
        "page_token",
        "parent",
        "size",
        "valid_until",
        "version",
        "xattr_names",
    )

    def __init__(self, node_id: int, parent: Inode | None, name: bytes, *, is_directory: bool) -> None:
        self.node_id = node_id
        self.is_directory = is_directory
        # Changed under the table's lock:
        self.parent = parent  # None: the root
        self.name = name
        self.lookup_count = 0
        self.is_detached = False  # unlinked, or replaced by a rename
        self.is_leaving = False  # an unlink or a rename of its name is under way
        self.children: dict[bytes, Inode] | None = None
        self.absent_names: set[bytes] | None = None  # cached as absent by the kernel
        # Of a file:
        self.xattr_names: Sequence[bytes] = ()  # its extended attributes as of the last lookup; empty: unknown
        self.size = -1  # the last size reported to the kernel
        self.least_size = -1  # of those that it may have: of replies to concurrent requests it keeps any one
        self.handles: tuple[Handle, ...] = ()  # open on it
        self.page_token: int | None = None  # identifies the bytes that the kernel's pages hold; None: unknown
        # The version of the content that was read; 0 before the first read. Where the kernel sends OPEN: of the content
        # that all open handles read; 0 if there are none, or writers.
        self.version = 0
        # Of a file that the kernel opens without a request:
        self.valid_until = math.inf  # time.monotonic() at which `version` becomes outdated
        self.content: PinnedContent | None = None

    def is_outdated(self, version: int) -> bool:
        """Return whether the content that was read is not the current `version`."""
        return bool(self.version) and (self.version != version or self.valid_until < time.monotonic())

    def report_size(self, size: int) -> None:
        """Record a size that is reported to the kernel."""
        if size != self.size:
            self.least_size = size if self.size < 0 else min(size, self.least_size)
            self.size = size

    def set_size(self, size: int) -> None:
        """Record the only size that the kernel may have, or fetches before it uses one."""
        self.size = self.least_size = size

    def has_size(self, size: int) -> bool:
        """Return whether the kernel has this size, as far as is known."""
        return self.least_size == self.size == size

    @property
    def path(self) -> bytes:
        """The path relative to the mount's root; of a detached inode, its last one."""
        inode, names = self, []
        while inode.parent is not None:
            names.append(inode.name)
            inode = inode.parent
        names.reverse()
        return b"/".join(names)

    def child_path(self, name: bytes) -> bytes:
        """Return the path of a name in this directory."""
        return name if self.parent is None else self.path + b"/" + name


class InodeTable:
    """The inodes of one mount."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.on_superseded: Callable[[Inode], None] = lambda _inode: None  # called when a name leads to another inode
        self.root = Inode(ROOT_NODE_ID, None, b"", is_directory=True)
        # Guarded by `_lock`; single look-ups don't need it:
        self._by_id: dict[int, Inode] = {ROOT_NODE_ID: self.root}
        self._node_ids = itertools.count(ROOT_NODE_ID + 1)
        self._absent_count = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, node_id: int) -> Inode:
        """Return the inode of a node id.

        Raises ConflictError (ESTALE) for one that the kernel has forgotten.
        """
        inode = self._by_id.get(node_id)
        if inode is None:
            raise ConflictError(f"the kernel has forgotten node {node_id}")
        return inode

    def get_attached(self, node_id: int) -> Inode:
        """Return the inode of a node id, if it has a name.

        Raises ConflictError (ESTALE) as `get` does, NotFoundError if it was unlinked.
        """
        inode = self.get(node_id)
        if inode.is_detached:
            raise NotFoundError("the file was unlinked")
        return inode

    def find(self, path: bytes) -> Inode | None:
        """Return the inode that a path leads to, if the kernel knows it."""
        inode: Inode | None = self.root
        for name in path.split(b"/") if path else ():
            if inode is None or inode.children is None:
                return None
            inode = inode.children.get(name)
        return inode

    def find_node(self, node_id: int) -> Inode | None:
        """Return the inode of a node id, if the kernel knows it."""
        return self._by_id.get(node_id)

    def find_child(self, parent_id: int, name: bytes) -> Inode | None:
        """Return the inode of a name in a directory, if the kernel knows both."""
        parent = self._by_id.get(parent_id)
        return None if parent is None or parent.children is None else parent.children.get(name)

    def list_all(self) -> list[Inode]:
        """Return all inodes."""
        with self._lock:
            return list(self._by_id.values())

    # -- lookup counts -----------------------------------------------------------------------------------------------

    def look_up(self, parent: Inode, name: bytes, *, is_directory: bool, version: int = 0) -> Inode:
        """Return the inode of a name, and count a lookup.

        It is a new inode if the name or its kind is new, or the inode's content is outdated. `version` is the current
        one, where an inode has one version of its content; 0 elsewhere.
        """
        with self._lock:
            children = parent.children
            if children is None:
                children = parent.children = {}
            known = inode = children.get(name)
            if inode is None or inode.is_directory is not is_directory or (version and inode.is_outdated(version)):
                inode = children[name] = Inode(next(self._node_ids), parent, name, is_directory=is_directory)
                self._by_id[inode.node_id] = inode
                if parent.absent_names:
                    self._forget_absent(parent, name)
            inode.lookup_count += 1
        if known is not None and known is not inode:
            self.on_superseded(known)
        return inode

    def forget(self, forgets: Iterable[tuple[int, int]]) -> list[Inode]:
        """Subtract (node id, lookups) from the lookup counts.

        Returns the inodes that the kernel has forgotten.
        """
        freed = []
        with self._lock:
            for node_id, lookups in forgets:
                inode = self._by_id.get(node_id)
                if inode is None or inode is self.root:
                    continue
                inode.lookup_count -= lookups
                if inode.lookup_count <= 0:
                    del self._by_id[node_id]
                    self._unlink(inode)
                    self._absent_count -= len(inode.absent_names or ())
                    freed.append(inode)
        return freed

    def _unlink(self, inode: Inode) -> None:
        parent = inode.parent
        if parent is not None and parent.children is not None and parent.children.get(inode.name) is inode:
            del parent.children[inode.name]

    # -- absent names ------------------------------------------------------------------------------------------------

    def record_absent(self, parent: Inode, name: bytes) -> bool:
        """Record a name that the kernel may cache as absent.

        Returns False, and records nothing, if there are `MAX_ABSENT_NAMES`.
        """
        with self._lock:
            if self._absent_count >= MAX_ABSENT_NAMES:
                return False
            if parent.absent_names is None:
                parent.absent_names = set()
            if name not in parent.absent_names:
                parent.absent_names.add(name)
                self._absent_count += 1
            return True

    def _forget_absent(self, parent: Inode, name: bytes) -> None:
        if parent.absent_names is not None and name in parent.absent_names:
            parent.absent_names.discard(name)
            self._absent_count -= 1

    def take_absent(self) -> list[tuple[int, bytes]]:
        """Return and clear the recorded absent names.

        Each is (node id of the directory, name).
        """
        with self._lock:
            if not self._absent_count:
                return []
            taken = [(inode.node_id, name) for inode in self._by_id.values() for name in inode.absent_names or ()]
            for inode in self._by_id.values():
                inode.absent_names = None
            self._absent_count = 0
            return taken

    # -- changes of the tree -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def leaving(self, parent: Inode, name: bytes) -> Iterator[None]:
        """Mark the inode of a name that the body removes or renames."""
        inode = parent.children.get(name) if parent.children is not None else None
        if inode is None:
            yield
            return
        inode.is_leaving = True
        try:
            yield
        finally:
            inode.is_leaving = False

    def detach(self, parent: Inode, name: bytes) -> Inode | None:
        """Detach the inode of an unlinked name, and return it."""
        with self._lock:
            return self._detach(parent, name)

    def _detach(self, parent: Inode, name: bytes) -> Inode | None:
        inode = parent.children.pop(name, None) if parent.children is not None else None
        if inode is not None:
            inode.is_detached = True
        return inode

    def rename(self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes) -> Inode | None:
        """Move an inode, and all below it, to a new name; return it.

        The inode that had the new name is detached.
        """
        with self._lock:
            moved = parent.children.pop(name, None) if parent.children is not None else None
            self._detach(new_parent, new_name)
            if moved is not None:
                moved.parent, moved.name = new_parent, new_name
                moved.xattr_names = ()  # a key can become a field
                if new_parent.children is None:
                    new_parent.children = {}
                new_parent.children[new_name] = moved
                self._forget_absent(new_parent, new_name)
            return moved

    # -- handles -----------------------------------------------------------------------------------------------------

    def attach_handle(self, inode: Inode, handle: Handle) -> None:
        """Add an open handle."""
        with self._lock:
            inode.handles = (*inode.handles, handle)

    def detach_handle(self, inode: Inode, handle: Handle) -> None:
        """Remove a closed handle."""
        with self._lock:
            inode.handles = tuple(other for other in inode.handles if other is not handle)
            if not inode.handles:
                inode.version = 0

    def set_version(self, inode: Inode, version: int) -> None:
        """Set the version of the content that a newly attached handle reads.

        If another handle may read an older one, that one stays: the inode is outdated then.
        """
        with self._lock:
            inode.version = version if len(inode.handles) < 2 or not inode.version else min(version, inode.version)

    def replace_handle(self, inode: Inode, old: Handle, new: Handle) -> None:
        """Replace an open handle by another one."""
        with self._lock:
            inode.handles = tuple(new if other is old else other for other in inode.handles)

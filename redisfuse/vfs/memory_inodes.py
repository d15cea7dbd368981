"""The inodes and names of the memory filesystem, and the bytes that they use.

Callers hold `MemoryInodes.lock` around every method; the lock is reentrant and is held only to copy memory.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from redisfuse.errors import IsDirectoryError, NoAttributeError, NoSpaceError, NotDirectoryError, NotFoundError
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.expiry import Expiry

ENTRY_OVERHEAD_BYTES = 512  # bytes that a file or directory counts beside its path, contents and extended attributes


@dataclass(frozen=True, slots=True)
class MemoryFileStat:
    """The stat(2) fields of a file or directory."""

    is_directory: bool
    mode: int  # permission bits, as the program passed them
    size: int  # bytes
    mtime_ns: int  # nanoseconds since 1970, UTC


class Origin(NamedTuple):
    """The key or field that a file was before it was moved here."""

    target: KeyRef | None = None
    expiry: Expiry | None = None


NO_ORIGIN = Origin()


@dataclass(slots=True)
class MemoryInode:
    """One file or directory."""

    is_directory: bool
    mode: int
    mtime_ns: int
    data: bytearray = field(default_factory=bytearray)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    handle_count: int = 0
    is_linked: bool = True
    is_sealed: bool = False  # writes are refused: the contents were saved elsewhere
    origin: Origin = NO_ORIGIN  # its place in Redis, which it gets again if it is moved back

    def stat(self) -> MemoryFileStat:
        """Return mode, size and time."""
        return MemoryFileStat(self.is_directory, self.mode, len(self.data), self.mtime_ns)


class MemoryInodes:
    """A table of inodes by path, of at most `max_bytes` bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.lock = threading.RLock()
        # Guarded by `lock`; single look-ups in `by_path` and reads of `used_bytes` don't need it.
        self.by_path: dict[bytes, MemoryInode] = {}
        self.child_names: dict[bytes, dict[bytes, None]] = {}  # directory -> names in it, in the order of creation
        self.used_bytes = 0  # bookkeeping included

    def require(self, path: bytes) -> MemoryInode:
        """Return the inode at a path. Raises NotFoundError."""
        inode = self.by_path.get(path)
        if inode is None:
            raise NotFoundError("no such file or directory")
        return inode

    def require_file(self, path: bytes) -> MemoryInode:
        """Return the inode of the file at a path. Raises NotFoundError, IsDirectoryError."""
        inode = self.require(path)
        if inode.is_directory:
            raise IsDirectoryError("is a directory")
        return inode

    def require_xattr(self, path: bytes, name: bytes) -> bytes:
        """Return an extended attribute. Raises NotFoundError, NoAttributeError."""
        value = self.require(path).xattrs.get(name)
        if value is None:
            raise NoAttributeError("no such attribute")
        return value

    def reserve(self, delta_bytes: int) -> None:
        """Add `delta_bytes` (which may be negative) to the bytes in use.

        Raises NoSpaceError.
        """
        if delta_bytes > 0 and self.used_bytes + delta_bytes > self.max_bytes:
            raise NoSpaceError("scratch memory is full; --scratch-memory makes it larger")
        self.used_bytes += delta_bytes

    def check_parent(self, path: bytes) -> None:
        """Raise NotDirectoryError if the parent of `path` is a file."""
        parent = self.by_path.get(path.rpartition(b"/")[0])
        if parent is not None and not parent.is_directory:
            raise NotDirectoryError("the parent is a file")

    def create(self, path: bytes, *, is_directory: bool, mode: int) -> None:
        """Link a new, empty inode. Raises NotDirectoryError, NoSpaceError."""
        self.check_parent(path)
        self.reserve(entry_bytes(path))
        self.link(path, MemoryInode(is_directory, mode & 0o7777, time.time_ns()))

    def link(self, path: bytes, inode: MemoryInode) -> None:
        """Put an inode at a path, without counting the bytes of its entry."""
        self.by_path[path] = inode
        directory, _, name = path.rpartition(b"/")
        self.child_names.setdefault(directory, {})[name] = None
        self._update_mtime(directory)

    def unlink(self, path: bytes) -> MemoryInode:
        """Take an inode out of the table, without counting the bytes of its entry."""
        directory, _, name = path.rpartition(b"/")
        names = self.child_names.get(directory)
        if names is not None:
            names.pop(name, None)
            if not names:
                del self.child_names[directory]
        self._update_mtime(directory)
        return self.by_path.pop(path)

    def _update_mtime(self, directory: bytes) -> None:
        if directory in self.by_path:
            self.by_path[directory].mtime_ns = time.time_ns()

    def move(self, old: bytes, new: bytes) -> None:
        """Give the inode at `old` the path `new`."""
        self.used_bytes += len(new) - len(old)  # never refused: a longer name adds a few bytes only
        self.link(new, self.unlink(old))

    def move_below(self, old: bytes, new: bytes) -> None:
        """Move everything below the directory `old` to below `new`."""
        for path in [path for path in self.by_path if path.startswith(old + b"/")]:
            self.move(path, new + path[len(old) :])

    def remove(self, path: bytes) -> None:
        """Unlink an inode; its contents are freed once no handle is open on it."""
        inode = self.unlink(path)
        inode.is_linked = False
        self.used_bytes -= entry_bytes(path)
        self._free_if_unreferenced(inode)

    def release_handle(self, inode: MemoryInode) -> None:
        """Count one handle less; the last close of an unlinked file frees it."""
        inode.handle_count -= 1
        self._free_if_unreferenced(inode)

    def _free_if_unreferenced(self, inode: MemoryInode) -> None:
        """Free the contents of a file without a name and without a handle."""
        if not inode.is_linked and not inode.handle_count:
            self.used_bytes -= len(inode.data) + sum(len(name) + len(value) for name, value in inode.xattrs.items())
            inode.data = bytearray()
            inode.xattrs = {}


def entry_bytes(path: bytes) -> int:
    """Return the bytes that the entry of a path counts, without its contents."""
    return ENTRY_OVERHEAD_BYTES + len(path)

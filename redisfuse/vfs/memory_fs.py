"""A filesystem in the memory of this mount that holds junk until the unmount.

It knows neither Redis nor FUSE. Paths are the mount's, without a leading slash. Only junk is here: the parent of a file
may be a directory of Redis, so a parent that is not in the table counts as a directory. An unlinked file lives on while
it is open, as in any filesystem. Users know the area as scratch memory (`--scratch-memory`).

Threads: every method may be called from any thread. One lock, a leaf, covers the whole area; it is held only to copy
memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

from redisfuse.errors import (
    ExistsError,
    InvalidArgumentError,
    IsDirectoryError,
    NoAttributeError,
    NoSpaceError,
    NotDirectoryError,
    NotEmptyError,
)
from redisfuse.vfs.memory_file import MemoryFile
from redisfuse.vfs.memory_inodes import NO_ORIGIN, MemoryFileStat, MemoryInode, MemoryInodes, Origin, entry_bytes


class MemoryFS:
    """The memory filesystem of one mount, of at most `max_bytes` bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._inodes = MemoryInodes(max_bytes)
        self._lock = self._inodes.lock

    @property
    def used_bytes(self) -> int:
        """Bytes in use, bookkeeping included."""
        return self._inodes.used_bytes

    # -- look-ups ----------------------------------------------------------------------------------------------------

    def exists(self, path: bytes) -> bool:
        """Return whether a file or directory is at a path."""
        return path in self._inodes.by_path

    def is_directory(self, path: bytes) -> bool:
        """Return whether a directory of this filesystem is at a path."""
        inode = self._inodes.by_path.get(path)
        return inode is not None and inode.is_directory

    def listdir(self, path: bytes) -> Sequence[bytes]:
        """Return the names in a directory, which may be one of Redis."""
        with self._lock:
            return tuple(self._inodes.child_names.get(path, ()))

    def child_directories(self, path: bytes) -> set[bytes]:
        """Return the names in a directory that lead to an entry here, at any depth."""
        start = path + b"/" if path else b""
        with self._lock:
            below = [parent[len(start) :] for parent in self._inodes.child_names if parent.startswith(start)]
        return {name.partition(b"/")[0] for name in below if name}

    def count_subdirectories(self, path: bytes) -> int:
        """Return the number of directories of this filesystem in a directory.

        The directory may be one of Redis.
        """
        return sum(self.is_directory(path + b"/" + name if path else name) for name in self.listdir(path))

    def stat(self, path: bytes) -> MemoryFileStat:
        """Return mode, size and time of a file or directory. Raises NotFoundError."""
        with self._lock:
            return self._inodes.require(path).stat()

    # -- creating and removing ---------------------------------------------------------------------------------------

    def create(self, path: bytes, mode: int, *, exclusive: bool = False) -> None:
        """Create an empty file; leave an existing file as it is.

        Raises ExistsError (`exclusive`), IsDirectoryError, NotDirectoryError, NoSpaceError.
        """
        with self._lock:
            inode = self._inodes.by_path.get(path)
            if inode is None:
                self._inodes.create(path, is_directory=False, mode=mode)
            elif exclusive:
                raise ExistsError("file exists")
            elif inode.is_directory:
                raise IsDirectoryError("a directory has that name")

    def write_file(self, path: bytes, chunks: Iterable[bytes], mode: int = 0o600) -> None:
        """Create a file with these contents, or replace the contents of an existing one.

        Raises IsDirectoryError, NotDirectoryError, NoSpaceError; then nothing is changed.
        """
        inodes = self._inodes
        data = bytearray()
        for chunk in chunks:
            if len(data) + len(chunk) > inodes.max_bytes:
                raise NoSpaceError("the file does not fit into scratch memory; --scratch-memory makes it larger")
            data += chunk
        with self._lock:
            existing = inodes.by_path.get(path)
            if existing is not None and existing.is_directory:
                raise IsDirectoryError("a directory has that name")
            inode = existing or MemoryInode(False, mode & 0o7777, 0)
            inodes.check_parent(path)
            inodes.reserve(len(data) - len(inode.data) + (0 if existing else entry_bytes(path)))
            if existing is None:
                inodes.link(path, inode)
            inode.data = data
            inode.origin = NO_ORIGIN
            inode.mtime_ns = time.time_ns()

    def mkdir(self, path: bytes, mode: int) -> None:
        """Create a directory. Raises ExistsError, NotDirectoryError, NoSpaceError."""
        with self._lock:
            if path in self._inodes.by_path:
                raise ExistsError("file exists")
            self._inodes.create(path, is_directory=True, mode=mode)

    def unlink(self, path: bytes) -> None:
        """Remove a file; open handles keep its contents.

        Raises NotFoundError, IsDirectoryError.
        """
        with self._lock:
            self._inodes.require_file(path)
            self._inodes.remove(path)

    def rmdir(self, path: bytes) -> None:
        """Remove an empty directory.

        Raises NotFoundError, NotDirectoryError, NotEmptyError.
        """
        with self._lock:
            if not self._inodes.require(path).is_directory:
                raise NotDirectoryError("not a directory")
            if self._inodes.child_names.get(path):
                raise NotEmptyError("the directory is not empty")
            self._inodes.remove(path)

    def rename(self, old: bytes, new: bytes, *, replace: bool = True) -> None:
        """Rename a file over a file, or a directory (with its tree) over an empty one.

        Raises NotFoundError, ExistsError (unless `replace`), InvalidArgumentError (a directory into itself),
        NotEmptyError, IsDirectoryError, NotDirectoryError, checked in this order, as Linux does.
        """
        inodes = self._inodes
        with self._lock:
            inode = inodes.require(old)
            existing = inodes.by_path.get(new)
            if existing is not None and not replace:
                raise ExistsError("file exists")
            inodes.check_parent(new)
            if inode.is_directory and new.startswith(old + b"/"):
                raise InvalidArgumentError("a directory can't be moved into itself")
            if existing is not None and old.startswith(new + b"/"):
                raise NotEmptyError("the directory of that name holds what is to be moved")
            if old == new:
                return
            if existing is not None:
                if existing.is_directory and not inode.is_directory:
                    raise IsDirectoryError("a directory has that name")
                if inode.is_directory and not existing.is_directory:
                    raise NotDirectoryError("a file has that name")
                if inodes.child_names.get(new):
                    raise NotEmptyError("the directory of that name is not empty")
                inodes.remove(new)
            inodes.move(old, new)
            if inode.is_directory:
                inodes.move_below(old, new)

    def unlink_and_seal(self, path: bytes) -> None:
        """Unlink a file whose contents were saved elsewhere.

        Open handles can't write to it any more. Raises NotFoundError, IsDirectoryError.
        """
        with self._lock:
            inode = self._inodes.require_file(path)
            self._inodes.remove(path)
            inode.is_sealed = True

    def rename_below(self, old: bytes, new: bytes) -> None:
        """Move everything below a renamed directory of Redis to its new path."""
        with self._lock:
            self._inodes.move_below(old, new)

    # -- contents ----------------------------------------------------------------------------------------------------

    def open(self, path: bytes) -> MemoryFile:
        """Open a file for reading and writing. Raises NotFoundError, IsDirectoryError."""
        with self._lock:
            return MemoryFile(self._inodes, self._inodes.require_file(path))

    @contextmanager
    def open_copy(self, path: bytes) -> Iterator[BinaryIO]:
        """Open a copy of a file's current contents as a Python file.

        Raises NotFoundError, IsDirectoryError.
        """
        with self._lock:
            copy = BytesIO(bytes(self._inodes.require_file(path).data))
        with copy:
            yield copy

    # -- attributes --------------------------------------------------------------------------------------------------

    def set_mode(self, path: bytes, mode: int) -> None:
        """Set the permission bits, as chmod(2). Raises NotFoundError."""
        with self._lock:
            self._inodes.require(path).mode = mode & 0o7777

    def set_mtime(self, path: bytes, mtime_ns: int) -> None:
        """Set the time of the last change, as utimensat(2). Raises NotFoundError."""
        with self._lock:
            self._inodes.require(path).mtime_ns = mtime_ns

    def get_origin(self, path: bytes) -> Origin:
        """Return what a file was in Redis. Raises NotFoundError."""
        with self._lock:
            return self._inodes.require(path).origin

    def set_origin(self, path: bytes, origin: Origin) -> None:
        """Note what a file was in Redis; a file that is gone is ignored."""
        with self._lock:
            inode = self._inodes.by_path.get(path)
            if inode is not None:
                inode.origin = origin

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        """Return an extended attribute. Raises NotFoundError, NoAttributeError."""
        with self._lock:
            return self._inodes.require_xattr(path, name)

    def listxattr(self, path: bytes) -> Sequence[bytes]:
        """Return the names of the extended attributes. Raises NotFoundError."""
        with self._lock:
            return tuple(self._inodes.require(path).xattrs)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute.

        Raises NotFoundError, ExistsError and NoAttributeError (by the `flags` of setxattr(2)), NoSpaceError.
        """
        with self._lock:
            xattrs = self._inodes.require(path).xattrs
            exists = name in xattrs
            if exists and flags & os.XATTR_CREATE:
                raise ExistsError("the attribute exists")
            if not exists and flags & os.XATTR_REPLACE:
                raise NoAttributeError("no such attribute")
            self._inodes.reserve(len(value) - len(xattrs[name]) if exists else len(name) + len(value))
            xattrs[name] = value

    def removexattr(self, path: bytes, name: bytes) -> None:
        """Remove an extended attribute. Raises NotFoundError, NoAttributeError."""
        with self._lock:
            self._inodes.reserve(-len(name) - len(self._inodes.require_xattr(path, name)))
            del self._inodes.require(path).xattrs[name]

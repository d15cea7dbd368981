"""Where junk lives: a small filesystem in the memory of this mount, gone when it ends. Knows no Redis and no FUSE.

Paths are the mount's, without a leading slash. Only junk is here: the folder that a scratch file lies in may be one of
Redis. An unlinked file lives on while it is open, as anywhere.

Threading: every method may be called from any thread; one lock covers the whole area, held only to copy memory.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import BinaryIO

from redisfuse.errors import (
    BadHandleError,
    ConflictError,
    ExistsError,
    InvalidArgumentError,
    IsDirectoryError,
    NoAttributeError,
    NoSpaceError,
    NotDirectoryError,
    NotEmptyError,
    NotFoundError,
)

ENTRY_OVERHEAD_BYTES = 512  # bytes that a file or directory counts beside its path, contents and attributes


@dataclass(frozen=True, slots=True)
class MemoryFileStat:
    """What stat(2) says of a scratch file or directory."""

    is_directory: bool
    mode: int  # permission bits, as they were given
    size: int  # bytes
    mtime_ns: int  # nanoseconds since 1970, UTC


@dataclass(slots=True)
class _MemoryInode:
    is_directory: bool
    mode: int
    mtime_ns: int
    data: bytearray = field(default_factory=bytearray)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    handle_count: int = 0
    is_linked: bool = True
    is_sealed: bool = False
    hidden_path: bytes | None = None  # its path, if that is in no listing


class MemoryFS:
    """The scratch area of one mount, of at most `limit` bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._used_bytes = 0
        self._lock = threading.RLock()
        self._inode_by_path: dict[bytes, _MemoryInode] = {}
        self._child_names: dict[bytes, dict[bytes, None]] = {}  # folder → names in it, in the order in which they came

    @property
    def used_bytes(self) -> int:
        """Bytes in use, bookkeeping included."""
        return self._used_bytes

    # -- looking -----------------------------------------------------------------------------------------------------

    def exists(self, path: bytes) -> bool:
        """Whether something is at a path."""
        return path in self._inode_by_path

    def is_directory(self, path: bytes) -> bool:
        """Whether a scratch directory is at a path."""
        inode = self._inode_by_path.get(path)
        return inode is not None and inode.is_directory

    def listdir(self, path: bytes) -> Sequence[bytes]:
        """The names of what is in a folder, which may be one of Redis."""
        with self._lock:
            return tuple(self._child_names.get(path, ()))

    def child_directories(self, path: bytes) -> set[bytes]:
        """The names in a folder that lead to something here, as folders of any kind."""
        start = path + b"/" if path else b""
        with self._lock:
            below = [folder[len(start) :] for folder in self._child_names if folder.startswith(start)]
        return {name.partition(b"/")[0] for name in below if name}

    def stat(self, path: bytes) -> MemoryFileStat:
        """Mode, size and time of a file or directory. Raises NotFoundError."""
        with self._lock:
            inode = self._require_inode(path)
            return MemoryFileStat(inode.is_directory, inode.mode, len(inode.data), inode.mtime_ns)

    # -- making and removing -----------------------------------------------------------------------------------------

    def create(self, path: bytes, mode: int, *, exclusive: bool = False) -> None:
        """Make an empty file; one that is there is left as it is.

        Raises ExistsError (`exclusive`), IsDirectoryError, NotDirectoryError, NoSpaceError.
        """
        with self._lock:
            inode = self._inode_by_path.get(path)
            if inode is None:
                self._link_new(path, _MemoryInode(False, mode & 0o7777, time.time_ns()))
            elif exclusive:
                raise ExistsError("it exists already")
            elif inode.is_directory:
                raise IsDirectoryError("a directory has that name")

    def write_file(self, path: bytes, chunks: Iterable[bytes], mode: int = 0o600) -> None:
        """Make a file of these contents, or give them to the one that is there. On NoSpaceError nothing is changed.

        Raises IsDirectoryError, NotDirectoryError, NoSpaceError.
        """
        data = bytearray()
        for chunk in chunks:
            if len(data) + len(chunk) > self._max_bytes:
                raise NoSpaceError("the scratch area is full; --scratch-memory makes it larger")
            data += chunk
        with self._lock:
            old = self._inode_by_path.get(path)
            if old is not None and old.is_directory:
                raise IsDirectoryError("a directory has that name")
            inode = old or _MemoryInode(False, mode & 0o7777, 0)
            self._check_parent(path)
            self._reserve(len(data) - len(inode.data) + (0 if old else _entry_bytes(path)))
            if old is None:
                self._link(path, inode)
            inode.data = data
            inode.mtime_ns = time.time_ns()

    def mkdir(self, path: bytes, mode: int) -> None:
        """Make a directory. Raises ExistsError, NotDirectoryError, NoSpaceError."""
        with self._lock:
            if path in self._inode_by_path:
                raise ExistsError("it exists already")
            self._link_new(path, _MemoryInode(True, mode & 0o7777, time.time_ns()))

    def unlink(self, path: bytes) -> None:
        """Remove a file; who has it open keeps it. Raises NotFoundError, IsDirectoryError."""
        with self._lock:
            if self._require_inode(path).is_directory:
                raise IsDirectoryError("a directory")
            self._remove(path)

    def rmdir(self, path: bytes) -> None:
        """Remove an empty directory. Raises NotFoundError, NotDirectoryError, NotEmptyError."""
        with self._lock:
            if not self._require_inode(path).is_directory:
                raise NotDirectoryError("not a directory")
            if self._child_names.get(path):
                raise NotEmptyError("the directory is not empty")
            self._remove(path)

    def rename(self, old: bytes, new: bytes, *, replace: bool = True) -> None:
        """Rename within the area, as rename(2): a file over a file, a directory (with all in it) over an empty one.

        Raises NotFoundError, ExistsError (unless `replace`), IsDirectoryError, NotDirectoryError, NotEmptyError,
        InvalidError (a directory into itself).
        """
        with self._lock:
            inode = self._require_inode(old)
            if inode.is_directory and new.startswith(old + b"/"):
                raise InvalidArgumentError("a directory can't be moved into itself")
            existing = self._inode_by_path.get(new)
            if existing is not None and not replace:
                raise ExistsError("it exists already")
            if old == new:
                return
            self._check_parent(new)
            if existing is not None:
                if existing.is_directory and not inode.is_directory:
                    raise IsDirectoryError("a directory has that name")
                if inode.is_directory and not existing.is_directory:
                    raise NotDirectoryError("a file has that name")
                if self._child_names.get(new):
                    raise NotEmptyError("the directory of that name is not empty")
                self._remove(new)
            self._move(old, new)
            if inode.is_directory:
                self.rename_below(old, new)

    def hide(self, path: bytes, hidden_path: bytes) -> None:
        """An open file is unlinked: until its last close it has the path `hidden_path`, which no listing shows.

        libfuse asks for this, and then for `unlink(hidden)`; but not for the latter if the last close overtakes the
        former. So nothing is left after the last close in any case. Raises NotFoundError, IsDirectoryError.
        """
        with self._lock:
            inode = self._require_inode(path)
            if inode.is_directory:
                raise IsDirectoryError("a directory")
            if not inode.handle_count:
                self._remove(path)
                return
            self._used_bytes += len(hidden_path) - len(path)
            self._link(hidden_path, self._unlink(path), listed=False)
            inode.hidden_path = hidden_path

    def unlink_and_seal(self, path: bytes) -> None:
        """A file's contents were saved elsewhere: it goes, and who still has it open can't write to it any more.

        Raises NotFoundError, IsDirectoryError.
        """
        with self._lock:
            inode = self._require_inode(path)
            self.unlink(path)
            inode.is_sealed = True

    def rename_below(self, old: bytes, new: bytes) -> None:
        """Follow a folder that was renamed: everything below it has the new path from now on."""
        with self._lock:
            for path in [path for path in self._inode_by_path if path.startswith(old + b"/")]:
                self._move(path, new + path[len(old) :])

    # -- contents ----------------------------------------------------------------------------------------------------

    def open(self, path: bytes) -> "MemoryFile":
        """Open a file for reading and writing. Raises NotFoundError, IsDirectoryError."""
        with self._lock:
            inode = self._require_inode(path)
            if inode.is_directory:
                raise IsDirectoryError("a directory")
            return MemoryFile(self, inode)

    @contextmanager
    def open_copy(self, path: bytes) -> Iterator[BinaryIO]:
        """A file's contents as they are now, as a Python file. Raises NotFoundError, IsDirectoryError."""
        with self._lock:
            inode = self._require_inode(path)
            if inode.is_directory:
                raise IsDirectoryError("a directory")
            copy = BytesIO(bytes(inode.data))
        with copy:
            yield copy

    # -- attributes --------------------------------------------------------------------------------------------------

    def set_mode(self, path: bytes, mode: int) -> None:
        """chmod(2). Raises NotFoundError."""
        with self._lock:
            self._require_inode(path).mode = mode & 0o7777

    def set_mtime(self, path: bytes, mtime_ns: int) -> None:
        """Set the time of the last change, as utimensat(2). Raises NotFoundError."""
        with self._lock:
            self._require_inode(path).mtime_ns = mtime_ns

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        """An extended attribute. Raises NotFoundError, NoAttributeError."""
        with self._lock:
            return self._require_xattr(self._require_inode(path), name)

    def listxattr(self, path: bytes) -> Sequence[bytes]:
        """The names of the extended attributes. Raises NotFoundError."""
        with self._lock:
            return tuple(self._require_inode(path).xattrs)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set one, as setxattr(2). Raises NotFoundError, ExistsError and NoAttributeError (`flags`), NoSpaceError."""
        with self._lock:
            inode = self._require_inode(path)
            there = name in inode.xattrs
            if there and flags & os.XATTR_CREATE:
                raise ExistsError("the attribute exists already")
            if not there and flags & os.XATTR_REPLACE:
                raise NoAttributeError("no such attribute")
            self._reserve(len(value) - len(inode.xattrs[name]) if there else len(name) + len(value))
            inode.xattrs[name] = value

    def removexattr(self, path: bytes, name: bytes) -> None:
        """Remove one. Raises NotFoundError, NoAttributeError."""
        with self._lock:
            inode = self._require_inode(path)
            self._used_bytes -= len(name) + len(self._require_xattr(inode, name))
            del inode.xattrs[name]

    # -- what holds the lock ------------------------------------------------------------------------------------------

    def _require_inode(self, path: bytes) -> _MemoryInode:
        inode = self._inode_by_path.get(path)
        if inode is None:
            raise NotFoundError("no such file or directory")
        return inode

    def _require_xattr(self, inode: _MemoryInode, name: bytes) -> bytes:
        value = inode.xattrs.get(name)
        if value is None:
            raise NoAttributeError("no such attribute")
        return value

    def _reserve(self, delta_bytes: int) -> None:
        """Count `more` bytes (or fewer, if negative) as used. Raises NoSpaceError."""
        if delta_bytes > 0 and self._used_bytes + delta_bytes > self._max_bytes:
            raise NoSpaceError("the scratch area is full; --scratch-memory makes it larger")
        self._used_bytes += delta_bytes

    def _check_parent(self, path: bytes) -> None:
        parent = self._inode_by_path.get(path.rpartition(b"/")[0])
        if parent is not None and not parent.is_directory:
            raise NotDirectoryError("a file has the name of the folder")

    def _link_new(self, path: bytes, inode: _MemoryInode) -> None:
        self._check_parent(path)
        self._reserve(_entry_bytes(path))
        self._link(path, inode)

    def _link(self, path: bytes, inode: _MemoryInode, *, listed: bool = True) -> None:
        self._inode_by_path[path] = inode
        folder, _, name = path.rpartition(b"/")
        if listed:
            self._child_names.setdefault(folder, {})[name] = None
        self._update_mtime(folder)

    def _unlink(self, path: bytes) -> _MemoryInode:
        folder, _, name = path.rpartition(b"/")
        names = self._child_names.get(folder)
        if names is not None:
            names.pop(name, None)  # a hidden file is in no listing
            if not names:
                del self._child_names[folder]
        self._update_mtime(folder)
        return self._inode_by_path.pop(path)

    def _update_mtime(self, directory: bytes) -> None:
        if directory in self._inode_by_path:
            self._inode_by_path[directory].mtime_ns = time.time_ns()

    def _move(self, old: bytes, new: bytes) -> None:
        self._used_bytes += len(new) - len(old)  # the few bytes of a longer name are never refused
        folder, _, name = old.rpartition(b"/")
        listed = name in self._child_names.get(folder, ())
        inode = self._unlink(old)
        self._link(new, inode, listed=listed)
        if inode.hidden_path is not None:
            inode.hidden_path = new

    def _remove(self, path: bytes) -> None:
        inode = self._unlink(path)
        inode.is_linked = False
        inode.hidden_path = None
        self._used_bytes -= _entry_bytes(path)
        self._free_if_unreferenced(inode)

    def _free_if_unreferenced(self, inode: _MemoryInode) -> None:
        """Give back what a file held, if nobody can reach it any more."""
        if not inode.is_linked and not inode.handle_count:
            self._used_bytes -= len(inode.data) + sum(len(name) + len(value) for name, value in inode.xattrs.items())
            inode.data = bytearray()
            inode.xattrs = {}


class MemoryFile:
    """An open file of the scratch area; close it. Every method raises BadHandleError once it is closed."""

    def __init__(self, fs: MemoryFS, inode: _MemoryInode) -> None:
        self._fs = fs
        self._open_inode: _MemoryInode | None = inode
        inode.handle_count += 1

    @property
    def size(self) -> int:
        """Length in bytes."""
        with self._fs._lock:
            return len(self._require_open().data)

    @property
    def stat(self) -> MemoryFileStat:
        """Mode, size and time, also of a file that was unlinked."""
        with self._fs._lock:
            inode = self._require_open()
            return MemoryFileStat(False, inode.mode, len(inode.data), inode.mtime_ns)

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; none past the end."""
        with self._fs._lock:
            return bytes(memoryview(self._require_open().data)[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`, with zeros before it if the file is shorter.

        Raises NoSpaceError, ConflictError (`unlink_and_seal`).
        """
        with self._fs._lock:
            inode = self._require_writable()
            if data:
                if offset > len(inode.data):
                    self._resize(inode, offset + len(data))
                self._fs._reserve(max(offset + len(data) - len(inode.data), 0))
                inode.data[offset : offset + len(data)] = data
            inode.mtime_ns = time.time_ns()

    def append(self, data: bytes) -> None:
        """Write `data` at the end. Raises as `write` does."""
        with self._fs._lock:
            self.write(len(self._require_open().data), data)

    def truncate(self, size: int) -> None:
        """Cut the file, or lengthen it with zeros. Raises as `write` does."""
        with self._fs._lock:
            inode = self._require_writable()
            self._resize(inode, size)
            inode.mtime_ns = time.time_ns()

    def close(self) -> None:
        """Close it. Closing twice does nothing."""
        with self._fs._lock:
            inode, self._open_inode = self._open_inode, None
            if inode is not None:
                inode.handle_count -= 1
                if inode.hidden_path is not None and not inode.handle_count:
                    self._fs._remove(inode.hidden_path)
                self._fs._free_if_unreferenced(inode)

    def _require_open(self) -> _MemoryInode:
        if self._open_inode is None:
            raise BadHandleError("the file is closed")
        return self._open_inode

    def _require_writable(self) -> _MemoryInode:
        inode = self._require_open()
        if inode.is_sealed:
            raise ConflictError("the file was saved in Redis under another name: open it there")
        return inode

    def _resize(self, inode: _MemoryInode, size: int) -> None:
        self._fs._reserve(size - len(inode.data))
        if size < len(inode.data):
            del inode.data[size:]
        else:
            inode.data.extend(bytes(size - len(inode.data)))


def _entry_bytes(path: bytes) -> int:
    return ENTRY_OVERHEAD_BYTES + len(path)

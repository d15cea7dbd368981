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
    InvalidError,
    IsDirectoryError,
    NoAttributeError,
    NoSpaceError,
    NotDirectoryError,
    NotEmptyError,
    NotFoundError,
)

ENTRY_COST = 512  # bytes that a file or directory counts beside its path, contents and attributes


@dataclass(frozen=True, slots=True)
class ScratchAttributes:
    """What stat(2) says of a scratch file or directory."""

    directory: bool
    mode: int  # permission bits, as they were given
    size: int  # bytes
    modified_ns: int  # nanoseconds since 1970, UTC


@dataclass(slots=True)
class _Inode:
    directory: bool
    mode: int
    modified_ns: int
    data: bytearray = field(default_factory=bytearray)
    attributes: dict[bytes, bytes] = field(default_factory=dict)
    handles: int = 0
    linked: bool = True
    handed_over: bool = False
    hidden: bytes | None = None  # its path, if that is in no listing


class Scratch:
    """The scratch area of one mount, of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._lock = threading.RLock()
        self._inodes: dict[bytes, _Inode] = {}
        self._names: dict[bytes, dict[bytes, None]] = {}  # folder → names in it, in the order in which they came

    @property
    def used(self) -> int:
        """Bytes in use, bookkeeping included."""
        return self._used

    # -- looking -----------------------------------------------------------------------------------------------------

    def exists(self, path: bytes) -> bool:
        """Whether something is at a path."""
        return path in self._inodes

    def is_directory(self, path: bytes) -> bool:
        """Whether a scratch directory is at a path."""
        inode = self._inodes.get(path)
        return inode is not None and inode.directory

    def list(self, path: bytes) -> Sequence[bytes]:
        """The names of what is in a folder, which may be one of Redis."""
        with self._lock:
            return tuple(self._names.get(path, ()))

    def folders(self, path: bytes) -> set[bytes]:
        """The names in a folder that lead to something here, as folders of any kind."""
        start = path + b"/" if path else b""
        with self._lock:
            below = [folder[len(start) :] for folder in self._names if folder.startswith(start)]
        return {name.partition(b"/")[0] for name in below if name}

    def attributes(self, path: bytes) -> ScratchAttributes:
        """Mode, size and time of a file or directory. Raises NotFoundError."""
        with self._lock:
            inode = self._inode(path)
            return ScratchAttributes(inode.directory, inode.mode, len(inode.data), inode.modified_ns)

    # -- making and removing -----------------------------------------------------------------------------------------

    def create(self, path: bytes, mode: int, *, exclusive: bool = False) -> None:
        """Make an empty file; one that is there is left as it is.

        Raises ExistsError (`exclusive`), IsDirectoryError, NotDirectoryError, NoSpaceError.
        """
        with self._lock:
            inode = self._inodes.get(path)
            if inode is None:
                self._add(path, _Inode(False, mode & 0o7777, time.time_ns()))
            elif exclusive:
                raise ExistsError("it exists already")
            elif inode.directory:
                raise IsDirectoryError("a directory has that name")

    def store(self, path: bytes, chunks: Iterable[bytes], mode: int = 0o600) -> None:
        """Make a file of these contents, or give them to the one that is there. On NoSpaceError nothing is changed.

        Raises IsDirectoryError, NotDirectoryError, NoSpaceError.
        """
        data = bytearray()
        for chunk in chunks:
            if len(data) + len(chunk) > self._limit:
                raise NoSpaceError("the scratch area is full; --scratch-memory makes it larger")
            data += chunk
        with self._lock:
            old = self._inodes.get(path)
            if old is not None and old.directory:
                raise IsDirectoryError("a directory has that name")
            inode = old or _Inode(False, mode & 0o7777, 0)
            self._check_parent(path)
            self._reserve(len(data) - len(inode.data) + (0 if old else _cost(path)))
            if old is None:
                self._link(path, inode)
            inode.data = data
            inode.modified_ns = time.time_ns()

    def mkdir(self, path: bytes, mode: int) -> None:
        """Make a directory. Raises ExistsError, NotDirectoryError, NoSpaceError."""
        with self._lock:
            if path in self._inodes:
                raise ExistsError("it exists already")
            self._add(path, _Inode(True, mode & 0o7777, time.time_ns()))

    def unlink(self, path: bytes) -> None:
        """Remove a file; who has it open keeps it. Raises NotFoundError, IsDirectoryError."""
        with self._lock:
            if self._inode(path).directory:
                raise IsDirectoryError("a directory")
            self._remove(path)

    def rmdir(self, path: bytes) -> None:
        """Remove an empty directory. Raises NotFoundError, NotDirectoryError, NotEmptyError."""
        with self._lock:
            if not self._inode(path).directory:
                raise NotDirectoryError("not a directory")
            if self._names.get(path):
                raise NotEmptyError("the directory is not empty")
            self._remove(path)

    def rename(self, old: bytes, new: bytes, *, replace: bool = True) -> None:
        """Rename within the area, as rename(2): a file over a file, a directory (with all in it) over an empty one.

        Raises NotFoundError, ExistsError (unless `replace`), IsDirectoryError, NotDirectoryError, NotEmptyError,
        InvalidError (a directory into itself).
        """
        with self._lock:
            inode = self._inode(old)
            if inode.directory and new.startswith(old + b"/"):
                raise InvalidError("a directory can't be moved into itself")
            existing = self._inodes.get(new)
            if existing is not None and not replace:
                raise ExistsError("it exists already")
            if old == new:
                return
            self._check_parent(new)
            if existing is not None:
                if existing.directory and not inode.directory:
                    raise IsDirectoryError("a directory has that name")
                if inode.directory and not existing.directory:
                    raise NotDirectoryError("a file has that name")
                if self._names.get(new):
                    raise NotEmptyError("the directory of that name is not empty")
                self._remove(new)
            self._move(old, new)
            if inode.directory:
                self.rename_below(old, new)

    def hide(self, old: bytes, hidden: bytes) -> None:
        """An open file is unlinked: until its last close it has the path `hidden`, which no listing shows.

        libfuse asks for this, and then for `unlink(hidden)`; but not for the latter if the last close overtakes the
        former. So nothing is left after the last close in any case. Raises NotFoundError, IsDirectoryError.
        """
        with self._lock:
            inode = self._inode(old)
            if inode.directory:
                raise IsDirectoryError("a directory")
            if not inode.handles:
                self._remove(old)
                return
            self._used += len(hidden) - len(old)
            self._link(hidden, self._unlink(old), listed=False)
            inode.hidden = hidden

    def hand_over(self, path: bytes) -> None:
        """A file's contents were saved elsewhere: it goes, and who still has it open can't write to it any more.

        Raises NotFoundError, IsDirectoryError.
        """
        with self._lock:
            inode = self._inode(path)
            self.unlink(path)
            inode.handed_over = True

    def rename_below(self, old: bytes, new: bytes) -> None:
        """Follow a folder that was renamed: everything below it has the new path from now on."""
        with self._lock:
            for path in [path for path in self._inodes if path.startswith(old + b"/")]:
                self._move(path, new + path[len(old) :])

    # -- contents ----------------------------------------------------------------------------------------------------

    def open(self, path: bytes) -> "ScratchFile":
        """Open a file for reading and writing. Raises NotFoundError, IsDirectoryError."""
        with self._lock:
            inode = self._inode(path)
            if inode.directory:
                raise IsDirectoryError("a directory")
            return ScratchFile(self, inode)

    @contextmanager
    def reading(self, path: bytes) -> Iterator[BinaryIO]:
        """A file's contents as they are now, as a Python file. Raises NotFoundError, IsDirectoryError."""
        with self._lock:
            inode = self._inode(path)
            if inode.directory:
                raise IsDirectoryError("a directory")
            copy = BytesIO(bytes(inode.data))
        with copy:
            yield copy

    # -- attributes --------------------------------------------------------------------------------------------------

    def set_mode(self, path: bytes, mode: int) -> None:
        """chmod(2). Raises NotFoundError."""
        with self._lock:
            self._inode(path).mode = mode & 0o7777

    def set_modified(self, path: bytes, modified_ns: int) -> None:
        """Set the time of the last change, as utimensat(2). Raises NotFoundError."""
        with self._lock:
            self._inode(path).modified_ns = modified_ns

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        """An extended attribute. Raises NotFoundError, NoAttributeError."""
        with self._lock:
            return self._xattr(self._inode(path), name)

    def listxattr(self, path: bytes) -> Sequence[bytes]:
        """The names of the extended attributes. Raises NotFoundError."""
        with self._lock:
            return tuple(self._inode(path).attributes)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set one, as setxattr(2). Raises NotFoundError, ExistsError and NoAttributeError (`flags`), NoSpaceError."""
        with self._lock:
            inode = self._inode(path)
            there = name in inode.attributes
            if there and flags & os.XATTR_CREATE:
                raise ExistsError("the attribute exists already")
            if not there and flags & os.XATTR_REPLACE:
                raise NoAttributeError("no such attribute")
            self._reserve(len(value) - len(inode.attributes[name]) if there else len(name) + len(value))
            inode.attributes[name] = value

    def removexattr(self, path: bytes, name: bytes) -> None:
        """Remove one. Raises NotFoundError, NoAttributeError."""
        with self._lock:
            inode = self._inode(path)
            self._used -= len(name) + len(self._xattr(inode, name))
            del inode.attributes[name]

    # -- what holds the lock ------------------------------------------------------------------------------------------

    def _inode(self, path: bytes) -> _Inode:
        inode = self._inodes.get(path)
        if inode is None:
            raise NotFoundError("no such file or directory")
        return inode

    def _xattr(self, inode: _Inode, name: bytes) -> bytes:
        value = inode.attributes.get(name)
        if value is None:
            raise NoAttributeError("no such attribute")
        return value

    def _reserve(self, more: int) -> None:
        """Count `more` bytes (or fewer, if negative) as used. Raises NoSpaceError."""
        if more > 0 and self._used + more > self._limit:
            raise NoSpaceError("the scratch area is full; --scratch-memory makes it larger")
        self._used += more

    def _check_parent(self, path: bytes) -> None:
        parent = self._inodes.get(path.rpartition(b"/")[0])
        if parent is not None and not parent.directory:
            raise NotDirectoryError("a file has the name of the folder")

    def _add(self, path: bytes, inode: _Inode) -> None:
        self._check_parent(path)
        self._reserve(_cost(path))
        self._link(path, inode)

    def _link(self, path: bytes, inode: _Inode, *, listed: bool = True) -> None:
        self._inodes[path] = inode
        folder, _, name = path.rpartition(b"/")
        if listed:
            self._names.setdefault(folder, {})[name] = None
        self._touch(folder)

    def _unlink(self, path: bytes) -> _Inode:
        folder, _, name = path.rpartition(b"/")
        names = self._names.get(folder)
        if names is not None:
            names.pop(name, None)  # a hidden file is in no listing
            if not names:
                del self._names[folder]
        self._touch(folder)
        return self._inodes.pop(path)

    def _touch(self, folder: bytes) -> None:
        if folder in self._inodes:
            self._inodes[folder].modified_ns = time.time_ns()

    def _move(self, old: bytes, new: bytes) -> None:
        self._used += len(new) - len(old)  # the few bytes of a longer name are never refused
        folder, _, name = old.rpartition(b"/")
        listed = name in self._names.get(folder, ())
        inode = self._unlink(old)
        self._link(new, inode, listed=listed)
        if inode.hidden is not None:
            inode.hidden = new

    def _remove(self, path: bytes) -> None:
        inode = self._unlink(path)
        inode.linked = False
        inode.hidden = None
        self._used -= _cost(path)
        self._forget(inode)

    def _forget(self, inode: _Inode) -> None:
        """Give back what a file held, if nobody can reach it any more."""
        if not inode.linked and not inode.handles:
            self._used -= len(inode.data) + sum(len(name) + len(value) for name, value in inode.attributes.items())
            inode.data = bytearray()
            inode.attributes = {}


class ScratchFile:
    """An open file of the scratch area; close it. Every method raises BadHandleError once it is closed."""

    def __init__(self, scratch: Scratch, inode: _Inode) -> None:
        self._scratch = scratch
        self._open: _Inode | None = inode
        inode.handles += 1

    @property
    def size(self) -> int:
        """Length in bytes."""
        with self._scratch._lock:
            return len(self._inode().data)

    @property
    def attributes(self) -> ScratchAttributes:
        """Mode, size and time, also of a file that was unlinked."""
        with self._scratch._lock:
            inode = self._inode()
            return ScratchAttributes(False, inode.mode, len(inode.data), inode.modified_ns)

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; none past the end."""
        with self._scratch._lock:
            return bytes(memoryview(self._inode().data)[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`, with zeros before it if the file is shorter.

        Raises NoSpaceError, ConflictError (`hand_over`).
        """
        with self._scratch._lock:
            inode = self._writable()
            if data:
                if offset > len(inode.data):
                    self._resize(inode, offset + len(data))
                self._scratch._reserve(max(offset + len(data) - len(inode.data), 0))
                inode.data[offset : offset + len(data)] = data
            inode.modified_ns = time.time_ns()

    def append(self, data: bytes) -> None:
        """Write `data` at the end. Raises as `write` does."""
        with self._scratch._lock:
            self.write(len(self._inode().data), data)

    def truncate(self, size: int) -> None:
        """Cut the file, or lengthen it with zeros. Raises as `write` does."""
        with self._scratch._lock:
            inode = self._writable()
            self._resize(inode, size)
            inode.modified_ns = time.time_ns()

    def close(self) -> None:
        """Close it. Closing twice does nothing."""
        with self._scratch._lock:
            inode, self._open = self._open, None
            if inode is not None:
                inode.handles -= 1
                if inode.hidden is not None and not inode.handles:
                    self._scratch._remove(inode.hidden)
                self._scratch._forget(inode)

    def _inode(self) -> _Inode:
        if self._open is None:
            raise BadHandleError("the file is closed")
        return self._open

    def _writable(self) -> _Inode:
        inode = self._inode()
        if inode.handed_over:
            raise ConflictError("the file was saved in Redis under another name: open it there")
        return inode

    def _resize(self, inode: _Inode, size: int) -> None:
        self._scratch._reserve(size - len(inode.data))
        if size < len(inode.data):
            del inode.data[size:]
        else:
            inode.data.extend(bytes(size - len(inode.data)))


def _cost(path: bytes) -> int:
    return ENTRY_COST + len(path)

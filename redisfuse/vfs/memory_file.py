"""An open file of the memory filesystem. Safe to use from any thread."""

from __future__ import annotations

import time

from redisfuse.errors import BadHandleError, ConflictError
from redisfuse.vfs.memory_inodes import MemoryFileStat, MemoryInode, MemoryInodes


class MemoryFile:
    """An open file.

    Every method but `close` raises BadHandleError once it is closed.
    """

    def __init__(self, inodes: MemoryInodes, inode: MemoryInode) -> None:
        """Count one more handle on `inode`; the caller holds the lock of `inodes`."""
        self._inodes = inodes
        self._open_inode: MemoryInode | None = inode
        inode.handle_count += 1

    @property
    def size(self) -> int:
        """Length in bytes."""
        with self._inodes.lock:
            return len(self._require_open().data)

    @property
    def stat(self) -> MemoryFileStat:
        """Mode, size and time, also of a file that was unlinked."""
        with self._inodes.lock:
            return self._require_open().stat()

    def read(self, offset: int, size: int) -> bytes:
        """Return at most `size` bytes from `offset`; none past the end."""
        with self._inodes.lock:
            return bytes(memoryview(self._require_open().data)[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`, with zeros before it if the file is shorter.

        Raises NoSpaceError, ConflictError (`MemoryFS.unlink_and_seal`).
        """
        with self._inodes.lock:
            inode = self._require_writable()
            if data:
                if offset > len(inode.data):
                    self._resize(inode, offset + len(data))
                self._inodes.reserve(max(offset + len(data) - len(inode.data), 0))
                inode.data[offset : offset + len(data)] = data
            inode.mtime_ns = time.time_ns()

    def append(self, data: bytes) -> None:
        """Write `data` at the end. Raises as `write` does."""
        with self._inodes.lock:
            self.write(len(self._require_open().data), data)

    def truncate(self, size: int) -> None:
        """Cut the file, or lengthen it with zeros. Raises as `write` does."""
        with self._inodes.lock:
            inode = self._require_writable()
            self._resize(inode, size)
            inode.mtime_ns = time.time_ns()

    def close(self) -> None:
        """Close the file. Closing twice does nothing."""
        with self._inodes.lock:
            inode, self._open_inode = self._open_inode, None
            if inode is not None:
                self._inodes.release_handle(inode)

    def _require_open(self) -> MemoryInode:
        if self._open_inode is None:
            raise BadHandleError("the file is closed")
        return self._open_inode

    def _require_writable(self) -> MemoryInode:
        inode = self._require_open()
        if inode.is_sealed:
            raise ConflictError("the file was saved in Redis under another name; open it there")
        return inode

    def _resize(self, inode: MemoryInode, size: int) -> None:
        self._inodes.reserve(size - len(inode.data))
        if size < len(inode.data):
            del inode.data[size:]
        else:
            inode.data.extend(bytes(size - len(inode.data)))

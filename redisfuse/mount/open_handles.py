"""Open files, and their use of the kernel's page cache.

All descriptors of an inode share its pages, but each must read the bytes that its own open fetched. `Inode.page_token`
identifies the bytes in the pages. An open keeps the pages only if it reads those very bytes; otherwise the kernel drops
them before open(2) returns. An open bypasses the page cache if another descriptor reads other bytes, or if the kernel
may have another size than its size.

Threads: any. The lock is a leaf and guards the table.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass

from redisfuse.errors import BadHandleError
from redisfuse.fuse.interface import OpenFlag
from redisfuse.vfs.content_types import FileContent
from redisfuse.vfs.growing_content import inline_bytes
from redisfuse.vfs.handles import Handle, ReadHandle, ReadWriteHandle
from redisfuse.vfs.inodes import Inode, InodeTable


@dataclass(slots=True)
class OpenFileEntry:
    """An open file and its inode."""

    inode: Inode
    handle: Handle
    flags: int  # of open(2)


class OpenHandles:
    """The open files of a mount, by handle."""

    def __init__(self, inodes: InodeTable) -> None:
        self._inodes = inodes
        self._lock = threading.Lock()
        # Guarded by `_lock`; single look-ups don't need it:
        self._numbers = itertools.count(1)
        self._files: dict[int, OpenFileEntry] = {}

    def add_file(self, inode: Inode, handle: Handle, flags: int) -> int:
        """Add an open file; return its handle."""
        self._inodes.attach_handle(inode, handle)
        with self._lock:
            number = next(self._numbers)
            self._files[number] = OpenFileEntry(inode, handle, flags)
        return number

    def get_file(self, number: int) -> OpenFileEntry:
        """Return an open file. Raises BadHandleError."""
        entry = self._files.get(number)
        if entry is None:
            raise BadHandleError("no file is open under this handle")
        return entry

    def remove_file(self, number: int) -> OpenFileEntry | None:
        """Remove and return a closed file; None for an unknown handle."""
        with self._lock:
            entry = self._files.pop(number, None)
        if entry is not None:
            self._inodes.detach_handle(entry.inode, entry.handle)
        return entry

    def list_files(self, inode: Inode) -> list[OpenFileEntry]:
        """Return the open files of an inode."""
        with self._lock:
            return [entry for entry in self._files.values() if entry.inode is inode]

    def replace_handle(self, entry: OpenFileEntry, handle: Handle) -> None:
        """Replace the handle of a descriptor.

        Its file was renamed from Redis to memory or back.
        """
        old, entry.handle = entry.handle, handle
        self._inodes.replace_handle(entry.inode, old, handle)


def share_pages(inode: Inode, handle: Handle, content: FileContent | None, *, is_coherent: bool) -> int:
    """Return the `OpenFlag` bits of an open, and record which bytes the pages hold.

    `handle` is attached to the inode already. `content` has the bytes that it reads; None while they are being edited.
    """
    data = inline_bytes(content)
    token = None if data is None else hash(data)
    if not inode.has_size(handle.size) or not _reads_same_bytes(inode, handle, token):
        return OpenFlag.DIRECT_IO
    keeps_pages = is_coherent and token is not None and token == inode.page_token
    inode.page_token = token
    return OpenFlag.KEEP_CACHE if keeps_pages else 0


def _reads_same_bytes(inode: Inode, handle: Handle, token: int | None) -> bool:
    """Return whether a new handle reads the same bytes as all others of the inode."""
    if len(inode.handles) < 2:
        return True
    others = [other for other in inode.handles if other is not handle]
    if isinstance(handle, ReadWriteHandle):
        return handle.file.readers_share_content(handle)
    if isinstance(handle, ReadHandle):
        return token is not None and all(
            isinstance(other, ReadHandle) and other.content_hash == token for other in others
        )
    return True  # all handles of a memory file read the same bytes

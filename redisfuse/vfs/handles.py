"""Handles of open files: one class for each kind.

Every method may be called from any thread. Lock order: `ReadWriteHandle` takes the lock of its `OpenFile` (see
`vfs/open_file.py`); the others have no lock of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from redisfuse.errors import BadHandleError, RedisFuseError
from redisfuse.vfs.content_types import FileContent
from redisfuse.vfs.growing_content import GrowingContent, inline_bytes, read_cached
from redisfuse.vfs.memory_file import MemoryFile
from redisfuse.vfs.open_file import OpenFile
from redisfuse.vfs.open_file_table import OpenFileTable
from redisfuse.vfs.write_tracker import WriteTracker


class Handle(Protocol):
    """An open file."""

    @property
    def size(self) -> int:
        """Length in bytes, for a stat without a path."""
        ...

    def try_read(self, offset: int, size: int) -> bytes | None:
        """Return what `read` returns, without blocking; None if it would block."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes; fewer only at the end of the file."""
        ...

    def write(self, offset: int, data: bytes, *, append: bool = False) -> None:
        """Write bytes at `offset`, or (`append`) at the end.

        Raises BadHandleError if it was not opened for writing.
        """
        ...

    def truncate(self, size: int) -> None:
        """Make it `size` bytes long. Raises as `write` does."""
        ...

    def flush(self, is_final: bool) -> None:
        """Handle the close of a descriptor.

        `is_final`: it ends the writing, so that all edits are committed.
        """
        ...

    def fsync(self) -> None:
        """Commit all edits."""
        ...

    def release(self) -> None:
        """Handle the close of the last descriptor."""
        ...

    def follow(self) -> bool:
        """Add the bytes that were appended since the open.

        Returns False if it reads a content that the file no longer has.
        """
        ...

    def freeze(self) -> None:
        """Keep the content that it reads: another inode has the file's name."""
        ...


class ReadHandle:
    """A handle for reading: the content as of its open."""

    def __init__(self, content: FileContent) -> None:
        self._content = content
        data = inline_bytes(content)
        self.content_hash = None if data is None else hash(data)  # of the bytes as of its open, if they are in memory

    @property
    def size(self) -> int:
        return self._content.size

    @property
    def is_in_memory(self) -> bool:
        """Whether reading and releasing it never block."""
        return inline_bytes(self._content) is not None

    def try_read(self, offset: int, size: int) -> bytes | None:
        return read_cached(self._content, offset, size)

    def read(self, offset: int, size: int) -> bytes:
        return self._content.read(offset, size)

    def write(self, offset: int, data: bytes, *, append: bool = False) -> None:
        raise BadHandleError("the file was not opened for writing")

    def truncate(self, size: int) -> None:
        raise BadHandleError("the file was not opened for writing")

    def flush(self, is_final: bool) -> None:
        """Do nothing: nothing was written."""

    def fsync(self) -> None:
        """Do nothing: nothing was written."""

    def release(self) -> None:
        self._content.close()

    def follow(self) -> bool:
        return _follow_content(self._content)

    def freeze(self) -> None:
        """Do nothing: its content never changes."""


class ReadWriteHandle:
    """A handle of a string or field in write mode.

    It reads the uncommitted edits, which all handles of the target share; without edits, the content as of its open.
    """

    def __init__(
        self,
        open_files: OpenFileTable,
        file: OpenFile,
        content: FileContent | None,
        flags: int,
        *,
        is_writer: bool,
        opener_tid: int,
    ) -> None:
        """Attach a handle to an open file.

        `flags` are those of open(2). `is_writer`: it is counted as a writer; the handle of a create always is.
        """
        self.file = file
        self.opener_tid = opener_tid  # the thread that opened it
        self.is_writer = is_writer
        self.is_reader = flags & os.O_ACCMODE != os.O_WRONLY  # of AttachedHandle
        self._open_files = open_files
        self._content = content
        self._content_version = file.content_version
        self._is_frozen = False
        self.writes = WriteTracker(has_unsaved=is_writer and file.is_new)  # a new file is saved even if it is empty
        with file.lock:
            file.attach(self)
            try:
                self._load_dropped_edits()
            except BaseException:
                file.attached_handles.discard(self)
                raise
            if self.is_reader:
                open_files.record_read(file, self._content, opener_tid)

    def _load_dropped_edits(self) -> None:
        """Open the content if the edits to read have been dropped meanwhile.

        Another handle's release does that. Without a content, the version that the program reads would not be known,
        and a rename over the file would not be checked against it.
        """
        if self._content is not None or self.file.size is not None or self.file.target is None:
            return
        if self.is_writer:
            self.file.begin_edit()
        else:
            self._content = self._open_files.content_loader.open_growing(self.file.target)
            self._content_version = self.file.content_version

    def private_view(self) -> FileContent | None:
        """Return the content that only this handle reads; None: the current one."""
        if self._is_frozen:
            return self._content
        return (
            None if self.file.size is not None or self._content_version != self.file.content_version else self._content
        )

    def follow(self) -> bool:
        with self.file.lock:
            content = self.private_view()
        return content is None or _follow_content(content)

    def freeze(self) -> None:
        with self.file.lock:
            self._is_frozen = self.private_view() is not None

    @property
    def edited_size(self) -> int | None:
        """The length of the edits that it reads; None if it reads none."""
        return None if self._is_frozen else self.file.size

    @property
    def size(self) -> int:
        with self.file.lock:
            edited_size = self.edited_size
            return self._current_content().size if edited_size is None else edited_size

    def try_read(self, offset: int, size: int) -> bytes | None:
        file, content = self.file, self._content
        if content is None or file.size is not None or self._content_version != file.content_version:
            return None
        return read_cached(content, offset, size)

    def read(self, offset: int, size: int) -> bytes:
        with self.file.lock:
            edited = None if self._is_frozen else self.file.read(offset, size)
            if edited is not None:
                return edited
            content = self._current_content()
        return content.read(offset, size)

    def _current_content(self) -> FileContent:
        """Return the content as of its open, or the one that replaced it.

        Only replacements by this mount count.
        """
        if self._content is None or not (self._is_frozen or self._content_version == self.file.content_version):
            return self._reload()
        return self._content

    def _reload(self) -> FileContent:
        """Open the content by which this mount replaced the one as of its open.

        Every handle must see it.
        """
        if self.file.target is None:
            raise BadHandleError("the file was unlinked, and its bytes are no longer available")
        old = self._content
        self._content, _precondition = self._open_files.content_loader.open_with_precondition(self.file.target)
        self._content_version = self.file.content_version
        if old is not None:
            old.close()
        return self._content

    def write(self, offset: int, data: bytes, *, append: bool = False) -> None:
        with self.file.lock:
            self._prepare_write()
            self.file.write(None if append else offset, data)
            self.writes.mark_written()

    def write_mapped(self, offset: int, data: bytes) -> None:
        """Write bytes of a shared mapping, which may be that of another handle."""
        with self.file.lock:
            self.write(offset, data)
            self.file.attached_handles.mark_written()

    def try_write(self, offset: int, data: bytes, *, append: bool) -> bool:
        """Write without blocking; return False, without effect, if it would block.

        It would if the base must be loaded or a commit is running.
        """
        if not self.file.lock.acquire(blocking=False):
            return False
        try:
            if not self.is_writer or not self.file.can_write_at_once(None if append else offset, len(data)):
                return False
            self.write(offset, data, append=append)
            return True
        finally:
            self.file.lock.release()

    def truncate(self, size: int) -> None:
        with self.file.lock:
            self._prepare_write()
            self.file.truncate(size)
            self.writes.mark_written()

    def _prepare_write(self) -> None:
        if not self.is_writer:
            raise BadHandleError("the file was not opened for writing")
        self.writes.check_may_write()

    @property
    def has_unsaved_writes(self) -> bool:
        """Whether a close must commit or fail.

        A handle has written since the last commit, or writes of this one were discarded. Waits for a commit that is
        running.
        """
        with self.file.lock:
            return self.writes.has_loss or self.file.has_unsaved_writes

    def flush(self, is_final: bool) -> None:
        if not self.is_writer or not is_final:
            return
        with self.file.lock:
            try:
                self._commit(self.file.flush)
            except RedisFuseError as error:
                self.file.refuse_edits(error)
                raise

    def fsync(self) -> None:
        with self.file.lock:
            self._commit(self.file.fsync)

    def _commit(self, commit: Callable[[], None]) -> None:
        """Commit the edits of all handles.

        Raises an error only if writes of this handle were not saved.
        """
        self.writes.check_nothing_lost()
        has_unsaved = self.writes.has_unsaved
        try:
            commit()
        except RedisFuseError:
            self.writes.check_nothing_lost()
            if has_unsaved:
                raise

    def try_release(self) -> bool:
        """Release without blocking; return False, without effect, if it would block.

        It would if edits must be committed.
        """
        if not self.file.lock.acquire(blocking=False):
            return False
        try:
            if self.file.is_dirty or (self._content is not None and inline_bytes(self._content) is None):
                return False
            self.release()
            return True
        finally:
            self.file.lock.release()

    def release(self) -> None:
        try:
            self._open_files.close_handle(self.file, is_writer=self.is_writer)
        finally:
            self.file.attached_handles.discard(self)  # not before: the program knows what the close commits
            if self._content is not None:
                self._content.close()


class MemoryHandle:
    """A handle of a junk file, which is written directly to the memory filesystem."""

    def __init__(self, file: MemoryFile) -> None:
        self.file = file

    @property
    def size(self) -> int:
        return self.file.size

    def try_read(self, offset: int, size: int) -> bytes:
        return self.file.read(offset, size)

    def read(self, offset: int, size: int) -> bytes:
        return self.file.read(offset, size)

    def write(self, offset: int, data: bytes, *, append: bool = False) -> None:
        if append:
            self.file.append(data)
        else:
            self.file.write(offset, data)

    def truncate(self, size: int) -> None:
        self.file.truncate(size)

    def flush(self, is_final: bool) -> None:
        """Do nothing: it is in memory."""

    def fsync(self) -> None:
        """Do nothing: it is in memory."""

    def release(self) -> None:
        self.file.close()

    def follow(self) -> bool:
        return True

    def freeze(self) -> None:
        """Do nothing: all handles read the same bytes."""


def _follow_content(content: FileContent) -> bool:
    if not isinstance(content, GrowingContent):
        return False
    content.refresh()
    return not content.is_replaced

"""What `open` and `opendir` give: one class a kind, each safe from any thread."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

from redisfuse.errors import BadHandleError, ConflictError, RedisFuseError
from redisfuse.vfs.content_types import FileContent
from redisfuse.vfs.growing_content import inline_bytes, read_cached
from redisfuse.vfs.memory_file import MemoryFile
from redisfuse.vfs.open_files import OpenFile, OpenFiles

_EntryT = TypeVar("_EntryT")


class Handle(Protocol):
    """An open file."""

    @property
    def size(self) -> int:
        """Its length in bytes, for those who can't ask by path."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; short only at the end."""
        ...

    def write(self, offset: int, data: bytes, *, append: bool = False) -> None:
        """Put bytes at `offset`, or (`append`) at the end; raises BadHandleError if it was not opened for writing."""
        ...

    def truncate(self, size: int) -> None:
        """Make it `size` bytes long."""
        ...

    def flush(self, is_final: bool) -> None:
        """A descriptor was closed; `final`: by the program that opened it, or no other has it."""
        ...

    def fsync(self) -> None:
        """Make it durable."""
        ...

    def release(self) -> None:
        """The last descriptor was closed."""
        ...


class ReadHandle:
    """A file opened for reading: what it held at that moment."""

    def __init__(self, content: FileContent) -> None:
        self._content = content

    @property
    def size(self) -> int:
        return self._content.size

    @property
    def is_in_memory(self) -> bool:
        """Whether nothing has to be waited for to read it or to let go of it."""
        return inline_bytes(self._content) is not None

    def try_read(self, offset: int, size: int) -> bytes | None:
        """As `read`, without waiting; None if that takes more than memory."""
        return read_cached(self._content, offset, size)

    def read(self, offset: int, size: int) -> bytes:
        return self._content.read(offset, size)

    def write(self, offset: int, data: bytes, *, append: bool = False) -> None:
        raise BadHandleError("the file was not opened for writing")

    def truncate(self, size: int) -> None:
        raise BadHandleError("the file was not opened for writing")

    def flush(self, is_final: bool) -> None:
        """Nothing was written."""

    def fsync(self) -> None:
        """Nothing was written."""

    def release(self) -> None:
        self._content.close()


class ReadWriteHandle:
    """A string or field in write mode: the edit in progress that all its handles share, else what `open` saw."""

    def __init__(
        self,
        open_files: OpenFiles,
        file: OpenFile,
        content: FileContent | None,
        flags: int,
        *,
        is_writer: bool,
        opener_tid: int,
    ) -> None:
        """`flags`: of open(2). `is_writer`: counted as a writer; who makes a file is one, whatever the flags are."""
        self.file = file
        self.opener_tid = opener_tid  # the thread that opened it
        self.is_writer = is_writer
        self.is_reader = flags & os.O_ACCMODE != os.O_WRONLY  # for Opening
        self._open_files = open_files
        self._content = content
        self._content_version = file.content_version
        self._has_written = False
        self._conflict: ConflictError | None = None  # for which what was written through this was not saved
        file.attached_handles.add(self)

    def mark_conflicted(self, error: ConflictError) -> None:
        """What was written through this, or would be over what it was opened on, is not saved."""
        self._conflict = error

    def private_view(self) -> FileContent | None:
        """What it alone reads; None if it reads what is there now."""
        return (
            None if self.file.size is not None or self._content_version != self.file.content_version else self._content
        )

    @property
    def size(self) -> int:
        with self.file.lock:
            edited = self.file.size
            return self._current_content().size if edited is None else edited

    def read(self, offset: int, size: int) -> bytes:
        with self.file.lock:
            edited = self.file.read(offset, size)
            if edited is not None:
                return edited
            snapshot = self._current_content()
        return snapshot.read(offset, size)

    def _current_content(self) -> FileContent:
        """What `open` saw, or what this mount itself has put in its place since."""
        if self._content is None or self._content_version != self.file.content_version:
            return self._reload()
        return self._content

    def _reload(self) -> FileContent:
        """This mount itself replaced the content since: that is what every descriptor must see."""
        if self.file.target is None:
            raise BadHandleError("the file was unlinked and its bytes are gone")
        old = self._content
        self._content, _basis = self._open_files.content_loader.open_with_precondition(self.file.target)
        self._content_version = self.file.content_version
        if old is not None:
            old.close()
        return self._content

    def write(self, offset: int, data: bytes, *, append: bool = False) -> None:
        self._prepare_write()
        self.file.write(None if append else offset, data)

    def try_write(self, offset: int, data: bytes, *, append: bool) -> bool:
        """As `write`, without waiting; False, and nothing was done, if the edit must be begun, or is being saved."""
        if not self.file.lock.acquire(blocking=False):
            return False
        try:
            if self.file.size is None or not self.is_writer:
                return False
            self.write(offset, data, append=append)
            return True
        finally:
            self.file.lock.release()

    def truncate(self, size: int) -> None:
        self._prepare_write()
        self.file.truncate(size)

    def _prepare_write(self) -> None:
        if not self.is_writer:
            raise BadHandleError("the file was not opened for writing")
        self._check_no_conflict()
        self._has_written = True

    def _check_no_conflict(self) -> None:
        """What was refused once is said again, until it is opened anew: no later success may seem to have saved it."""
        if self._conflict is not None:
            raise self._conflict.with_traceback(None)

    def flush(self, is_final: bool) -> None:
        if self.is_writer and is_final:
            self._run_commit(self.file.flush)

    def fsync(self) -> None:
        self._run_commit(self.file.fsync)

    def _run_commit(self, commit: Callable[[], None]) -> None:
        if self._has_written:
            self._check_no_conflict()
        commit()

    def try_release(self) -> bool:
        """As `release`, without waiting; False, and nothing was done, if something is left to be saved."""
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
        self.file.attached_handles.discard(self)
        if self._content is not None:
            self._content.close()
        self._open_files.close_handle(self.file, is_writer=self.is_writer)


class MemoryHandle:
    """A junk file: written straight into the scratch area."""

    def __init__(self, file: MemoryFile) -> None:
        self.file = file

    @property
    def size(self) -> int:
        return self.file.size

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
        """It lives in memory."""

    def fsync(self) -> None:
        """It lives in memory."""

    def release(self) -> None:
        self.file.close()


class DirectoryHandle(Generic[_EntryT]):
    """A listing in progress. Keeps only the last names given, so that a directory of any length costs little.

    Beginning again (rewinddir), or going back further than is kept, lists anew. An error ends the listing for good, so
    that part of a directory is never taken for the whole.
    """

    MAX_BUFFERED_ENTRIES = 4096  # names: more than the kernel asks for at once
    ENTRIES_PER_BATCH = 64  # that are taken from the listing at once

    def __init__(self, list_entries: Callable[[], Iterator[_EntryT]]) -> None:
        self._list_entries = list_entries
        self._lock = threading.Lock()
        self._rewind()

    def _rewind(self) -> None:
        self._entries = self._list_entries()
        self._buffered: deque[_EntryT] = deque()
        self._first_offset = 0  # number of the first name that is kept
        self._exhausted = False
        self._error: RedisFuseError | None = None

    def batches(self, offset: int) -> Iterator[list[_EntryT]]:
        """The names after the first `offset`, some at a time. Raises what the listing raises."""
        if offset == 0:
            with self._lock:
                if self._first_offset or self._buffered or self._error:
                    self._rewind()
        number = offset
        while portion := self._read_batch(number):
            yield portion
            number += len(portion)

    def _read_batch(self, offset: int) -> list[_EntryT]:
        """Some names from one on, none at the end."""
        with self._lock:
            if offset < self._first_offset:
                self._rewind()
            while offset >= self._first_offset + len(self._buffered):
                if not self._fetch_batch():
                    return []
            kept, start = self._buffered, offset - self._first_offset
            return [kept[index] for index in range(start, min(start + self.ENTRIES_PER_BATCH, len(kept)))]

    def _fetch_batch(self) -> bool:
        """Keep some more of the listing; False at its end."""
        if self._error is not None:
            raise self._error
        if self._exhausted:
            return False
        before = len(self._buffered)
        try:
            self._buffered.extend(islice(self._entries, self.ENTRIES_PER_BATCH))
        except RedisFuseError as error:
            self._error = error  # what came before it is given first
        if len(self._buffered) == before:
            if self._error is not None:
                raise self._error
            self._exhausted = True
            return False
        while len(self._buffered) > self.MAX_BUFFERED_ENTRIES:
            self._buffered.popleft()
            self._first_offset += 1
        return True

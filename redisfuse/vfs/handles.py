"""What `open` and `opendir` give: one class a kind, each safe from any thread."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

from redisfuse.errors import BadHandleError, ConflictError, RedisFuseError
from redisfuse.vfs.content_types import Snapshot
from redisfuse.vfs.growing_content import content_of, present
from redisfuse.vfs.memory_fs import ScratchFile
from redisfuse.vfs.open_files import OpenFile, OpenFiles

_T = TypeVar("_T")


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

    def flush(self, final: bool) -> None:
        """A descriptor was closed; `final`: by the program that opened it, or no other has it."""
        ...

    def fsync(self) -> None:
        """Make it durable."""
        ...

    def release(self) -> None:
        """The last descriptor was closed."""
        ...


class SnapshotHandle:
    """A file opened for reading: what it held at that moment."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    @property
    def size(self) -> int:
        return self._snapshot.size

    @property
    def in_memory(self) -> bool:
        """Whether nothing has to be waited for to read it or to let go of it."""
        return content_of(self._snapshot) is not None

    def present(self, offset: int, size: int) -> bytes | None:
        """As `read`, without waiting; None if that takes more than memory."""
        return present(self._snapshot, offset, size)

    def read(self, offset: int, size: int) -> bytes:
        return self._snapshot.read(offset, size)

    def write(self, offset: int, data: bytes, *, append: bool = False) -> None:
        raise BadHandleError("the file was not opened for writing")

    def truncate(self, size: int) -> None:
        raise BadHandleError("the file was not opened for writing")

    def flush(self, final: bool) -> None:
        """Nothing was written."""

    def fsync(self) -> None:
        """Nothing was written."""

    def release(self) -> None:
        self._snapshot.close()


class FileHandle:
    """A string or field in write mode: the edit in progress that all its handles share, else what `open` saw."""

    def __init__(
        self, files: OpenFiles, file: OpenFile, snapshot: Snapshot | None, flags: int, *, writing: bool, opener: int
    ) -> None:
        """`flags`: of open(2). `writing`: counted as a writer; who makes a file is one, whatever the flags are."""
        self.file = file
        self.opener = opener  # the thread that opened it
        self.writing = writing
        self.reads = flags & os.O_ACCMODE != os.O_WRONLY  # for Opening
        self._files = files
        self._snapshot = snapshot
        self._version = file.version
        self._wrote = False
        self._refused: ConflictError | None = None  # for which what was written through this was not saved
        file.openings.add(self)

    def refuse(self, error: ConflictError) -> None:
        """What was written through this, or would be over what it was opened on, is not saved."""
        self._refused = error

    def seen(self) -> Snapshot | None:
        """What it alone reads; None if it reads what is there now."""
        return None if self.file.size is not None or self._version != self.file.version else self._snapshot

    @property
    def size(self) -> int:
        with self.file.lock:
            edited = self.file.size
            return self._current().size if edited is None else edited

    def read(self, offset: int, size: int) -> bytes:
        with self.file.lock:
            edited = self.file.read(offset, size)
            if edited is not None:
                return edited
            snapshot = self._current()
        return snapshot.read(offset, size)

    def _current(self) -> Snapshot:
        """What `open` saw, or what this mount itself has put in its place since."""
        if self._snapshot is None or self._version != self.file.version:
            return self._renew()
        return self._snapshot

    def _renew(self) -> Snapshot:
        """This mount itself replaced the content since: that is what every descriptor must see."""
        if self.file.target is None:
            raise BadHandleError("the file was unlinked and its bytes are gone")
        old = self._snapshot
        self._snapshot, _basis = self._files.snapshot(self.file.target)
        self._version = self.file.version
        if old is not None:
            old.close()
        return self._snapshot

    def write(self, offset: int, data: bytes, *, append: bool = False) -> None:
        self._check_writing()
        self.file.write(None if append else offset, data)

    def write_present(self, offset: int, data: bytes, *, append: bool) -> bool:
        """As `write`, without waiting; False, and nothing was done, if the edit must be begun, or is being saved."""
        if not self.file.lock.acquire(blocking=False):
            return False
        try:
            if self.file.size is None or not self.writing:
                return False
            self.write(offset, data, append=append)
            return True
        finally:
            self.file.lock.release()

    def truncate(self, size: int) -> None:
        self._check_writing()
        self.file.truncate(size)

    def _check_writing(self) -> None:
        if not self.writing:
            raise BadHandleError("the file was not opened for writing")
        self._check_not_refused()
        self._wrote = True

    def _check_not_refused(self) -> None:
        """What was refused once is said again, until it is opened anew: no later success may seem to have saved it."""
        if self._refused is not None:
            raise self._refused.with_traceback(None)

    def flush(self, final: bool) -> None:
        if self.writing and final:
            self._reporting(self.file.flush)

    def fsync(self) -> None:
        self._reporting(self.file.fsync)

    def _reporting(self, commit: Callable[[], None]) -> None:
        if self._wrote:
            self._check_not_refused()
        commit()

    def release_present(self) -> bool:
        """As `release`, without waiting; False, and nothing was done, if something is left to be saved."""
        if not self.file.lock.acquire(blocking=False):
            return False
        try:
            if self.file.uncommitted or (self._snapshot is not None and content_of(self._snapshot) is None):
                return False
            self.release()
            return True
        finally:
            self.file.lock.release()

    def release(self) -> None:
        self.file.openings.discard(self)
        if self._snapshot is not None:
            self._snapshot.close()
        self._files.closed(self.file, writing=self.writing)


class ScratchHandle:
    """A junk file: written straight into the scratch area."""

    def __init__(self, file: ScratchFile) -> None:
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

    def flush(self, final: bool) -> None:
        """It lives in memory."""

    def fsync(self) -> None:
        """It lives in memory."""

    def release(self) -> None:
        self.file.close()


class DirectoryHandle(Generic[_T]):
    """A listing in progress. Keeps only the last names given, so that a directory of any length costs little.

    Beginning again (rewinddir), or going back further than is kept, lists anew. An error ends the listing for good, so
    that part of a directory is never taken for the whole.
    """

    KEPT = 4096  # names: more than the kernel asks for at once
    PORTION = 64  # that are taken from the listing at once

    def __init__(self, begin: Callable[[], Iterator[_T]]) -> None:
        self._begin = begin
        self._lock = threading.Lock()
        self._restart()

    def _restart(self) -> None:
        self._source = self._begin()
        self._kept: deque[_T] = deque()
        self._first = 0  # number of the first name that is kept
        self._ended = False
        self._error: RedisFuseError | None = None

    def portions(self, offset: int) -> Iterator[list[_T]]:
        """The names after the first `offset`, some at a time. Raises what the listing raises."""
        if offset == 0:
            with self._lock:
                if self._first or self._kept or self._error:
                    self._restart()
        number = offset
        while portion := self._portion(number):
            yield portion
            number += len(portion)

    def _portion(self, number: int) -> list[_T]:
        """Some names from one on, none at the end."""
        with self._lock:
            if number < self._first:
                self._restart()
            while number >= self._first + len(self._kept):
                if not self._advance():
                    return []
            kept, start = self._kept, number - self._first
            return [kept[index] for index in range(start, min(start + self.PORTION, len(kept)))]

    def _advance(self) -> bool:
        """Keep some more of the listing; False at its end."""
        if self._error is not None:
            raise self._error
        if self._ended:
            return False
        before = len(self._kept)
        try:
            self._kept.extend(islice(self._source, self.PORTION))
        except RedisFuseError as error:
            self._error = error  # what came before it is given first
        if len(self._kept) == before:
            if self._error is not None:
                raise self._error
            self._ended = True
            return False
        while len(self._kept) > self.KEPT:
            self._kept.popleft()
            self._first += 1
        return True

"""Handle of an open directory. Every method may be called from any thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar

from redisfuse.errors import RedisFuseError

_EntryT = TypeVar("_EntryT")


class DirectoryHandle(Generic[_EntryT]):
    """A listing in progress, of which only the last entries are buffered.

    So a long directory costs little memory. A read from the start (rewinddir), or from before the buffer, starts a new
    listing. After an error every further read fails, so that a part of a directory is never taken for the whole.

    Lock order: the lock is held while the listing fetches from the server, so it comes before all locks of that path.
    """

    MAX_BUFFERED_ENTRIES = 4096  # more than one READDIR request of the kernel can return
    ENTRIES_PER_BATCH = 64  # taken from the listing at once

    def __init__(self, listing: Iterable[_EntryT]) -> None:
        """Start a listing. Each iteration over `listing` must list the directory again."""
        self._listing = listing
        self._lock = threading.Lock()
        # `_rewind` sets the fields that are guarded by `_lock`.
        self._rewind()

    def _rewind(self) -> None:
        self._entries = iter(self._listing)
        self._buffered: deque[_EntryT] = deque()
        self._first_offset = 0  # index of the first buffered entry in the listing
        self._exhausted = False
        self._error: RedisFuseError | None = None

    def batches(self, offset: int) -> Iterator[list[_EntryT]]:
        """Yield the entries after the first `offset`, in batches.

        Raises what the listing raises.
        """
        if offset == 0:
            with self._lock:
                if self._first_offset or self._buffered or self._error:
                    self._rewind()
        while batch := self._read_batch(offset):
            yield batch
            offset += len(batch)

    def _read_batch(self, offset: int) -> list[_EntryT]:
        """Return a batch of entries from `offset`; an empty one at the end."""
        with self._lock:
            if offset < self._first_offset:
                self._rewind()
            while offset >= self._first_offset + len(self._buffered):
                if not self._fetch_batch():
                    return []
            buffered, start = self._buffered, offset - self._first_offset
            return [buffered[index] for index in range(start, min(start + self.ENTRIES_PER_BATCH, len(buffered)))]

    def _fetch_batch(self) -> bool:
        """Buffer more of the listing; return False at its end."""
        if self._error is not None:
            raise self._error
        if self._exhausted:
            return False
        old_length = len(self._buffered)
        try:
            self._buffered.extend(islice(self._entries, self.ENTRIES_PER_BATCH))
        except RedisFuseError as error:
            self._error = error  # raised after the entries before it were returned
        if len(self._buffered) == old_length:
            if self._error is not None:
                raise self._error
            self._exhausted = True
            return False
        while len(self._buffered) > self.MAX_BUFFERED_ENTRIES:
            self._buffered.popleft()
            self._first_offset += 1
        return True

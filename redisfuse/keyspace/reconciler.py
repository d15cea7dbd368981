"""Reconciles the index with scans, verified keys and own writes.

State only: no thread, no connection. Three things happen concurrently: a scan builds a new index, changed ("dirty")
keys are verified and corrected, and this process writes keys itself. They are reconciled as follows:

- The reply to a SCAN is older than a verification made since that SCAN was sent, so it is ignored for those keys.
- A verification is older than a write that this process made since the EXISTS was sent, so it is ignored for those
  keys; they are verified again.
- `reset` begins a new epoch: results of an earlier epoch are ignored altogether.

Thread-safe: every method is one step under one lock. Lock order: `IndexReconciler._lock` → `Index._lock`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from redisfuse.keyspace.index import Index
from redisfuse.keyspace.index_backend import KeyLayout


class ScanSupersededError(Exception):
    """The current scan has become useless."""


@dataclass(frozen=True, slots=True)
class VerifyBatch:
    """Keys to verify."""

    keys: list[bytes]
    epoch: int
    dirty_since: float  # time.monotonic() when the first of them became dirty


@dataclass(frozen=True, slots=True)
class IndexScan:
    """A running scan."""

    index: Index
    epoch: int


class ShardIndex(Protocol):
    """The part of a reconciler that the follower and scanner of a server use."""

    @property
    def index(self) -> Index:
        """The index in use."""

    @property
    def is_ready(self) -> bool:
        """Whether the index has all keys of the server."""

    @property
    def is_scanning(self) -> bool:
        """Whether the server is being scanned."""

    @property
    def dirty_count(self) -> int:
        """The number of keys to verify."""

    @property
    def has_unverifiable_keys(self) -> bool:
        """Whether the ACL has denied EXISTS since the last scan began."""

    def count_keys(self) -> int | None:
        """Return the number of the server's keys in the index; None if that is unknown."""

    def reset(self) -> None:
        """Drop everything about the server's keys."""

    def clear_dirty(self) -> None:
        """Forget the dirty keys: a scan follows."""

    def mark_dirty(self, keys: Iterable[bytes]) -> int:
        """Have keys verified; return how many keys are dirty now."""

    def sample_keys(self, count: int) -> list[bytes]:
        """Return some keys that should exist on the server."""

    def begin_scan(self) -> IndexScan:
        """Begin a scan."""

    def register_scan_command(self) -> None:
        """Note that a SCAN is about to be sent."""

    def add_scanned(self, scan: IndexScan, keys: list[bytes]) -> None:
        """Add the reply to the last SCAN but one."""

    def finish_scan(self, scan: IndexScan) -> Index | None:
        """Finish a scan; return the index that a new one has replaced."""

    def abandon_scan(self, scan: IndexScan) -> None:
        """End a scan that has failed or finished."""


class IndexReconciler:
    """The index in use, the index that a scan is building, and the dirty keys."""

    def __init__(self, layout: KeyLayout, *, max_memory_bytes: int) -> None:
        self._layout = layout
        self._max_memory_bytes = max_memory_bytes
        self._lock = threading.Lock()  # guards all below
        self._epoch = 0
        self.index = self._create_index()  # in use: replaced, never emptied
        self.is_ready = False  # whether `index` is complete
        self._building_index: Index | None = None
        self._dirty_keys: set[bytes] = set()  # changed, to be verified
        self._dirty_since = 0.0
        self._written_keys: set[bytes] = set()  # written by this process since the last batch was taken
        self._verified_keys: set[bytes] = set()  # verified since the last SCAN was sent
        self._previously_verified_keys: set[bytes] = set()  # verified between the last SCAN and the one before it
        self.has_unverifiable_keys = False  # the ACL has denied EXISTS since the last scan began

    def _create_index(self) -> Index:
        return Index(self._layout, max_memory_bytes=self._max_memory_bytes)

    @property
    def is_scanning(self) -> bool:
        """Whether a scan is running."""
        return self._building_index is not None

    @property
    def dirty_count(self) -> int:
        """The number of keys to verify."""
        return len(self._dirty_keys)

    def count_keys(self) -> int | None:
        """Return the number of keys in the index."""
        return len(self.index)

    def reset(self) -> None:
        """Drop everything and begin a new epoch."""
        with self._lock:
            self._epoch += 1
            self.index = self._create_index()
            self.is_ready = False
            self._building_index = None
            self._dirty_keys.clear()
            self._written_keys.clear()

    def clear_dirty(self) -> None:
        """Forget the dirty keys: a scan follows."""
        with self._lock:
            self._dirty_keys.clear()

    # -- dirty keys --------------------------------------------------------------------------------------------------

    def mark_dirty(self, keys: Iterable[bytes]) -> int:
        """Have keys verified; return how many keys are dirty now."""
        with self._lock:
            self._mark_dirty(keys)
            return len(self._dirty_keys)

    def _mark_dirty(self, keys: Iterable[bytes]) -> None:
        if not self._dirty_keys:
            self._dirty_since = time.monotonic()
        self._dirty_keys.update(keys)

    def apply_write(self, key: bytes, exists: bool) -> bool:
        """Record that this process has written or deleted the key.

        Returns whether the key was, or may have been, added or removed.
        """
        with self._lock:
            is_moved = not self.is_ready
            for index in self._active_indexes():
                is_moved = (index.add(key) if exists else index.discard(key)) or is_moved
            self._written_keys.add(key)
            self._record_verified((key,))
            self._mark_dirty((key,))
            return is_moved

    def _record_verified(self, keys: Collection[bytes]) -> None:
        """Ignore what a running scan still returns about these keys. The lock is held."""
        if self._building_index is not None:
            self._verified_keys.update(keys)

    def _active_indexes(self) -> list[Index]:
        """Return the indexes that a change must update."""
        return [index for index in (self.index if self.is_ready else None, self._building_index) if index is not None]

    def next_batch(self, max_keys: int) -> VerifyBatch:
        """Take up to `max_keys` dirty keys."""
        with self._lock:
            if len(self._dirty_keys) <= max_keys:
                keys, self._dirty_keys = list(self._dirty_keys), set()
            else:
                keys = [self._dirty_keys.pop() for _ in range(max_keys)]
            self._written_keys = set()
            return VerifyBatch(keys, self._epoch, self._dirty_since)

    def requeue_batch(self, batch: VerifyBatch) -> None:
        """Have the keys of a batch verified again, because it failed."""
        with self._lock:
            if batch.epoch == self._epoch:
                self._mark_dirty(batch.keys)

    def apply_verified(self, keys: Sequence[bytes], existence: Sequence[bool | None], epoch: int) -> set[bytes] | None:
        """Update the indexes by the existence of keys (None: unknown).

        Returns the keys that were added or removed. Returns None if the epoch is over.
        """
        present = [key for key, exists in zip(keys, existence, strict=True) if exists]
        absent = [key for key, exists in zip(keys, existence, strict=True) if exists is False]
        moved: set[bytes] = set()
        with self._lock:
            if epoch != self._epoch:
                return None
            if self._written_keys:
                present = [key for key in present if key not in self._written_keys]
                absent = [key for key in absent if key not in self._written_keys]
            for index in self._active_indexes():
                missing = index.find_missing(present)
                index.add_many(missing)
                moved.update(missing)
                moved.update(key for key in absent if index.discard(key))
            self._record_verified([*present, *absent])
            self.has_unverifiable_keys = self.has_unverifiable_keys or None in existence
        return moved

    def sample_keys(self, count: int) -> list[bytes]:
        """Return some keys that should exist."""
        with self._lock:
            index = self.index if self.is_ready else self._building_index
            keys = [] if index is None else index.sample_keys(4 * count)
            return [key for key in keys if key not in self._dirty_keys][:count]

    # -- scans -------------------------------------------------------------------------------------------------------

    def begin_scan(self) -> IndexScan:
        """Begin to build a new index."""
        with self._lock:
            self.has_unverifiable_keys = False
            self._building_index = self._create_index()
            self._verified_keys, self._previously_verified_keys = set(), set()
            return IndexScan(self._building_index, self._epoch)

    def register_scan_command(self) -> None:
        """Note that a SCAN is about to be sent.

        Its reply is newer than all verifications so far.
        """
        with self._lock:
            self._previously_verified_keys, self._verified_keys = self._verified_keys, set()

    def add_scanned(self, scan: IndexScan, keys: list[bytes]) -> None:
        """Add the reply to the last SCAN but one to the new index.

        Raises ScanSupersededError, NoSpaceError.
        """
        with self._lock:
            if scan.epoch != self._epoch:
                raise ScanSupersededError
            newer: Collection[bytes] = self._verified_keys | self._previously_verified_keys
            scan.index.add_many([key for key in keys if key not in newer] if newer else keys)
        if scan.index.is_full:
            scan.index.spill_to_disk()

    def finish_scan(self, scan: IndexScan) -> Index | None:
        """Use the new index; return the one that it replaced, if that was ready.

        Raises ScanSupersededError.
        """
        with self._lock:
            if scan.epoch != self._epoch:
                raise ScanSupersededError
            old = self.index if self.is_ready else None
            self.index = scan.index
            self.is_ready = True
            self._building_index = None
            return old

    def abandon_scan(self, scan: IndexScan) -> None:
        """Stop updating the new index: the scan has failed or finished."""
        with self._lock:
            if self._building_index is scan.index:
                self._building_index = None

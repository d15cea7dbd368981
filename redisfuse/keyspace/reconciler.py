"""What is known of the keys, and which keys are to be looked at: state only, and its steps. No thread, no server.

Three things happen at once: a scan builds a new index, keys that were told of are looked at and put right, and this
process changes keys itself. They are reconciled so:

- A scan's answer is older than what was looked at since that SCAN was sent, so it is not believed for those keys.
- What was looked at is older than what this process has changed since the question was sent, so it is not believed for
  those keys; they are looked at again.
- `reset` begins a new epoch: what was asked in an earlier one is not believed at all.

Thread-safe: every method is one step under one lock, inside which only the index's own lock is taken.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from redisfuse.keyspace.index import Index


class ScanSupersededError(Exception):
    """The scan under way is of no use any more."""


@dataclass(frozen=True, slots=True)
class VerifyBatch:
    """Keys to look at."""

    keys: list[bytes]
    epoch: int
    dirty_since: float  # time.monotonic() when the first of them was told of


@dataclass(frozen=True, slots=True)
class IndexScan:
    """A scan under way."""

    index: Index
    epoch: int


class IndexReconciler:
    """The index in use, the one being built, and the keys in doubt."""

    def __init__(self, index_factory: Callable[[], Index]) -> None:
        """`new_index` makes an empty index."""
        self._index_factory = index_factory
        self._lock = threading.Lock()
        self._epoch = 0
        self.index = index_factory()  # in use: replaced, never emptied
        self.is_ready = False  # whether it is whole
        self._building_index: Index | None = None
        self._dirty_keys: set[bytes] = set()  # told of, to be looked at
        self._dirty_since = 0.0
        self._written_keys: set[bytes] = set()  # changed by this process since the last batch was taken
        self._verified_keys: set[bytes] = set()  # looked at since the last SCAN was sent
        self._previously_verified_keys: set[bytes] = set()  # looked at between the last SCAN and the one before it
        self.has_unverifiable_keys = False  # some keys could not be looked at since the last scan began: an ACL

    @property
    def is_scanning(self) -> bool:
        """Whether a scan is under way."""
        return self._building_index is not None

    @property
    def dirty_count(self) -> int:
        """How many keys are to be looked at."""
        return len(self._dirty_keys)

    def reset(self) -> None:
        """Nothing is known any more."""
        with self._lock:
            self._epoch += 1
            self.index = self._index_factory()
            self.is_ready = False
            self._building_index = None
            self._dirty_keys.clear()
            self._written_keys.clear()

    def clear_dirty(self) -> None:
        """Nobody is going to look: a scan will."""
        with self._lock:
            self._dirty_keys.clear()

    # -- keys to be looked at ----------------------------------------------------------------------------------------

    def mark_dirty(self, keys: Iterable[bytes]) -> int:
        """These keys are to be looked at; answer how many are."""
        with self._lock:
            self._mark_dirty(keys)
            return len(self._dirty_keys)

    def _mark_dirty(self, keys: Iterable[bytes]) -> None:
        if not self._dirty_keys:
            self._dirty_since = time.monotonic()
        self._dirty_keys.update(keys)

    def apply_write(self, key: bytes, exists: bool) -> None:
        """This process has made or removed the key."""
        with self._lock:
            for index in self._active_indexes():
                if exists:
                    index.add(key)
                else:
                    index.discard(key)
            self._written_keys.add(key)
            if self._building_index is not None:
                self._verified_keys.add(key)
            self._mark_dirty((key,))

    def _active_indexes(self) -> list[Index]:
        """What a change goes into."""
        return [index for index in (self.index if self.is_ready else None, self._building_index) if index is not None]

    def next_batch(self, max_keys: int) -> VerifyBatch:
        """Keys to look at now, up to `limit`."""
        with self._lock:
            if len(self._dirty_keys) <= max_keys:
                keys, self._dirty_keys = list(self._dirty_keys), set()
            else:
                keys = [self._dirty_keys.pop() for _ in range(max_keys)]
            self._written_keys = set()
            return VerifyBatch(keys, self._epoch, self._dirty_since)

    def requeue_batch(self, batch: VerifyBatch) -> None:
        """The keys of a batch could not be looked at: they are to be again."""
        with self._lock:
            if batch.epoch == self._epoch:
                self._mark_dirty(batch.keys)

    def apply_verified(self, keys: Sequence[bytes], existence: Sequence[bool | None], epoch: int) -> set[bytes] | None:
        """Believe what was found of keys (None: could not be found out); answer which of them came or went.

        None if what was asked is out of date.
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
                fresh = index.find_missing(present)
                index.add_many(fresh)
                moved.update(fresh)
                moved.update(key for key in absent if index.discard(key))
            if self._building_index is not None:
                self._verified_keys.update(present, absent)
            self.has_unverifiable_keys = self.has_unverifiable_keys or None in existence
        return moved

    def sample_keys(self, count: int) -> list[bytes]:
        """Some keys that should exist."""
        with self._lock:
            index = self.index if self.is_ready else self._building_index
            keys = [] if index is None else index.sample_keys(4 * count)
            return [key for key in keys if key not in self._dirty_keys][:count]

    # -- scanning ----------------------------------------------------------------------------------------------------

    def begin_scan(self) -> IndexScan:
        """Begin a new index."""
        with self._lock:
            self.has_unverifiable_keys = False
            self._building_index = self._index_factory()
            self._verified_keys, self._previously_verified_keys = set(), set()
            return IndexScan(self._building_index, self._epoch)

    def register_scan_command(self) -> None:
        """To be called before every SCAN is sent: its answer is newer than what was settled so far."""
        with self._lock:
            self._previously_verified_keys, self._verified_keys = self._verified_keys, set()

    def add_scanned(self, scan: IndexScan, keys: list[bytes]) -> None:
        """Put the last but one SCAN's answer into the new index. Raises SupersededError, NoSpaceError."""
        with self._lock:
            if scan.epoch != self._epoch:
                raise ScanSupersededError
            newer: Collection[bytes] = self._verified_keys | self._previously_verified_keys
            scan.index.add_many([key for key in keys if key not in newer] if newer else keys)
        if scan.index.is_full:
            scan.index.spill_to_disk()

    def finish_scan(self, scan: IndexScan) -> Index | None:
        """Use the new index; answer the one it replaced, if that was in use. Raises SupersededError."""
        with self._lock:
            if scan.epoch != self._epoch:
                raise ScanSupersededError
            old = self.index if self.is_ready else None
            self.index = scan.index
            self.is_ready = True
            self._building_index = None
            return old

    def abandon_scan(self, scan: IndexScan) -> None:
        """The scan failed, or is finished."""
        with self._lock:
            if self._building_index is scan.index:
                self._building_index = None

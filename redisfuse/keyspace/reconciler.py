"""What is known of the keys, and which keys are to be looked at: state only, and its steps. No thread, no server.

Three things happen at once: a scan builds a new index, keys that were told of are looked at and put right, and this
process changes keys itself. They are reconciled so:

- A scan's answer is older than what was looked at since that SCAN was sent, so it is not believed for those keys.
- What was looked at is older than what this process has changed since the question was sent, so it is not believed for
  those keys; they are looked at again.
- `forget` begins a new epoch: what was asked in an earlier one is not believed at all.

Thread-safe: every method is one step under one lock, inside which only the index's own lock is taken.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from redisfuse.keyspace.index import Index


class SupersededError(Exception):
    """The scan under way is of no use any more."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Keys to look at."""

    keys: list[bytes]
    epoch: int
    since: float  # time.monotonic() when the first of them was told of


@dataclass(frozen=True, slots=True)
class Scan:
    """A scan under way."""

    index: Index
    epoch: int


class Knowledge:
    """The index in use, the one being built, and the keys in doubt."""

    def __init__(self, new_index: Callable[[], Index]) -> None:
        """`new_index` makes an empty index."""
        self._new_index = new_index
        self._lock = threading.Lock()
        self._epoch = 0
        self.index = new_index()  # in use: replaced, never emptied
        self.ready = False  # whether it is whole
        self._building: Index | None = None
        self._pending: set[bytes] = set()  # told of, to be looked at
        self._pending_since = 0.0
        self._own: set[bytes] = set()  # changed by this process since the last batch was taken
        self._settled: set[bytes] = set()  # looked at since the last SCAN was sent
        self._settled_before: set[bytes] = set()  # looked at between the last SCAN and the one before it
        self.unsure = False  # some keys could not be looked at since the last scan began: an ACL

    @property
    def scanning(self) -> bool:
        """Whether a scan is under way."""
        return self._building is not None

    @property
    def pending(self) -> int:
        """How many keys are to be looked at."""
        return len(self._pending)

    def forget(self) -> None:
        """Nothing is known any more."""
        with self._lock:
            self._epoch += 1
            self.index = self._new_index()
            self.ready = False
            self._building = None
            self._pending.clear()
            self._own.clear()

    def drop_pending(self) -> None:
        """Nobody is going to look: a scan will."""
        with self._lock:
            self._pending.clear()

    # -- keys to be looked at ----------------------------------------------------------------------------------------

    def note(self, keys: Iterable[bytes]) -> int:
        """These keys are to be looked at; answer how many are."""
        with self._lock:
            self._note(keys)
            return len(self._pending)

    def _note(self, keys: Iterable[bytes]) -> None:
        if not self._pending:
            self._pending_since = time.monotonic()
        self._pending.update(keys)

    def change(self, key: bytes, exists: bool) -> None:
        """This process has made or removed the key."""
        with self._lock:
            for index in self._indexes():
                if exists:
                    index.add(key)
                else:
                    index.discard(key)
            self._own.add(key)
            if self._building is not None:
                self._settled.add(key)
            self._note((key,))

    def _indexes(self) -> list[Index]:
        """What a change goes into."""
        return [index for index in (self.index if self.ready else None, self._building) if index is not None]

    def take(self, limit: int) -> Batch:
        """Keys to look at now, up to `limit`."""
        with self._lock:
            if len(self._pending) <= limit:
                keys, self._pending = list(self._pending), set()
            else:
                keys = [self._pending.pop() for _ in range(limit)]
            self._own = set()
            return Batch(keys, self._epoch, self._pending_since)

    def put_back(self, batch: Batch) -> None:
        """The keys of a batch could not be looked at: they are to be again."""
        with self._lock:
            if batch.epoch == self._epoch:
                self._note(batch.keys)

    def settle(self, keys: Sequence[bytes], found: Sequence[bool | None], epoch: int) -> set[bytes] | None:
        """Believe what was found of keys (None: could not be found out); answer which of them came or went.

        None if what was asked is out of date.
        """
        present = [key for key, exists in zip(keys, found, strict=True) if exists]
        absent = [key for key, exists in zip(keys, found, strict=True) if exists is False]
        moved: set[bytes] = set()
        with self._lock:
            if epoch != self._epoch:
                return None
            if self._own:
                present = [key for key in present if key not in self._own]
                absent = [key for key in absent if key not in self._own]
            for index in self._indexes():
                fresh = index.missing(present)
                index.add_many(fresh)
                moved.update(fresh)
                moved.update(key for key in absent if index.discard(key))
            if self._building is not None:
                self._settled.update(present, absent)
            self.unsure = self.unsure or None in found
        return moved

    def sample(self, count: int) -> list[bytes]:
        """Some keys that should exist."""
        with self._lock:
            index = self.index if self.ready else self._building
            keys = [] if index is None else index.sample(4 * count)
            return [key for key in keys if key not in self._pending][:count]

    # -- scanning ----------------------------------------------------------------------------------------------------

    def begin_scan(self) -> Scan:
        """Begin a new index."""
        with self._lock:
            self.unsure = False
            self._building = self._new_index()
            self._settled, self._settled_before = set(), set()
            return Scan(self._building, self._epoch)

    def before_scan_command(self) -> None:
        """To be called before every SCAN is sent: its answer is newer than what was settled so far."""
        with self._lock:
            self._settled_before, self._settled = self._settled, set()

    def digest(self, scan: Scan, keys: list[bytes]) -> None:
        """Put the last but one SCAN's answer into the new index. Raises SupersededError, NoSpaceError."""
        with self._lock:
            if scan.epoch != self._epoch:
                raise SupersededError
            newer: Collection[bytes] = self._settled | self._settled_before
            scan.index.add_many([key for key in keys if key not in newer] if newer else keys)
        if scan.index.is_full:
            scan.index.move_to_disk()

    def finish(self, scan: Scan) -> Index | None:
        """Use the new index; answer the one it replaced, if that was in use. Raises SupersededError."""
        with self._lock:
            if scan.epoch != self._epoch:
                raise SupersededError
            old = self.index if self.ready else None
            self.index = scan.index
            self.ready = True
            self._building = None
            return old

    def abandon(self, scan: Scan) -> None:
        """The scan failed, or is finished."""
        with self._lock:
            if self._building is scan.index:
                self._building = None

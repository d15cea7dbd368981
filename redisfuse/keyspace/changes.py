"""When each key was last seen to change, in bounded memory."""

import threading
import time
from collections.abc import Collection

CAPACITY = 100_000  # keys remembered exactly, twice over; about 25 MB when full
_BUCKETS = 1 << 16


class Changes:
    """The moment of each key's last change, in nanoseconds since the epoch; it never goes backwards.

    A key not heard of has the moment this began. Of keys heard of long ago only the latest moment among those that
    share a bucket (of 65 536) is kept, so what is answered for a key may be later than the truth, never earlier.

    Thread-safe; calls nothing while its lock is held.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        """`capacity`: keys remembered exactly, at least; at most twice as many."""
        self._capacity = capacity
        self._lock = threading.Lock()
        self._last = self._floor = time.time_ns()
        self._recent: dict[bytes, int] = {}
        self._older: dict[bytes, int] = {}
        self._buckets = [0] * _BUCKETS

    def _now(self) -> int:
        self._last = max(self._last + 1, time.time_ns())
        return self._last

    def record(self, keys: Collection[bytes]) -> None:
        """These keys have changed now."""
        with self._lock:
            self._recent.update(dict.fromkeys(keys, self._now()))
            if len(self._recent) > self._capacity:
                self._forget_older()

    def _forget_older(self) -> None:
        buckets = self._buckets
        for key, moment in self._older.items():
            bucket = hash(key) % _BUCKETS
            if buckets[bucket] < moment:
                buckets[bucket] = moment
        self._older, self._recent = self._recent, {}

    def record_everything(self) -> None:
        """Any key may have changed now."""
        with self._lock:
            self._floor = self._now()
            self._recent, self._older = {}, {}
            self._buckets = [0] * _BUCKETS

    def at(self, key: bytes) -> int:
        """When the key was last seen to change."""
        # Without the lock, as each name of a listing asks. What is moved on stands in its next place before it is taken
        # from this one: whoever looks in this order finds it.
        moment = self._recent.get(key) or self._older.get(key) or self._buckets[hash(key) % _BUCKETS]
        return max(moment, self._floor)

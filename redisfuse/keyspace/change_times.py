"""When each key was last seen to change, in bounded memory; and what a file's time of modification is.

The two differ where this mount itself made the change. An editor that has saved asks for the file's time and takes any
other time that it finds later for somebody else's change. So what a save shows is the moment of its last write, and
neither the commit, nor the message that the server sends about it, changes that.
"""

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field

EXACT_KEY_CAPACITY = 100_000  # keys remembered exactly, twice over; about 25 MB when full
_BUCKET_COUNT = 1 << 16
HOT_WINDOW_NS = 1_000_000_000
_MIN_OWN_CHANGES = 10_000  # keys changed by this mount itself whose files' times are remembered, at least


@dataclass(slots=True)
class _OwnChange:
    """A change that this mount made, as long as it is the last one of its key."""

    recorded_ns: (
        int  # when it was recorded: if the key's moment is another one, somebody else has changed the key since
    )
    mtime_ns: int  # what is shown for the key, or for the fields that are not below
    field_mtimes_ns: dict[bytes, int] = field(default_factory=dict)
    previous_mtimes_ns: tuple[int, dict[bytes, int]] = (0, {})  # the same before the change


class ChangeClock:
    """The moment of each key's last change, in nanoseconds since the epoch; it never goes backwards.

    A key not heard of has the moment this began. Of keys heard of long ago only the latest moment among those that
    share a bucket (of 65 536) is kept, so what is answered for a key may be later than the truth, never earlier.

    Thread-safe; calls nothing while its lock is held.
    """

    def __init__(self, capacity: int = EXACT_KEY_CAPACITY) -> None:
        """`capacity`: keys remembered exactly, at least; at most twice as many."""
        self._exact_capacity = capacity
        self._lock = threading.Lock()
        self._last_timestamp_ns = self._floor_ns = time.time_ns()
        self._recent_changes: dict[bytes, int] = {}
        self._older_changes: dict[bytes, int] = {}
        self._bucket_max_ns = [0] * _BUCKET_COUNT
        self._own_changes: dict[bytes, _OwnChange] = {}
        self._hot_keys: dict[bytes, int] = {}  # keys that changed again soon, and when

    def _next_timestamp(self) -> int:
        self._last_timestamp_ns = max(self._last_timestamp_ns + 1, time.time_ns())
        return self._last_timestamp_ns

    def record_changes(self, keys: Collection[bytes]) -> None:
        """These keys have changed now."""
        with self._lock:
            now, recent = self._next_timestamp(), self._recent_changes
            again = [key for key in keys if now - recent.get(key, 0) < HOT_WINDOW_NS]
            if again:
                if len(self._hot_keys) > _MIN_OWN_CHANGES:
                    self._hot_keys.clear()
                self._hot_keys.update(dict.fromkeys(again, now))
            recent.update(dict.fromkeys(keys, now))
            if len(self._recent_changes) > self._exact_capacity:
                self._rotate_generations()

    def record_own_change(self, key: bytes) -> None:
        """This mount has changed a key now."""
        with self._lock:
            own = self._pop_own_change(key)
            now = self._recent_changes[key] = self._next_timestamp()
            self._store_own_change(key, _OwnChange(now, now, previous_mtimes_ns=(own.mtime_ns, own.field_mtimes_ns)))

    def _pop_own_change(self, key: bytes) -> _OwnChange:
        """What is shown of a key now; out of the table."""
        moment = self.changed_at(key)
        own = self._own_changes.pop(key, None)
        return own if own is not None and own.recorded_ns == moment else _OwnChange(moment, moment)

    def _store_own_change(self, key: bytes, change: _OwnChange) -> None:
        self._own_changes[key] = change
        if len(self._own_changes) > 2 * _MIN_OWN_CHANGES:
            self._own_changes = dict(list(self._own_changes.items())[_MIN_OWN_CHANGES:])
        if len(self._recent_changes) > self._exact_capacity:
            self._rotate_generations()

    def record_own_invalidations(self, keys: Collection[bytes]) -> None:
        """The server tells of changes of these keys that this mount made, perhaps before `record_own_change` says so."""
        with self._lock:
            for key in keys:
                own = self._pop_own_change(key)
                own.recorded_ns = self._recent_changes[key] = self._next_timestamp()
                self._store_own_change(key, own)

    def record_save(self, key: bytes, field: bytes | None, mtime_ns: int) -> None:
        """What this mount just changed was a file (the key's, or a field's) that was last written at `recorded_ns`."""
        with self._lock:
            own = self._own_changes.get(key)
            if own is None or own.recorded_ns != self.changed_at(key):
                return  # somebody else has changed it already
            if field is None:
                own.mtime_ns = mtime_ns
            else:
                own.mtime_ns, fields = own.previous_mtimes_ns
                own.field_mtimes_ns = {**fields, field: mtime_ns}

    def _rotate_generations(self) -> None:
        buckets = self._bucket_max_ns
        for key, moment in self._older_changes.items():
            bucket = hash(key) % _BUCKET_COUNT
            if buckets[bucket] < moment:
                buckets[bucket] = moment
        self._older_changes, self._recent_changes = self._recent_changes, {}

    def record_all_changed(self) -> None:
        """Any key may have changed now."""
        with self._lock:
            self._floor_ns = self._next_timestamp()
            self._recent_changes, self._older_changes = {}, {}
            self._bucket_max_ns = [0] * _BUCKET_COUNT

    def mtime_ns(self, key: bytes, field: bytes | None) -> int:
        """The time of modification of the key's file, or of a field's."""
        if key not in self._own_changes:
            return self.changed_at(key)
        with self._lock:
            moment = self.changed_at(key)
            own = self._own_changes.get(key)
            if own is None or own.recorded_ns != moment:
                return moment
            return own.mtime_ns if field is None else own.field_mtimes_ns.get(field, own.mtime_ns)

    def is_hot(self, key: bytes) -> bool:
        """Whether a key has changed twice within a second, less than a second ago."""
        return bool(self._hot_keys) and time.time_ns() - self._hot_keys.get(key, 0) < HOT_WINDOW_NS

    def is_recently_changed(self, key: bytes) -> bool:
        """Whether a key has changed, as far as is known, less than a second ago."""
        return time.time_ns() - self.changed_at(key) < HOT_WINDOW_NS

    def changed_at(self, key: bytes) -> int:
        """When the key was last seen to change."""
        # Without the lock, as each name of a listing asks. What is moved on stands in its next place before it is taken
        # from this one: whoever looks in this order finds it.
        moment = (
            self._recent_changes.get(key)
            or self._older_changes.get(key)
            or self._bucket_max_ns[hash(key) % _BUCKET_COUNT]
        )
        return max(moment, self._floor_ns)

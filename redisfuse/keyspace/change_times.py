"""The times of keys' last changes, in bounded memory, and files' mtimes.

The two differ where this mount made the change. An editor reads the file's mtime after a save, and takes any other
mtime that it reads later for a change by another program. So the mtime of a saved file is the time of its last write,
and neither the commit nor the server's message about it changes the mtime.
"""

import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

EXACT_KEY_CAPACITY = 100_000  # keys whose time is exact, in each of two generations; about 25 MB when full
_BUCKET_COUNT = 1 << 16
HOT_WINDOW_NS = 1_000_000_000
_MIN_OWN_CHANGES = 10_000  # fewest keys written by this mount whose mtimes are kept


def directory_prefixes(keys: Iterable[bytes], separator: bytes) -> set[bytes]:
    """Return the prefixes of the directories that contain these keys.

    The root's prefix is `b""`.
    """
    prefixes = {b""}
    for key in keys:
        prefix = b""
        for component in key.split(separator)[:-1]:
            prefix += component + separator
            prefixes.add(prefix)
    return prefixes


@dataclass(slots=True)
class _OwnChange:
    """The last change of a key, made by this mount."""

    recorded_ns: int  # if it differs from the key's last change, another client has changed the key since
    mtime_ns: int  # of the key's file, and of the fields that are not in `field_mtimes_ns`
    field_mtimes_ns: dict[bytes, int] = field(default_factory=dict)
    previous_mtimes_ns: tuple[int, dict[bytes, int]] = (0, {})  # both as they were before the change


class ChangeClock:
    """The time of each key's last change, in ns since the epoch.

    It never decreases. The time of a key without a recorded change is that of the clock's creation. Old changes are
    kept as the latest time of all keys that share a bucket (of 65 536), so the time of a key may be too late, but never
    too early.

    Thread-safe; its lock is a leaf.
    """

    def __init__(self, capacity: int = EXACT_KEY_CAPACITY) -> None:
        """Create a clock that keeps exact times of at least `capacity` keys.

        It keeps those of at most twice as many.
        """
        self._exact_capacity = capacity
        self._lock = threading.Lock()  # guards all below
        self._last_timestamp_ns = self._floor_ns = time.time_ns()
        self._recent_changes: dict[bytes, int] = {}
        self._older_changes: dict[bytes, int] = {}
        self._bucket_max_ns = [0] * _BUCKET_COUNT
        self._own_changes: dict[bytes, _OwnChange] = {}
        self._hot_keys: dict[bytes, int] = {}  # keys that changed twice within the window, and when

    def _next_timestamp(self) -> int:
        self._last_timestamp_ns = max(self._last_timestamp_ns + 1, time.time_ns())
        return self._last_timestamp_ns

    def record_changes(self, keys: Collection[bytes]) -> None:
        """Record that these keys have changed now."""
        with self._lock:
            now, recent = self._next_timestamp(), self._recent_changes
            hot = [key for key in keys if now - recent.get(key, 0) < HOT_WINDOW_NS]
            if hot:
                if len(self._hot_keys) > _MIN_OWN_CHANGES:
                    self._hot_keys.clear()
                self._hot_keys.update(dict.fromkeys(hot, now))
            recent.update(dict.fromkeys(keys, now))
            if len(self._recent_changes) > self._exact_capacity:
                self._rotate_generations()

    def record_own_change(self, key: bytes) -> None:
        """Record that this mount has changed a key now."""
        with self._lock:
            own = self._pop_own_change(key)
            now = self._recent_changes[key] = self._next_timestamp()
            self._store_own_change(key, _OwnChange(now, now, previous_mtimes_ns=(own.mtime_ns, own.field_mtimes_ns)))

    def _pop_own_change(self, key: bytes) -> _OwnChange:
        """Remove and return the mtimes of a key."""
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
        """Record the server's messages about own changes; mtimes stay.

        A message may precede `record_own_change`.
        """
        with self._lock:
            for key in keys:
                own = self._pop_own_change(key)
                own.recorded_ns = self._recent_changes[key] = self._next_timestamp()
                self._store_own_change(key, own)

    def record_save(self, key: bytes, field: bytes | None, mtime_ns: int) -> None:
        """Set the mtime of the file that this mount has just saved.

        The file is that of the key, or of one field.
        """
        with self._lock:
            own = self._own_changes.get(key)
            if own is None or own.recorded_ns != self.changed_at(key):
                return  # another client has changed the key meanwhile
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
        """Record that any key may have changed now."""
        with self._lock:
            self._floor_ns = self._next_timestamp()
            self._recent_changes, self._older_changes = {}, {}
            self._bucket_max_ns = [0] * _BUCKET_COUNT

    def mtime_ns(self, key: bytes, field: bytes | None) -> int:
        """Return the mtime of the key's file, or of a field's."""
        if key not in self._own_changes:
            return self.changed_at(key)
        with self._lock:
            moment = self.changed_at(key)
            own = self._own_changes.get(key)
            if own is None or own.recorded_ns != moment:
                return moment
            return own.mtime_ns if field is None else own.field_mtimes_ns.get(field, own.mtime_ns)

    def mtime_at(self, key: bytes, version: int) -> int | None:
        """Return the mtime of the key's file; None if the key has another version."""
        moment = self.changed_at(key)
        if moment != version:
            return None
        return moment if key not in self._own_changes else self.mtime_ns(key, None)

    @property
    def has_hot_keys(self) -> bool:
        """Whether any key may be hot."""
        return bool(self._hot_keys)

    def is_hot(self, key: bytes) -> bool:
        """Return whether a key has changed twice within a second, less than a second ago."""
        return bool(self._hot_keys) and time.time_ns() - self._hot_keys.get(key, 0) < HOT_WINDOW_NS

    @property
    def latest(self) -> int:
        """The present time, which no time of a key exceeds yet."""
        return max(self._last_timestamp_ns, time.time_ns())

    def was_changed_by_others(self, key: bytes, since: int) -> bool:
        """Return whether the last change of a key is after a time, and not by this mount."""
        with self._lock:
            moment, own = self.changed_at(key), self._own_changes.get(key)
        return moment > since and (own is None or own.recorded_ns != moment)

    def changed_at(self, key: bytes) -> int:
        """Return when the key was last seen to change."""
        # Without the lock, as this is called for each name of a listing. A time is copied to its next place before it
        # is removed from its present one, so reading the places in this order always finds it.
        moment = (
            self._recent_changes.get(key)
            or self._older_changes.get(key)
            or self._bucket_max_ns[hash(key) % _BUCKET_COUNT]
        )
        floor = self._floor_ns
        return moment if moment > floor else floor  # faster than `max`

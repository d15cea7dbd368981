"""When each key was last seen to change, in bounded memory; and what a file's time of modification is.

The two differ where this mount itself made the change. An editor that has saved asks for the file's time and takes any
other time that it finds later for somebody else's change. So what a save shows is the moment of its last write, and
neither the commit, nor the message that the server sends about it, changes that.
"""

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field

CAPACITY = 100_000  # keys remembered exactly, twice over; about 25 MB when full
_BUCKETS = 1 << 16
BUSY_NS = 1_000_000_000
_OWN = 10_000  # keys changed by this mount itself whose files' times are remembered, at least


@dataclass(slots=True)
class _Own:
    """A change that this mount made, as long as it is the last one of its key."""

    moment: int  # when it was recorded: if the key's moment is another one, somebody else has changed the key since
    others: int  # what is shown for the key, or for the fields that are not below
    fields: dict[bytes, int] = field(default_factory=dict)
    before: tuple[int, dict[bytes, int]] = (0, {})  # the same before the change


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
        self._own: dict[bytes, _Own] = {}
        self._busy: dict[bytes, int] = {}  # keys that changed again soon, and when

    def _now(self) -> int:
        self._last = max(self._last + 1, time.time_ns())
        return self._last

    def record(self, keys: Collection[bytes]) -> None:
        """These keys have changed now."""
        with self._lock:
            now, recent = self._now(), self._recent
            again = [key for key in keys if now - recent.get(key, 0) < BUSY_NS]
            if again:
                if len(self._busy) > _OWN:
                    self._busy.clear()
                self._busy.update(dict.fromkeys(again, now))
            recent.update(dict.fromkeys(keys, now))
            if len(self._recent) > self._capacity:
                self._forget_older()

    def record_own(self, key: bytes) -> None:
        """This mount has changed a key now."""
        with self._lock:
            own = self._current(key)
            now = self._recent[key] = self._now()
            self._keep(key, _Own(now, now, before=(own.others, own.fields)))

    def _current(self, key: bytes) -> _Own:
        """What is shown of a key now; out of the table."""
        moment = self.at(key)
        own = self._own.pop(key, None)
        return own if own is not None and own.moment == moment else _Own(moment, moment)

    def _keep(self, key: bytes, own: _Own) -> None:
        self._own[key] = own
        if len(self._own) > 2 * _OWN:
            self._own = dict(list(self._own.items())[_OWN:])
        if len(self._recent) > self._capacity:
            self._forget_older()

    def record_echoes(self, keys: Collection[bytes]) -> None:
        """The server tells of changes of these keys that this mount made, perhaps before `record_own` says so."""
        with self._lock:
            for key in keys:
                own = self._current(key)
                own.moment = self._recent[key] = self._now()
                self._keep(key, own)

    def saved(self, key: bytes, field: bytes | None, moment: int) -> None:
        """What this mount just changed was a file (the key's, or a field's) that was last written at `moment`."""
        with self._lock:
            own = self._own.get(key)
            if own is None or own.moment != self.at(key):
                return  # somebody else has changed it already
            if field is None:
                own.others = moment
            else:
                own.others, fields = own.before
                own.fields = {**fields, field: moment}

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

    def shown(self, key: bytes, field: bytes | None) -> int:
        """The time of modification of the key's file, or of a field's."""
        if key not in self._own:
            return self.at(key)
        with self._lock:
            moment = self.at(key)
            own = self._own.get(key)
            if own is None or own.moment != moment:
                return moment
            return own.others if field is None else own.fields.get(field, own.others)

    def is_busy(self, key: bytes) -> bool:
        """Whether a key has changed twice within a second, less than a second ago."""
        return bool(self._busy) and time.time_ns() - self._busy.get(key, 0) < BUSY_NS

    def is_recent(self, key: bytes) -> bool:
        """Whether a key has changed, as far as is known, less than a second ago."""
        return time.time_ns() - self.at(key) < BUSY_NS

    def at(self, key: bytes) -> int:
        """When the key was last seen to change."""
        # Without the lock, as each name of a listing asks. What is moved on stands in its next place before it is taken
        # from this one: whoever looks in this order finds it.
        moment = self._recent.get(key) or self._older.get(key) or self._buckets[hash(key) % _BUCKETS]
        return max(moment, self._floor)

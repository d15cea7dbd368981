"""What is remembered of keys: attributes, small contents, fields. Bounded in bytes, and never older than it may be.

An entry is about one key, and goes as a whole: when the key changes (`drop`), when it expires, when it is older than
the trust of the moment, or as the least recently used when memory is short.

A fetch that began before a drop of its key must not be kept, however late its answer is digested. So whoever fetches
does it inside `fetching()`, and what it stores is refused for every key that was dropped since.

Threads: any; one lock, held for bookkeeping only. `trust` is called without it.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

from redisfuse.keyspace.prefetch import LONGEST, LOOKED_AT, PATIENCE, ROOM, Batch, Order

ENTRY = 400  # bytes that an entry takes beside its key and its contents
FIELD = 160  # and a field

RECENT = 10_000  # changed keys that are remembered as such
RECENT_SECONDS = 60.0  # if there were more, every key counts as changed for so long

FieldValue = bytes | int | None
"""Of a field: its content, or its length in bytes (-1: it exists, with a length not known), or None: there is none."""


class Unknown:
    """Nothing is known of a field."""


UNKNOWN = Unknown()


class Attributes(NamedTuple):
    """What stat needs to know of a key."""

    type: bytes  # as TYPE says; b"none": there is no such key; b"unreadable": the server's ACL doesn't say
    length: int  # bytes of a string, elements of a collection; -1 for types without a length command
    expires: float | None = None  # time.monotonic() at which it expires, if that is known


@dataclass(slots=True)
class Entry:
    """One key. Changed only under the cache's lock."""

    attributes: Attributes
    fetched: float  # time.monotonic()
    trust: float  # seconds it may be believed at most: the trust of when it was fetched
    cost: int
    content: bytes | None = None  # of a string, whole
    fields: dict[bytes, FieldValue] | None = None
    complete: bool = False  # `fields` has all fields of the hash
    compact: bool | None = None  # a hash in an encoding that only small values have
    batch: Batch | None = None  # the keys that were described together with it
    place: int = 0  # in `batch`
    ahead: bool = False  # its content comes, or came, along with another's, and was not asked for yet


@dataclass(slots=True, eq=False)
class Fetch:
    """A fetch under way."""

    began: float
    trust: float
    dropped: set[bytes] = field(default_factory=set)
    dropped_all: bool = False


class Cache:
    """Entries by key; at most `memory` bytes (estimated). `trust()`: for how many seconds one may be believed.

    `order`: what keys may be sorted by when they are read one after the other, beside their names (ahead.py).
    """

    def __init__(self, memory: int, trust: Callable[[], float], order: Order = len) -> None:
        self._most = memory
        self._trust = trust
        self._order = order
        self._lock = Lock()
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._fetches: list[Fetch] = []
        self._recent: set[bytes] = set()
        self._all_recent_until = 0.0
        self.memory = 0  # bytes in use, estimated
        self.hits = 0
        self.misses = 0

    # -- looking ------------------------------------------------------------------------------------------------------

    def attributes(self, keys: Sequence[bytes]) -> list[Attributes | None]:
        """What is known of these keys; None where nothing may be believed."""
        trust, now = self._trust(), time.monotonic()
        with self._lock:
            entries = [self._believed(key, trust, now) for key in keys]
            self._count(entries)
            return [entry.attributes if entry else None for entry in entries]

    def attribute(self, key: bytes) -> Attributes | None:
        """What is known of one key."""
        trust, now = self._trust(), time.monotonic()
        with self._lock:
            entry = self._believed(key, trust, now)
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            return entry.attributes

    def content(self, key: bytes) -> bytes | None:
        """A string's whole content, if it is known."""
        content = self.present(key)
        if content is None:
            with self._lock:
                self.misses += 1
        return content

    def present(self, key: bytes) -> bytes | None:
        """The same, for those who ask in another way if it is not known: that is no miss yet."""
        trust, now = self._trust(), time.monotonic()
        with self._lock:
            entry = self._believed(key, trust, now)
            if entry is None or entry.content is None:
                return None
            self.hits += 1
            if entry.ahead:
                entry.ahead = False
                if entry.batch is not None:
                    entry.batch.used()
            return entry.content

    def ahead(self, key: bytes) -> dict[bytes, Attributes]:
        """Strings whose contents are to come along with that of `key`, which has to be fetched: within `fetching`."""
        found: dict[bytes, Attributes] = {}
        with self._lock:
            entry = self._entries.get(key)
            batch = entry.batch if entry is not None else None
            if entry is None or batch is None or not batch.keys:
                return found
            if not batch.has_order:
                if not batch.find_order(key, self._order):
                    return found
                self._place(batch)
            most, last, room = batch.asked(entry.place), entry.place, ROOM
            for place, other in enumerate(batch.keys[last + 1 : last + 1 + LOOKED_AT] if most else (), last + 1):
                near = self._entries.get(other)
                if near is None or near.batch is not batch or near.ahead or near.content is not None:
                    continue
                if near.attributes.type == b"string" and near.attributes.length <= LONGEST:
                    room -= near.attributes.length
                    if room < 0 or len(found) >= most:
                        break
                    near.ahead, last = True, place
                    found[other] = near.attributes
            batch.brought(len(found), last)
        return found

    def _place(self, batch: Batch) -> None:
        for place, key in enumerate(batch.keys):
            entry = self._entries.get(key)
            if entry is not None and entry.batch is batch:
                entry.place = place

    def fields(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[FieldValue | Unknown]:
        """What is known of fields: pairs of key and field."""
        trust, now = self._trust(), time.monotonic()
        with self._lock:
            return [self._field(self._believed(key, trust, now), name) for key, name in pairs]

    def listing(self, key: bytes) -> list[bytes] | None:
        """The names of all fields of a hash, if they are known."""
        trust, now = self._trust(), time.monotonic()
        with self._lock:
            entry = self._believed(key, trust, now)
            if entry is None or not entry.complete or entry.fields is None:
                return None
            return [name for name, value in entry.fields.items() if value is not None]

    def compact(self, key: bytes) -> bool | None:
        """Is the hash in an encoding that only small values have? None if that is not known."""
        trust, now = self._trust(), time.monotonic()
        with self._lock:
            entry = self._believed(key, trust, now)
            return entry.compact if entry else None

    def changed_lately(self, keys: Sequence[bytes]) -> list[bool]:
        """Which keys were dropped lately: they may have got a TTL that the server's statistics don't show yet."""
        with self._lock:
            if time.monotonic() < self._all_recent_until:
                return [True] * len(keys)
            return [key in self._recent for key in keys]

    def _believed(self, key: bytes, trust: float, now: float) -> Entry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires = entry.attributes.expires
        if now - entry.fetched > min(trust, entry.trust) or (expires is not None and now >= expires):
            self._remove(key)
            return None
        self._entries.move_to_end(key)
        return entry

    @staticmethod
    def _field(entry: Entry | None, name: bytes) -> FieldValue | Unknown:
        if entry is None:
            return UNKNOWN
        if entry.attributes.type != b"hash":
            return None
        return (entry.fields or {}).get(name, None if entry.complete else UNKNOWN)

    def _count(self, found: Sequence[object]) -> None:
        missed = sum([each is None for each in found])
        self.misses += missed
        self.hits += len(found) - missed

    # -- keeping ------------------------------------------------------------------------------------------------------

    @contextmanager
    def fetching(self) -> Iterator[Fetch]:
        """Around a fetch: from before the first command to the last store."""
        fetch = Fetch(began=time.monotonic(), trust=self._trust())
        with self._lock:
            self._fetches.append(fetch)
        try:
            yield fetch
        finally:
            with self._lock:
                self._fetches.remove(fetch)

    def store(
        self, fetch: Fetch, found: Mapping[bytes, tuple[Attributes, bytes | None]], *, together: bool = False
    ) -> None:
        """Keep attributes, and with them the whole content of a string or None; what was known of these keys goes.

        `together`: they were listed, and may be read, one after the other.
        """
        batch = Batch(list(found)) if together and len(found) > PATIENCE else None
        with self._lock:
            for place, (key, (attributes, content)) in enumerate(found.items()):
                if not self._is_current(fetch, key):
                    continue
                entry = Entry(attributes, fetch.began, fetch.trust, ENTRY + len(key) + len(content or b""), content)
                old = self._entries.get(key)
                if old is not None:
                    self._remove(key)
                    entry.batch, entry.place, entry.ahead = old.batch, old.place, old.ahead
                if batch is not None:
                    entry.batch, entry.place, entry.ahead = batch, place, False
                self._entries[key] = entry
                self.memory += entry.cost
            self._evict()

    def store_fields(
        self,
        fetch: Fetch,
        key: bytes,
        values: Mapping[bytes, FieldValue],
        *,
        complete: bool = False,
        compact: bool | None = None,
    ) -> None:
        """Keep what was learnt of a hash's fields, if the hash itself is known."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.attributes.type != b"hash" or not self._is_current(fetch, key):
                return
            entry.fetched = min(entry.fetched, fetch.began)
            entry.trust = min(entry.trust, fetch.trust)
            if compact is not None:
                entry.compact = compact
            entry.complete = entry.complete or complete
            before, entry.fields = entry.fields or {}, dict(values) if complete else {**(entry.fields or {}), **values}
            self.memory -= entry.cost
            entry.cost += sum(map(_cost, entry.fields.items())) - sum(map(_cost, before.items()))
            self.memory += entry.cost
            self._entries.move_to_end(key)
            if entry.cost > self._most // 4:
                self._remove(key)
            self._evict()

    def _is_current(self, fetch: Fetch, key: bytes) -> bool:
        return not fetch.dropped_all and key not in fetch.dropped

    def _evict(self) -> None:
        while self.memory > self._most and self._entries:
            _, entry = self._entries.popitem(last=False)
            self.memory -= entry.cost
            if entry.batch is not None:
                entry.batch.keys = ()  # else the few that stay would keep the names of all

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.memory -= entry.cost

    # -- forgetting ---------------------------------------------------------------------------------------------------

    def drop(self, keys: Collection[bytes]) -> None:
        """These keys changed: forget them, and refuse what fetches under way have found out about them."""
        with self._lock:
            for fetch in self._fetches:
                fetch.dropped.update(keys)
            for key in keys:
                self._remove(key)
            self._recent.update(keys)
            if len(self._recent) > RECENT:
                self._forget_recent()

    def drop_all(self) -> None:
        """Anything may have changed: forget everything."""
        with self._lock:
            for fetch in self._fetches:
                fetch.dropped_all = True
                fetch.dropped.clear()
            self._entries.clear()
            self.memory = 0
            self._forget_recent()

    def none_expiring(self) -> None:
        """The server's statistics now cover all that was dropped lately: none of it has a TTL."""
        with self._lock:
            self._recent.clear()
            self._all_recent_until = 0.0

    def _forget_recent(self) -> None:
        self._recent.clear()
        self._all_recent_until = time.monotonic() + RECENT_SECONDS


def _cost(item: tuple[bytes, FieldValue]) -> int:
    name, value = item
    return FIELD + len(name) + (len(value) if isinstance(value, bytes) else 0)

"""What is remembered of keys: attributes, small contents, fields. Bounded in bytes, and never older than it may be.

An entry is about one key, and goes as a whole: when the key changes (`invalidate`), when it expires, when it is older than
the trust of the moment, or as the least recently used when memory is short.

A fetch that began before a drop of its key must not be kept, however late its answer is digested. So whoever fetches
does it inside `begin_fetch()`, and what it stores is refused for every key that was dropped since.

Threads: any; one lock, held for bookkeeping only. `max_age` is called without it.
"""

import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

from redisfuse.keyspace.listener import Freshness
from redisfuse.keyspace.prefetch import (
    MAX_PREFETCH_CANDIDATES,
    MAX_PREFETCH_TOTAL_BYTES,
    MAX_PREFETCH_VALUE_BYTES,
    MIN_SEQUENTIAL_READS,
    AccessPattern,
    SortKey,
)

ENTRY_OVERHEAD_BYTES = 400  # bytes that an entry takes beside its key and its contents
FIELD_OVERHEAD_BYTES = 160  # and a field

MAX_RECENT_CHANGES = 10_000  # changed keys that are remembered as such
RECENT_OVERFLOW_SECONDS = 60.0  # if there were more, every key counts as changed for so long

FieldValue = bytes | int | None
"""Of a field: its content, or its length in bytes (-1: it exists, with a length not known), or None: there is none."""


class UnknownField:
    """Nothing is known of a field."""


UNKNOWN_FIELD = UnknownField()


class KeyMetadata(NamedTuple):
    """What stat needs to know of a key."""

    type: bytes  # as TYPE says; b"none": there is no such key; b"unreadable": the server's ACL doesn't say
    length: int  # bytes of a string, elements of a collection; -1 for types without a length command
    expires_at: float | None = None  # time.monotonic() at which it expires, if that is known


@dataclass(slots=True)
class MetadataCacheEntry:
    """One key. Changed only under the cache's lock."""

    metadata: KeyMetadata
    fetched_at: float  # time.monotonic()
    max_age: float  # seconds it may be believed at most: the trust of when it was fetched
    size_bytes: int
    content: bytes | None = None  # of a string, whole
    fields: dict[bytes, FieldValue] | None = None
    fields_complete: bool = False  # `get_fields` has all fields of the hash
    compact: bool | None = None  # a hash in an encoding that only small values have
    access_pattern: AccessPattern | None = None  # the keys that were described together with it
    position: int = 0  # in `access_pattern`
    is_prefetched: bool = False  # its content comes, or came, along with another's, and was not asked for yet


@dataclass(slots=True, eq=False)
class FetchToken:
    """A fetch under way."""

    started_at: float
    max_age: float
    invalidated_keys: set[bytes] = field(default_factory=set)
    all_invalidated: bool = False


class MetadataCache:
    """Entries by key; at most `memory_bytes` bytes (estimated). `max_age()`: for how many seconds one may be believed.

    `order`: what keys may be sorted by when they are read one after the other, beside their names (ahead.py).
    """

    def __init__(self, max_bytes: int, freshness: Freshness, sort_key: SortKey = len) -> None:
        self._max_bytes = max_bytes
        self._freshness = freshness
        self._sort_key = sort_key
        self._lock = Lock()
        self._entries: OrderedDict[bytes, MetadataCacheEntry] = OrderedDict()
        self._active_fetches: list[FetchToken] = []
        self._recent_changes: set[bytes] = set()
        self._all_recent_until = 0.0
        self.memory_bytes = 0  # bytes in use, estimated
        self.hits = 0
        self.misses = 0

    # -- looking ------------------------------------------------------------------------------------------------------

    def get_many(self, keys: Sequence[bytes]) -> list[KeyMetadata | None]:
        """What is known of these keys; None where nothing may be believed."""
        trust, now = self._freshness.max_age(), time.monotonic()
        with self._lock:
            entries = [self._get_valid(key, trust, now) for key in keys]
            self._count_hits(entries)
            return [entry.metadata if entry else None for entry in entries]

    def get(self, key: bytes) -> KeyMetadata | None:
        """What is known of one key."""
        trust, now = self._freshness.max_age(), time.monotonic()
        with self._lock:
            entry = self._get_valid(key, trust, now)
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            return entry.metadata

    def get_content(self, key: bytes) -> bytes | None:
        """A string's whole content, if it is known."""
        content = self.peek_content(key)
        if content is None:
            with self._lock:
                self.misses += 1
        return content

    def peek_content(self, key: bytes) -> bytes | None:
        """The same, for those who ask in another way if it is not known: that is no miss yet."""
        trust, now = self._freshness.max_age(), time.monotonic()
        with self._lock:
            entry = self._get_valid(key, trust, now)
            if entry is None or entry.content is None:
                return None
            self.hits += 1
            if entry.is_prefetched:
                entry.is_prefetched = False
                if entry.access_pattern is not None:
                    entry.access_pattern.record_hit()
            return entry.content

    def select_prefetch(self, key: bytes) -> dict[bytes, KeyMetadata]:
        """Strings whose contents are to come along with that of `key`, which has to be fetched: within `begin_fetch`."""
        found: dict[bytes, KeyMetadata] = {}
        with self._lock:
            entry = self._entries.get(key)
            batch = entry.access_pattern if entry is not None else None
            if entry is None or batch is None or not batch.keys:
                return found
            if not batch.has_order:
                if not batch.detect_order(key, self._sort_key):
                    return found
                self._assign_positions(batch)
            most, last, room = batch.plan_prefetch(entry.position), entry.position, MAX_PREFETCH_TOTAL_BYTES
            for place, other in enumerate(
                batch.keys[last + 1 : last + 1 + MAX_PREFETCH_CANDIDATES] if most else (), last + 1
            ):
                near = self._entries.get(other)
                if near is None or near.access_pattern is not batch or near.is_prefetched or near.content is not None:
                    continue
                if near.metadata.type == b"string" and near.metadata.length <= MAX_PREFETCH_VALUE_BYTES:
                    room -= near.metadata.length
                    if room < 0 or len(found) >= most:
                        break
                    near.is_prefetched, last = True, place
                    found[other] = near.metadata
            batch.record_prefetch(len(found), last)
        return found

    def _assign_positions(self, access_pattern: AccessPattern) -> None:
        for place, key in enumerate(access_pattern.keys):
            entry = self._entries.get(key)
            if entry is not None and entry.access_pattern is access_pattern:
                entry.position = place

    def get_fields(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[FieldValue | UnknownField]:
        """What is known of fields: pairs of key and field."""
        trust, now = self._freshness.max_age(), time.monotonic()
        with self._lock:
            return [self._get_field(self._get_valid(key, trust, now), name) for key, name in pairs]

    def get_field_names(self, key: bytes) -> list[bytes] | None:
        """The names of all fields of a hash, if they are known."""
        trust, now = self._freshness.max_age(), time.monotonic()
        with self._lock:
            entry = self._get_valid(key, trust, now)
            if entry is None or not entry.fields_complete or entry.fields is None:
                return None
            return [name for name, value in entry.fields.items() if value is not None]

    def is_compact(self, key: bytes) -> bool | None:
        """Is the hash in an encoding that only small values have? None if that is not known."""
        trust, now = self._freshness.max_age(), time.monotonic()
        with self._lock:
            entry = self._get_valid(key, trust, now)
            return entry.compact if entry else None

    def changed_recently(self, keys: Sequence[bytes]) -> list[bool]:
        """Which keys were dropped lately: they may have got a TTL that the server's statistics don't show yet."""
        with self._lock:
            if time.monotonic() < self._all_recent_until:
                return [True] * len(keys)
            return [key in self._recent_changes for key in keys]

    def _get_valid(self, key: bytes, max_age: float, now: float) -> MetadataCacheEntry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires = entry.metadata.expires_at
        if now - entry.fetched_at > min(max_age, entry.max_age) or (expires is not None and now >= expires):
            self._remove_entry(key)
            return None
        self._entries.move_to_end(key)
        return entry

    @staticmethod
    def _get_field(entry: MetadataCacheEntry | None, name: bytes) -> FieldValue | UnknownField:
        if entry is None:
            return UNKNOWN_FIELD
        if entry.metadata.type != b"hash":
            return None
        return (entry.fields or {}).get(name, None if entry.fields_complete else UNKNOWN_FIELD)

    def _count_hits(self, results: Sequence[object]) -> None:
        missed = sum([each is None for each in results])
        self.misses += missed
        self.hits += len(results) - missed

    # -- keeping ------------------------------------------------------------------------------------------------------

    @contextmanager
    def begin_fetch(self) -> Iterator[FetchToken]:
        """Around a fetch: from before the first command to the last store."""
        fetch = FetchToken(started_at=time.monotonic(), max_age=self._freshness.max_age())
        with self._lock:
            self._active_fetches.append(fetch)
        try:
            yield fetch
        finally:
            with self._lock:
                self._active_fetches.remove(fetch)

    def store(
        self,
        token: FetchToken,
        results: Mapping[bytes, tuple[KeyMetadata, bytes | None]],
        *,
        listed_together: bool = False,
    ) -> None:
        """Keep attributes, and with them the whole content of a string or None; what was known of these keys goes.

        `together`: they were listed, and may be read, one after the other.
        """
        batch = AccessPattern(list(results)) if listed_together and len(results) > MIN_SEQUENTIAL_READS else None
        with self._lock:
            for place, (key, (attributes, content)) in enumerate(results.items()):
                if not self._is_current(token, key):
                    continue
                entry = MetadataCacheEntry(
                    attributes,
                    token.started_at,
                    token.max_age,
                    ENTRY_OVERHEAD_BYTES + len(key) + len(content or b""),
                    content,
                )
                old = self._entries.get(key)
                if old is not None:
                    self._remove_entry(key)
                    entry.access_pattern, entry.position, entry.is_prefetched = (
                        old.access_pattern,
                        old.position,
                        old.is_prefetched,
                    )
                if batch is not None:
                    entry.access_pattern, entry.position, entry.is_prefetched = batch, place, False
                self._entries[key] = entry
                self.memory_bytes += entry.size_bytes
            self._evict()

    def store_fields(
        self,
        token: FetchToken,
        key: bytes,
        values: Mapping[bytes, FieldValue],
        *,
        complete: bool = False,
        compact: bool | None = None,
    ) -> None:
        """Keep what was learnt of a hash's fields, if the hash itself is known."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.metadata.type != b"hash" or not self._is_current(token, key):
                return
            entry.fetched_at = min(entry.fetched_at, token.started_at)
            entry.max_age = min(entry.max_age, token.max_age)
            if compact is not None:
                entry.compact = compact
            entry.fields_complete = entry.fields_complete or complete
            before, entry.fields = entry.fields or {}, dict(values) if complete else {**(entry.fields or {}), **values}
            self.memory_bytes -= entry.size_bytes
            entry.size_bytes += sum(map(_field_size, entry.fields.items())) - sum(map(_field_size, before.items()))
            self.memory_bytes += entry.size_bytes
            self._entries.move_to_end(key)
            if entry.size_bytes > self._max_bytes // 4:
                self._remove_entry(key)
            self._evict()

    def _is_current(self, token: FetchToken, key: bytes) -> bool:
        return not token.all_invalidated and key not in token.invalidated_keys

    def _evict(self) -> None:
        while self.memory_bytes > self._max_bytes and self._entries:
            _, entry = self._entries.popitem(last=False)
            self.memory_bytes -= entry.size_bytes
            if entry.access_pattern is not None:
                entry.access_pattern.keys = ()  # else the few that stay would keep the names of all

    def _remove_entry(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.memory_bytes -= entry.size_bytes

    # -- forgetting ---------------------------------------------------------------------------------------------------

    def invalidate(self, keys: Collection[bytes]) -> None:
        """These keys changed: forget them, and refuse what fetches under way have found out about them."""
        with self._lock:
            for fetch in self._active_fetches:
                fetch.invalidated_keys.update(keys)
            for key in keys:
                self._remove_entry(key)
            self._recent_changes.update(keys)
            if len(self._recent_changes) > MAX_RECENT_CHANGES:
                self._assume_all_recent()

    def invalidate_all(self) -> None:
        """Anything may have changed: forget everything."""
        with self._lock:
            for fetch in self._active_fetches:
                fetch.all_invalidated = True
                fetch.invalidated_keys.clear()
            self._entries.clear()
            self.memory_bytes = 0
            self._assume_all_recent()

    def clear_recent_changes(self) -> None:
        """The server's statistics now cover all that was dropped lately: none of it has a TTL."""
        with self._lock:
            self._recent_changes.clear()
            self._all_recent_until = 0.0

    def _assume_all_recent(self) -> None:
        self._recent_changes.clear()
        self._all_recent_until = time.monotonic() + RECENT_OVERFLOW_SECONDS


def _field_size(item: tuple[bytes, FieldValue]) -> int:
    name, value = item
    return FIELD_OVERHEAD_BYTES + len(name) + (len(value) if isinstance(value, bytes) else 0)

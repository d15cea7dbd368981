"""The cache of keys' metadata, small contents and fields.

It is bounded in bytes and in age. An entry belongs to one key and is dropped as a whole: when the key changes
(`invalidate`), when it expires, when it is older than its maximum age, or when memory is short (entry_table.py).

The result of a fetch that began before its key was invalidated must not be cached, however late it is stored. So a
caller fetches within `begin_fetch()`, and its results are ignored for every key that was invalidated since.

Threads: any. One lock, a leaf, held for bookkeeping only; `Freshness.max_age` is called without it.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from threading import Lock

from redisfuse.keyspace.entry_table import EntryTable
from redisfuse.keyspace.listener import Freshness
from redisfuse.keyspace.metadata_entry import (
    CONTENT_OVERHEAD_BYTES,
    ENTRY_OVERHEAD_BYTES,
    EXPIRY_OVERHEAD_BYTES,
    UNKNOWN_FIELD,
    ExtendedEntry,
    FetchToken,
    FieldValue,
    KeyMetadata,
    MetadataCacheEntry,
    UnknownField,
    field_size,
)
from redisfuse.keyspace.prefetch import AccessPattern, Listing, ReadingOrder, SortKey

MAX_RECENT_CHANGES = 10_000  # keys in the set of recently changed keys
RECENT_OVERFLOW_SECONDS = 60.0  # after an overflow of that set, every key counts as recently changed for this time


class MetadataCache:
    """Entries by key, of at most `max_bytes` (estimated).

    `sort_key`: an order in which programs may read keys, besides that of their names (prefetch.py).
    """

    def __init__(self, max_bytes: int, freshness: Freshness, sort_key: SortKey = len) -> None:
        self._freshness = freshness
        self._lock = Lock()  # guards all below
        self._table = EntryTable(max_bytes, sort_key)
        self._active_fetches: list[FetchToken] = []
        self._recent_changes: set[bytes] = set()
        self._all_recent_until = 0.0
        self.hits = 0
        self.misses = 0

    @property
    def max_bytes(self) -> int:
        """The memory that may be in use."""
        return self._table.max_bytes

    @property
    def memory_bytes(self) -> int:
        """The memory in use, estimated."""
        return self._table.memory_bytes

    @property
    def evicted_keys(self) -> int:
        """The number of keys whose metadata was evicted and must be fetched again."""
        return self._table.evicted_keys

    @property
    def evicted_contents(self) -> int:
        """The number of contents that were evicted."""
        return self._table.evicted_contents

    # -- look-ups -----------------------------------------------------------------------------------------------------

    def get_many(self, keys: Sequence[bytes]) -> list[KeyMetadata | None]:
        """Return the cached metadata of keys; None where there is no valid entry."""
        max_age, now = self._freshness.max_age(), time.monotonic()
        with self._lock:
            entries = [self._get_valid(key, max_age, now) for key in keys]
            self._count_hits(entries)
            return [entry.metadata if entry else None for entry in entries]

    def get(self, key: bytes) -> KeyMetadata | None:
        """Return the cached metadata of a key, or None."""
        max_age, now = self._freshness.max_age(), time.monotonic()
        with self._lock:
            entry = self._get_valid(key, max_age, now)
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            self._table.record_use(entry)
            return entry.metadata

    def get_content(self, key: bytes) -> bytes | None:
        """Return a string's cached content, or None."""
        content = self.peek_content(key)
        if content is None:
            with self._lock:
                self.misses += 1
        return content

    def peek_content(self, key: bytes) -> bytes | None:
        """Return the same as `get_content`, without counting a miss.

        The caller tries another look-up if this returns None.
        """
        max_age, now = self._freshness.max_age(), time.monotonic()
        with self._lock:
            entry = self._get_valid(key, max_age, now)
            if entry is None or entry.content is None:
                return None
            self.hits += 1
            self._table.record_read(key, entry)
            return entry.content

    def select_prefetch(self, key: bytes) -> dict[bytes, KeyMetadata]:
        """Return the strings to prefetch with the content of `key`, which is fetched now.

        Call within `begin_fetch`.
        """
        with self._lock:
            recorded = self._table.planner.record_read(key)
        if recorded is not None:
            self._find_order(*recorded)
        with self._lock:
            return self._table.planner.select_contents(key, self._table.prefetch_room)

    def _find_order(self, pattern: AccessPattern, possible_orders: Sequence[int]) -> None:
        for number in possible_orders:
            order = ReadingOrder.sort(pattern.table, number, self._table.planner.sort_key)  # slow: without the lock
            with self._lock:
                if self._table.planner.adopt_order(pattern, order):
                    return
        if possible_orders:
            with self._lock:
                pattern.reject_orders()

    def get_fields(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[FieldValue | UnknownField]:
        """Return what is cached about (key, field) pairs."""
        max_age, now = self._freshness.max_age(), time.monotonic()
        with self._lock:
            return [self._get_field(self._get_valid(key, max_age, now), name) for key, name in pairs]

    def get_field_names(self, key: bytes) -> list[bytes] | None:
        """Return the names of all fields of a hash, if they are cached."""
        max_age, now = self._freshness.max_age(), time.monotonic()
        with self._lock:
            entry = self._get_valid(key, max_age, now)
            if entry is None or not entry.fields_complete or entry.fields is None:
                return None
            return [name for name, value in entry.fields.items() if value is not None]

    def is_compact(self, key: bytes) -> bool | None:
        """Return whether the hash has an encoding that implies small values.

        None if that is not cached.
        """
        max_age, now = self._freshness.max_age(), time.monotonic()
        with self._lock:
            entry = self._get_valid(key, max_age, now)
            return entry.compact if entry else None

    def get_extended(self, keys: Sequence[bytes]) -> list[ExtendedEntry]:
        """Return what is cached of the extended metadata of keys."""
        max_age, now = self._freshness.max_age(), time.monotonic()
        with self._lock:
            return [_get_extended(self._get_valid(key, max_age, now)) for key in keys]

    def select_extended(self, key: bytes) -> list[bytes]:
        """Return the keys whose extended metadata may be fetched with that of `key`.

        `key` is the first.
        """
        with self._lock:
            return self._table.planner.select_extended(key)

    def get_field_expiry(self, key: bytes, field: bytes) -> float | UnknownField | None:
        """Return a field's cached expiry (time.monotonic()); None: never."""
        max_age, now = self._freshness.max_age(), time.monotonic()
        with self._lock:
            entry = self._get_valid(key, max_age, now)
            return UNKNOWN_FIELD if entry is None else (entry.field_expiries or {}).get(field, UNKNOWN_FIELD)

    def changed_recently(self, keys: Collection[bytes]) -> list[bool]:
        """Return which keys changed recently.

        They may have a TTL that the server's statistics don't show yet.
        """
        with self._lock:
            if time.monotonic() < self._all_recent_until:
                return [True] * len(keys)
            return [key in self._recent_changes for key in keys]

    def _get_valid(self, key: bytes, max_age: float, now: float) -> MetadataCacheEntry | None:
        entry = self._table.use(key)
        if entry is None and math.isinf(max_age):
            entry = self._table.get_or_restore(key)
        if entry is None:
            return None
        expires_at = entry.metadata.expires_at
        if now - entry.fetched_at > min(max_age, entry.max_age) or (expires_at is not None and now >= expires_at):
            self._table.remove(key)
            return None
        return entry

    @staticmethod
    def _get_field(entry: MetadataCacheEntry | None, name: bytes) -> FieldValue | UnknownField:
        if entry is None:
            return UNKNOWN_FIELD
        if entry.metadata.type != b"hash":
            return None
        return (entry.fields or {}).get(name, None if entry.fields_complete else UNKNOWN_FIELD)

    def _count_hits(self, results: Sequence[object]) -> None:
        misses = sum([result is None for result in results])
        self.misses += misses
        self.hits += len(results) - misses

    # -- stores -------------------------------------------------------------------------------------------------------

    def begin_fetch(self) -> FetchToken:
        """Return a fetch that is registered for the body of `with`.

        It spans from before the first command to the last store.
        """
        return FetchToken(time.monotonic(), self._freshness.max_age(), self._active_fetches, self._lock)

    def store(
        self,
        token: FetchToken,
        results: Mapping[bytes, tuple[KeyMetadata, bytes | None]],
        *,
        listing: Listing | None = None,
        with_expiry: Collection[bytes] = (),
    ) -> None:
        """Store metadata, each with the complete content of a string or None.

        Replaces the entries of these keys. `listing`: to which they belong; they may be read one after the other.
        `with_expiry`: those of the keys whose expiry was fetched.
        """
        with self._lock:
            current = results
            if token.all_invalidated or token.invalidated_keys:
                current = {key: result for key, result in results.items() if self._is_current(token, key)}
            pattern = None
            if listing is not None:
                pattern = self._record_listing(token, listing, results, current, with_expiry)
            for key, (metadata, content) in current.items():
                size = ENTRY_OVERHEAD_BYTES + len(key)
                size += 0 if content is None else CONTENT_OVERHEAD_BYTES + len(content)
                entry = MetadataCacheEntry(metadata, token.started_at, token.max_age, size, content)
                entry.is_expiry_known = key in with_expiry
                old = self._table.get(key)
                if old is not None:
                    entry.keep_extended(old)
                    entry.is_prefetched = entry.is_read_once = old.is_prefetched
                    entry.access_pattern = old.access_pattern
                    self._table.remove(key)
                if pattern is not None:
                    entry.access_pattern = pattern
                elif old is None or old.metadata != metadata:
                    self._table.planner.record_metadata(key, metadata)
                self._table.put(key, entry)
            self._table.evict()

    def _record_listing(
        self,
        token: FetchToken,
        listing: Listing,
        results: Mapping[bytes, tuple[KeyMetadata, bytes | None]],
        current: Collection[bytes],
        with_expiry: Collection[bytes],
    ) -> AccessPattern:
        restorable = current if math.isinf(token.max_age) else ()
        listed = {
            key: metadata if key in restorable else None
            for key, (metadata, _) in results.items()
            if metadata.type != b"none"
        }
        return self._table.planner.record_listing(listing, listed, token.started_at, with_expiry)

    def store_fields(
        self,
        token: FetchToken,
        key: bytes,
        values: Mapping[bytes, FieldValue],
        *,
        complete: bool = False,
        compact: bool | None = None,
        encoding: bytes | None = None,
    ) -> None:
        """Store fields of a hash whose entry is cached.

        `complete`: `values` holds all fields. `encoding`: the hash's, if it was fetched.
        """
        with self._lock:
            entry = self._table.use(key)
            if entry is None or entry.metadata.type != b"hash" or not self._is_current(token, key):
                return
            entry.limit_age(token)
            if compact is not None:
                entry.compact = compact
            if encoding is not None:
                entry.encoding = encoding
            entry.fields_complete = entry.fields_complete or complete
            old_fields = entry.fields or {}
            entry.fields = dict(values) if complete else {**old_fields, **values}
            added = sum(map(field_size, entry.fields.items())) - sum(map(field_size, old_fields.items()))
            self._table.resize(entry, added)
            if entry.size_bytes > self.max_bytes // 4:
                self._table.remove(key)
            self._table.evict()

    def store_extended(self, token: FetchToken, results: Mapping[bytes, ExtendedEntry]) -> None:
        """Store extended metadata of keys whose entries are cached."""
        with self._lock:
            for key, extended in results.items():
                entry = self._table.get(key)
                if entry is None or not self._is_current(token, key):
                    continue
                entry.encoding = extended.encoding
                if extended.is_expiry_known:
                    entry.is_expiry_known = True
                    entry.metadata = entry.metadata._replace(expires_at=extended.expires_at)
                    self._table.planner.record_metadata(key, entry.metadata)
                entry.limit_age(token)

    def store_field_expiries(self, token: FetchToken, key: bytes, expiries: Mapping[bytes, float | None]) -> None:
        """Store the expiries of fields of a hash whose entry is cached."""
        with self._lock:
            entry = self._table.get(key)
            if entry is None or not self._is_current(token, key):
                return
            known = entry.field_expiries = entry.field_expiries or {}
            added = sum([EXPIRY_OVERHEAD_BYTES + len(name) for name in expiries if name not in known])
            known.update(expiries)
            self._table.resize(entry, added)
            entry.limit_age(token)
            self._table.evict()

    def _is_current(self, token: FetchToken, key: bytes) -> bool:
        return not token.all_invalidated and key not in token.invalidated_keys

    # -- invalidation -------------------------------------------------------------------------------------------------

    def invalidate(self, keys: Collection[bytes]) -> None:
        """Drop the entries of changed keys.

        What running fetches store about them is ignored.
        """
        with self._lock:
            for token in self._active_fetches:
                token.invalidated_keys.update(keys)
            for key in keys:
                self._table.remove(key)
            self._table.planner.record_changes(keys)
            self._recent_changes.update(keys)
            if len(self._recent_changes) > MAX_RECENT_CHANGES:
                self._assume_all_recent()

    def invalidate_all(self) -> None:
        """Drop everything: any key may have changed.

        What running fetches store is ignored.
        """
        with self._lock:
            for token in self._active_fetches:
                token.all_invalidated = True
                token.invalidated_keys.clear()
            self._table.clear()
            self._assume_all_recent()

    def clear_recent_changes(self) -> None:
        """Forget which keys changed recently.

        By the server's statistics, none of them has a TTL.
        """
        with self._lock:
            self._recent_changes.clear()
            self._all_recent_until = 0.0

    def _assume_all_recent(self) -> None:
        self._recent_changes.clear()
        self._all_recent_until = time.monotonic() + RECENT_OVERFLOW_SECONDS


def _get_extended(entry: MetadataCacheEntry | None) -> ExtendedEntry:
    if entry is None:
        return ExtendedEntry(None, False, None)
    return ExtendedEntry(entry.encoding, entry.is_expiry_known, entry.metadata.expires_at)

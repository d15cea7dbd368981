"""The cache of keys' metadata, small contents and fields.

It is bounded in bytes and in age. An entry belongs to one key and is dropped as a whole: when the key changes
(`invalidate`), when it expires, when it is older than its maximum age, or as the least recently used when memory is
short.

The result of a fetch that began before its key was invalidated must not be cached, however late it is stored. So a
caller fetches within `begin_fetch()`, and its results are ignored for every key that was invalidated since.

Threads: any. One lock, a leaf, held for bookkeeping only; `Freshness.max_age` is called without it.
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

ENTRY_OVERHEAD_BYTES = 400  # memory of an entry besides its key and its contents
FIELD_OVERHEAD_BYTES = 160  # memory of a field besides its name and its value

MAX_RECENT_CHANGES = 10_000  # keys in the set of recently changed keys
RECENT_OVERFLOW_SECONDS = 60.0  # after an overflow of that set, every key counts as recently changed for this time

FieldValue = bytes | int | None
"""A field's content, or its length in bytes (-1: it exists, its length is unknown); None: there is no such field."""


class UnknownField:
    """The type of `UNKNOWN_FIELD`: nothing is cached about a field."""


UNKNOWN_FIELD = UnknownField()


class KeyMetadata(NamedTuple):
    """The metadata of a key that stat needs."""

    type: bytes  # as TYPE returns it; b"none": there is no such key; b"unreadable": the ACL denies TYPE
    length: int  # bytes of a string, elements of a collection; -1 for types without a length command
    expires_at: float | None = None  # time.monotonic() at which it expires, if known


@dataclass(slots=True)
class MetadataCacheEntry:
    """The entry of one key. Changed only under the cache's lock."""

    metadata: KeyMetadata
    fetched_at: float  # time.monotonic()
    max_age: float  # seconds, as of when it was fetched
    size_bytes: int
    content: bytes | None = None  # of a string, complete
    fields: dict[bytes, FieldValue] | None = None
    fields_complete: bool = False  # `fields` holds all fields of the hash
    compact: bool | None = None  # for a hash: whether its encoding implies small values
    access_pattern: AccessPattern | None = None  # of the keys whose metadata was fetched together
    position: int = 0  # in `access_pattern`
    is_prefetched: bool = False  # its content is or was prefetched, and was not requested yet


@dataclass(slots=True, eq=False)
class FetchToken:
    """A running fetch."""

    started_at: float
    max_age: float
    invalidated_keys: set[bytes] = field(default_factory=set)
    all_invalidated: bool = False


class MetadataCache:
    """Entries by key, of at most `max_bytes` (estimated).

    `sort_key`: an order in which programs may read keys, besides that of their names (prefetch.py).
    """

    def __init__(self, max_bytes: int, freshness: Freshness, sort_key: SortKey = len) -> None:
        self._max_bytes = max_bytes
        self._freshness = freshness
        self._sort_key = sort_key
        self._lock = Lock()  # guards all below
        self._entries: OrderedDict[bytes, MetadataCacheEntry] = OrderedDict()
        self._active_fetches: list[FetchToken] = []
        self._recent_changes: set[bytes] = set()
        self._all_recent_until = 0.0
        self.memory_bytes = 0  # in use, estimated
        self.hits = 0
        self.misses = 0

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
            if entry.is_prefetched:
                entry.is_prefetched = False
                if entry.access_pattern is not None:
                    entry.access_pattern.record_hit()
            return entry.content

    def select_prefetch(self, key: bytes) -> dict[bytes, KeyMetadata]:
        """Return the strings to prefetch with the content of `key`, which is fetched now.

        Call within `begin_fetch`.
        """
        selected: dict[bytes, KeyMetadata] = {}
        with self._lock:
            entry = self._entries.get(key)
            pattern = entry.access_pattern if entry is not None else None
            if entry is None or pattern is None or not pattern.keys:
                return selected
            if not pattern.has_order:
                if not pattern.detect_order(key, self._sort_key):
                    return selected
                self._assign_positions(pattern)
            max_keys, last, remaining = pattern.plan_prefetch(entry.position), entry.position, MAX_PREFETCH_TOTAL_BYTES
            for position, candidate in enumerate(
                pattern.keys[last + 1 : last + 1 + MAX_PREFETCH_CANDIDATES] if max_keys else (), last + 1
            ):
                other = self._entries.get(candidate)
                if other is None or other.access_pattern is not pattern:
                    continue
                if other.is_prefetched or other.content is not None:
                    continue
                if other.metadata.type == b"string" and other.metadata.length <= MAX_PREFETCH_VALUE_BYTES:
                    remaining -= other.metadata.length
                    if remaining < 0 or len(selected) >= max_keys:
                        break
                    other.is_prefetched, last = True, position
                    selected[candidate] = other.metadata
            pattern.record_prefetch(len(selected), last)
        return selected

    def _assign_positions(self, access_pattern: AccessPattern) -> None:
        for position, key in enumerate(access_pattern.keys):
            entry = self._entries.get(key)
            if entry is not None and entry.access_pattern is access_pattern:
                entry.position = position

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

    def changed_recently(self, keys: Sequence[bytes]) -> list[bool]:
        """Return which keys changed recently.

        They may have a TTL that the server's statistics don't show yet.
        """
        with self._lock:
            if time.monotonic() < self._all_recent_until:
                return [True] * len(keys)
            return [key in self._recent_changes for key in keys]

    def _get_valid(self, key: bytes, max_age: float, now: float) -> MetadataCacheEntry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires_at = entry.metadata.expires_at
        if now - entry.fetched_at > min(max_age, entry.max_age) or (expires_at is not None and now >= expires_at):
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
        misses = sum([result is None for result in results])
        self.misses += misses
        self.hits += len(results) - misses

    # -- stores -------------------------------------------------------------------------------------------------------

    @contextmanager
    def begin_fetch(self) -> Iterator[FetchToken]:
        """Register a fetch for the body of `with`.

        It spans from before the first command to the last store.
        """
        token = FetchToken(started_at=time.monotonic(), max_age=self._freshness.max_age())
        with self._lock:
            self._active_fetches.append(token)
        try:
            yield token
        finally:
            with self._lock:
                self._active_fetches.remove(token)

    def store(
        self,
        token: FetchToken,
        results: Mapping[bytes, tuple[KeyMetadata, bytes | None]],
        *,
        listed_together: bool = False,
    ) -> None:
        """Store metadata, each with the complete content of a string or None.

        Replaces the entries of these keys. `listed_together`: the keys were listed, and may be read, one after the
        other.
        """
        is_pattern = listed_together and len(results) > MIN_SEQUENTIAL_READS
        pattern = AccessPattern(list(results)) if is_pattern else None
        with self._lock:
            for position, (key, (metadata, content)) in enumerate(results.items()):
                if not self._is_current(token, key):
                    continue
                entry = MetadataCacheEntry(
                    metadata,
                    token.started_at,
                    token.max_age,
                    ENTRY_OVERHEAD_BYTES + len(key) + len(content or b""),
                    content,
                )
                old = self._entries.get(key)
                if old is not None:
                    self._remove_entry(key)
                if pattern is not None:
                    entry.access_pattern, entry.position = pattern, position
                elif old is not None:
                    entry.access_pattern, entry.position = old.access_pattern, old.position
                    entry.is_prefetched = old.is_prefetched
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
        """Store fields of a hash whose entry is cached.

        `complete`: `values` holds all fields.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.metadata.type != b"hash" or not self._is_current(token, key):
                return
            entry.fetched_at = min(entry.fetched_at, token.started_at)
            entry.max_age = min(entry.max_age, token.max_age)
            if compact is not None:
                entry.compact = compact
            entry.fields_complete = entry.fields_complete or complete
            old_fields = entry.fields or {}
            entry.fields = dict(values) if complete else {**old_fields, **values}
            self.memory_bytes -= entry.size_bytes
            entry.size_bytes += sum(map(_field_size, entry.fields.items())) - sum(map(_field_size, old_fields.items()))
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
                entry.access_pattern.keys = ()  # else the few remaining entries would hold the names of all keys

    def _remove_entry(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.memory_bytes -= entry.size_bytes

    # -- invalidation -------------------------------------------------------------------------------------------------

    def invalidate(self, keys: Collection[bytes]) -> None:
        """Drop the entries of changed keys.

        What running fetches store about them is ignored.
        """
        with self._lock:
            for token in self._active_fetches:
                token.invalidated_keys.update(keys)
            for key in keys:
                self._remove_entry(key)
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
            self._entries.clear()
            self.memory_bytes = 0
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


def _field_size(item: tuple[bytes, FieldValue]) -> int:
    name, value = item
    return FIELD_OVERHEAD_BYTES + len(name) + (len(value) if isinstance(value, bytes) else 0)

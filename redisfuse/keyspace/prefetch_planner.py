"""Selects keys to fetch together, and restores metadata that was evicted.

Bookkeeping only, under the lock of the cache whose entries it reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from redisfuse.keyspace.metadata_entry import KeyMetadata, MetadataCacheEntry, prefetched_size
from redisfuse.keyspace.prefetch import (
    MAX_PREFETCH_CANDIDATES,
    MAX_PREFETCH_TOTAL_BYTES,
    MAX_PREFETCH_VALUE_BYTES,
    AccessPattern,
    Listing,
    ReadingHint,
    ReadingOrder,
    SortKey,
)

if TYPE_CHECKING:
    from redisfuse.keyspace.entry_table import EntryTable

MAX_SEARCHED_PATTERNS = 32  # the most recent ones, which are searched for a key that has no entry
MAX_CHANGED_KEYS = 50_000  # keys that changed since they were listed; more of them, and all patterns are dropped

PATTERN_FRACTION = 4  # a pattern takes at most a quarter of the memory of all, about


class RestoredMetadata(NamedTuple):
    """The metadata that a listing has fetched of a key."""

    metadata: KeyMetadata
    is_expiry_known: bool
    pattern: AccessPattern


class PrefetchPlanner:
    """The access patterns of the keys that were listed, in at most `max_bytes`.

    `table` has the cache's entries.
    """

    def __init__(self, table: EntryTable, sort_key: SortKey, max_bytes: int) -> None:
        self._table = table
        self.sort_key = sort_key
        self._max_bytes = max_bytes
        self._hint = ReadingHint()
        self._patterns: dict[AccessPattern, int] = {}  # with the memory of each, oldest first
        self._changed: set[int] = set()  # hashes of the keys that changed since they were listed
        self.memory_bytes = 0  # of all patterns
        self.dropped_keys = 0  # keys without an entry whose pattern was dropped because memory was short

    # -- listings -----------------------------------------------------------------------------------------------------

    def record_listing(
        self,
        listing: Listing,
        metadata_of_keys: Mapping[bytes, KeyMetadata | None],
        listed_at: float,
        with_expiry: Collection[bytes],
    ) -> AccessPattern:
        """Record keys that were listed. None: the key's metadata must not be restored.

        `with_expiry`: those of the keys whose expiry was fetched.
        """
        pattern = listing.pattern
        max_bytes = self._max_bytes // PATTERN_FRACTION
        if pattern is None or pattern.is_closed or pattern.memory_bytes > max_bytes:
            pattern = listing.pattern = AccessPattern(listed_at)
        for key, metadata in metadata_of_keys.items():
            if self._changed and hash(key) in self._changed:
                self._changed.discard(hash(key))
                for other in self._iter_recent(key):
                    if other.table.find(key) is not None:
                        other.table.put(key, None)
            pattern.table.put(key, metadata, is_expiry_known=key in with_expiry)
        self._update_memory(pattern)
        return pattern

    def _update_memory(self, pattern: AccessPattern) -> None:
        self.memory_bytes += pattern.memory_bytes - self._patterns.get(pattern, 0)
        self._patterns[pattern] = pattern.memory_bytes
        while self.memory_bytes > self._max_bytes:
            oldest = next(iter(self._patterns))
            self.memory_bytes -= self._patterns.pop(oldest)
            self.dropped_keys += sum([self._table.get(key) is None for key in oldest.iter_keys(0, len(oldest.table))])
            oldest.clear()

    def restore(self, key: bytes) -> RestoredMetadata | None:
        """Return the metadata that the last listing of a key has fetched.

        None if the key was not listed, or has changed since.
        """
        if hash(key) in self._changed:
            return None
        for pattern in self._iter_recent(key):
            position = pattern.table.find(key)
            if position is not None:
                metadata = pattern.table.get_metadata(position)
                is_expiry_known = pattern.table.is_expiry_known(position)
                return None if metadata is None else RestoredMetadata(metadata, is_expiry_known, pattern)
        return None

    def _iter_recent(self, key: bytes) -> Iterator[AccessPattern]:
        """Yield the most recent patterns that may have a key, newest first."""
        for pattern in islice(reversed(self._patterns), MAX_SEARCHED_PATTERNS):
            prefix = pattern.table.prefix
            if prefix is not None and key.startswith(prefix):
                yield pattern

    def record_metadata(self, key: bytes, metadata: KeyMetadata) -> None:
        """Record the current metadata of a key, from which the listed may differ."""
        listed = self.restore(key)
        if listed is not None and listed.metadata != metadata:
            self._changed.add(hash(key))

    def record_changes(self, keys: Iterable[bytes]) -> None:
        """Record that the listed metadata of these keys is outdated."""
        if not self._patterns:
            return
        self._changed.update(
            [
                hash(key)
                for key in keys
                if any(pattern.table.find(key) is not None for pattern in self._iter_recent(key))
            ]
        )
        if len(self._changed) > MAX_CHANGED_KEYS:
            self.clear()

    def clear(self) -> None:
        """Drop all patterns."""
        self._patterns.clear()
        self._changed.clear()
        self.memory_bytes = 0

    # -- selections ---------------------------------------------------------------------------------------------------

    def _find_pattern(self, key: bytes) -> AccessPattern | None:
        entry = self._table.get_or_restore(key)
        pattern = None if entry is None else entry.access_pattern
        return pattern if pattern in self._patterns else None

    def record_read(self, key: bytes) -> tuple[AccessPattern, list[int]] | None:
        """Record that the content of a key is fetched now.

        Returns its pattern and the orders that are possible now, unless the order is known.
        """
        pattern = self._find_pattern(key)
        if pattern is None or pattern.has_order:
            return None
        return pattern, pattern.record_read(key, self.sort_key, self._hint)

    def adopt_order(self, pattern: AccessPattern, order: ReadingOrder) -> bool:
        """Adopt an order of a pattern if it fits; return whether the order is known now."""
        is_known = pattern.adopt_order(order, self._hint)
        if pattern in self._patterns:
            self._update_memory(pattern)
        return is_known

    def select_contents(self, key: bytes, room_bytes: int) -> dict[bytes, KeyMetadata]:
        """Return the strings to prefetch with the content of `key`.

        The cache has room for `room_bytes` of entries and contents.
        """
        pattern = self._find_pattern(key)
        if pattern is None or not pattern.has_order or (rank := pattern.get_rank(key)) is None:
            return {}
        max_keys = pattern.plan_prefetch(rank)
        if not max_keys:
            return {}
        selected: dict[bytes, KeyMetadata] = {}
        room_bytes //= 2  # several directories share it
        remaining, last = MAX_PREFETCH_TOTAL_BYTES, rank
        for position, candidate in enumerate(pattern.iter_keys(rank + 1, rank + 1 + MAX_PREFETCH_CANDIDATES), rank + 1):
            other = self._table.get_or_restore(candidate)
            if other is None or other.is_prefetched or other.content is not None:
                continue
            if other.metadata.type == b"string" and other.metadata.length <= MAX_PREFETCH_VALUE_BYTES:
                remaining -= other.metadata.length
                room_bytes -= prefetched_size(candidate, other.metadata.length)
                if remaining < 0 or room_bytes < 0 or len(selected) >= max_keys:
                    break
                other.is_prefetched, last = True, position
                selected[candidate] = other.metadata
        pattern.record_prefetch(len(selected), last)
        return selected

    def select_extended(self, key: bytes) -> list[bytes]:
        """Return the keys whose extended metadata may be fetched with that of `key`.

        `key` is the first.
        """
        pattern = self._find_pattern(key)
        rank = None if pattern is None else pattern.get_rank(key)
        if pattern is None or rank is None:
            return [key]
        others = pattern.iter_keys(rank + 1, rank + pattern.plan_extended(rank))
        entries = [(other, self._table.get_or_restore(other)) for other in others]
        return [key, *[other for other, entry in entries if entry is not None and entry.metadata.type != b"none"]]

    def record_hit(self, entry: MetadataCacheEntry) -> None:
        """Record that the prefetched content of an entry was requested."""
        entry.is_prefetched = False
        self._hint.record_hit()
        if entry.access_pattern is not None:
            entry.access_pattern.record_hit()

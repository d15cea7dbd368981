"""The entries of the metadata cache and the memory that they take.

Least recently used entries are evicted when memory is short; contents first, while they take more than their share.
Bookkeeping only, under the cache's lock.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from redisfuse.keyspace.metadata_entry import CONTENT_OVERHEAD_BYTES, ENTRY_OVERHEAD_BYTES, MetadataCacheEntry
from redisfuse.keyspace.prefetch import SortKey
from redisfuse.keyspace.prefetch_planner import PrefetchPlanner

MIN_CONTENT_FRACTION = 4  # contents may take at least a quarter of the memory, and more if the metadata leaves it
PATTERN_FRACTION = 2  # packed metadata of listings may take half of the memory


class EntryTable:
    """Entries by key, and packed metadata of listings.

    Both together take at most `max_bytes`.
    """

    def __init__(self, max_bytes: int, sort_key: SortKey) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[bytes, MetadataCacheEntry] = OrderedDict()  # the first to evict first
        self._contents: OrderedDict[bytes, None] = OrderedDict()  # the entries with a content, the first to drop first
        self._entry_bytes = 0  # of all entries, estimated
        self._content_bytes = 0  # of all contents
        self._prefetched_bytes = 0  # of the entries with contents that were not requested yet
        self._evicted_keys = 0  # without those that listings have fetched
        self._has_restorable = False  # whether an entry of a listing was evicted
        self.evicted_contents = 0
        self.planner = PrefetchPlanner(self, sort_key, max_bytes // PATTERN_FRACTION)

    @property
    def memory_bytes(self) -> int:
        """The memory in use, estimated."""
        return self._entry_bytes + self.planner.memory_bytes

    @property
    def evicted_keys(self) -> int:
        """The number of keys whose metadata was evicted and must be fetched again."""
        return self._evicted_keys + self.planner.dropped_keys

    @property
    def prefetch_room(self) -> int:
        """The bytes that entries of prefetched contents may take."""
        return max(0, (self.max_bytes - self.planner.memory_bytes) // 2 - self._prefetched_bytes)

    # -- look-ups -----------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> MetadataCacheEntry | None:
        """Return the entry of a key, or None."""
        return self._entries.get(key)

    def use(self, key: bytes) -> MetadataCacheEntry | None:
        """Return the entry of a key, or None, and mark it as the most recently used one."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def get_or_restore(self, key: bytes) -> MetadataCacheEntry | None:
        """Return the entry of a key, or None.

        If it was evicted, it is created again from the metadata that a listing has fetched.
        """
        entry = self._entries.get(key)
        if entry is None and self._has_restorable and (restored := self.planner.restore(key)) is not None:
            metadata, is_expiry_known, pattern = restored
            entry = MetadataCacheEntry(metadata, pattern.listed_at, math.inf, ENTRY_OVERHEAD_BYTES + len(key))
            entry.is_expiry_known, entry.access_pattern = is_expiry_known, pattern
            self.put(key, entry)
            self.evict()
        return entry

    def record_use(self, entry: MetadataCacheEntry) -> None:
        """Record that the metadata or the content of an entry was requested."""
        if entry.is_prefetched and entry.content is not None:
            self._prefetched_bytes -= entry.size_bytes
            self.planner.record_hit(entry)

    def record_read(self, key: bytes, entry: MetadataCacheEntry) -> None:
        """Record that the content of an entry was requested.

        Most prefetched contents are read only once, so it is now the first to be evicted.
        """
        self.record_use(entry)
        self._contents.move_to_end(key, last=not entry.is_read_once)
        if entry.is_read_once:
            entry.is_read_once = False
            self._entries.move_to_end(key, last=False)

    # -- changes ------------------------------------------------------------------------------------------------------

    def put(self, key: bytes, entry: MetadataCacheEntry) -> None:
        """Add the entry of a key that has none. The caller evicts afterwards."""
        self._entries[key] = entry
        self._entry_bytes += entry.size_bytes
        if entry.content is not None:
            self._contents[key] = None
            self._content_bytes += len(entry.content)
            self._prefetched_bytes += entry.size_bytes if entry.is_prefetched else 0

    def resize(self, entry: MetadataCacheEntry, added_bytes: int) -> None:
        """Change the memory that an entry takes besides its content."""
        entry.size_bytes += added_bytes
        self._entry_bytes += added_bytes
        self._prefetched_bytes += added_bytes if entry.is_prefetched and entry.content is not None else 0

    def remove(self, key: bytes) -> None:
        """Remove the entry of a key, if there is one."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._drop_content(key, entry)
            self._entry_bytes -= entry.size_bytes

    def clear(self) -> None:
        """Remove everything."""
        self._entries.clear()
        self._contents.clear()
        self.planner.clear()
        self._has_restorable = False
        self._entry_bytes = self._content_bytes = self._prefetched_bytes = 0

    def evict(self) -> None:
        """Drop contents and entries until the memory suffices."""
        while self.memory_bytes > self.max_bytes and self._entries:
            key = next(iter(self._contents), None)
            if key is not None and self._content_bytes > self.max_bytes // MIN_CONTENT_FRACTION:
                self._drop_content(key, self._entries[key])
                self.evicted_contents += 1
            else:
                self._evict_entry(next(iter(self._entries)))

    def _evict_entry(self, key: bytes) -> None:
        entry = self._entries[key]
        self.evicted_contents += entry.content is not None
        pattern = entry.access_pattern
        is_restorable = pattern is not None and pattern.table.find(key) is not None
        self._has_restorable = self._has_restorable or is_restorable
        self._evicted_keys += not is_restorable
        self.remove(key)

    def _drop_content(self, key: bytes, entry: MetadataCacheEntry) -> None:
        if entry.content is None:
            return
        size = len(entry.content)
        del self._contents[key]
        self._content_bytes -= size
        if entry.is_prefetched:
            self._prefetched_bytes -= entry.size_bytes
            entry.is_prefetched = False
        entry.content = None
        entry.size_bytes -= CONTENT_OVERHEAD_BYTES + size
        self._entry_bytes -= CONTENT_OVERHEAD_BYTES + size

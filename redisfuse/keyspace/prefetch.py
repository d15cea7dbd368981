"""Prefetching: decides which contents are fetched together with a requested one.

A program that reads all files of a directory requests one content after the other; a round trip for each would take
most of its time. So the keys whose metadata was fetched together, as a listing does, share an `AccessPattern`. Once
their reading order is detected, the next contents are fetched with the requested one: more each time while the
prefetched ones are used, none when the program stops reading in order. No key is fetched more often than without.

The orders: as listed (`grep -r`, `tar`), by name (a shell's `*`, `rsync`), and one more that the caller passes (in
directories of more than 10 000 files, `grep -r` and `find` sort by inode number: fts(3) of gnulib).

Bookkeeping only, under the cache's lock.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

MIN_SEQUENTIAL_READS = 3  # contents that are requested one by one before any is prefetched
ORDER_CHECK_READS = (
    MIN_SEQUENTIAL_READS,
    2 * MIN_SEQUENTIAL_READS,
    4 * MIN_SEQUENTIAL_READS,
)  # when to detect an order
MAX_ORDER_GAP_KEYS = 8  # keys that may be skipped between two reads in order
INITIAL_PREFETCH_KEYS = 8  # contents of the first prefetch
MAX_PREFETCH_KEYS = 64  # contents of one prefetch
MAX_PREFETCH_VALUE_BYTES = 16 << 10  # of one content
MAX_PREFETCH_TOTAL_BYTES = 256 << 10  # of all contents of one prefetch
MAX_PREFETCH_CANDIDATES = 4 * MAX_PREFETCH_KEYS  # keys after the requested one that are considered

SortKey = Callable[[bytes], Any]  # as the `key` of `sorted`


@dataclass(slots=True, eq=False)
class AccessPattern:
    """Keys whose metadata was fetched together.

    They are in the order of their listing, until another order is detected.
    """

    keys: Sequence[bytes]
    _recent_reads: list[bytes] = field(default_factory=list)  # until the order is known
    _read_count: int = 0
    _next_position: int = -1  # of the expected read, in `keys`; -1: the order is unknown
    _window: int = 0  # contents of the next prefetch
    _required_hits: int = 0  # prefetched contents that must still be used: half of the last prefetch

    @property
    def has_order(self) -> bool:
        """Whether the reading order is known; `keys` is in that order then."""
        return self._next_position >= 0

    def detect_order(self, key: bytes, sort_key: SortKey) -> bool:
        """Record the read of a key; return whether the order is known now.

        `sort_key` is tried last.
        """
        self._recent_reads = [*self._recent_reads[1 - MIN_SEQUENTIAL_READS :], key]
        self._read_count += 1
        if self._read_count in ORDER_CHECK_READS:
            for order in self._candidate_orders(sort_key):
                positions = [order.index(read) for read in self._recent_reads]
                if all(0 < after - before <= MAX_ORDER_GAP_KEYS for before, after in pairwise(positions)):
                    self.keys, self._next_position, self._recent_reads = order, positions[-1], []
                    return True
        if self._read_count >= ORDER_CHECK_READS[-1]:
            self.keys, self._recent_reads = (), []  # no order fits: give up
        return False

    def _candidate_orders(self, sort_key: SortKey) -> list[Sequence[bytes]]:
        orders = [self.keys, sorted(self.keys)]
        return orders if self._read_count == MIN_SEQUENTIAL_READS else [*orders, sorted(self.keys, key=sort_key)]

    def plan_prefetch(self, position: int) -> int:
        """Return how many contents may be prefetched with one that is fetched now.

        `position` is that of the latter.
        """
        is_in_order = 0 <= position - self._next_position <= MAX_ORDER_GAP_KEYS
        self._next_position = position + 1
        if is_in_order and self._required_hits:
            self.keys = ()  # prefetched contents were not used: give up
        if not is_in_order or not self.keys:
            self._window = 0
            return 0
        return min(max(self._window, INITIAL_PREFETCH_KEYS), MAX_PREFETCH_KEYS)

    def record_prefetch(self, count: int, last_position: int) -> None:
        """Record that `count` contents are prefetched, up to `last_position`."""
        self._window = max(0, self._window - count)
        self._required_hits = count // 2
        self._next_position = last_position + 1

    def record_hit(self) -> None:
        """Record that a prefetched content was requested."""
        self._window = min(self._window + 2, 2 * MAX_PREFETCH_KEYS)
        self._required_hits = max(0, self._required_hits - 1)

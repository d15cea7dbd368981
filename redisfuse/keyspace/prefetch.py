"""Which contents come along when one is asked for.

A program that reads all files of a directory asks for one content after the other; a round trip for each would be most
of its time. So keys that were described together, as a listing does, stay together in a `AccessPattern`. Once it shows in which
order they are read, the next ones come along with the one that is asked for: more each time while those that came along
are used, none where nobody reads on. A key is read no more often for it.

The orders: as listed (`grep -r`, `tar`), by name (a shell's `*`, `rsync`), and whatever else the caller knows of (in
directories of more than 10 000 files, `grep -r` and `find` go by inode number: fts(3) of gnulib).

Bookkeeping only, under the cache's lock.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

MIN_SEQUENTIAL_READS = 3  # contents of a batch that are asked for one by one before any comes along
ORDER_CHECK_READS = (
    MIN_SEQUENTIAL_READS,
    2 * MIN_SEQUENTIAL_READS,
    4 * MIN_SEQUENTIAL_READS,
)  # after how many the order is looked for
MAX_ORDER_GAP_KEYS = 8  # keys that may lie between two that are read one after the other
INITIAL_PREFETCH_KEYS = 8  # contents that come along at first
MAX_PREFETCH_KEYS = 64  # contents that come along at once
MAX_PREFETCH_VALUE_BYTES = 16 << 10  # bytes of one
MAX_PREFETCH_TOTAL_BYTES = 256 << 10  # bytes of all that come along at once
MAX_PREFETCH_CANDIDATES = 4 * MAX_PREFETCH_KEYS  # keys behind the one that is asked for, of which they are chosen

SortKey = Callable[[bytes], Any]  # what keys are sorted by


@dataclass(slots=True, eq=False)
class AccessPattern:
    """Keys that were described together: in the order of their listing, until another one shows."""

    keys: Sequence[bytes]
    _recent_reads: list[bytes] = field(default_factory=list)  # the last ones, until the order is known
    _read_count: int = 0
    _next_position: int = -1  # the place where the reader is expected; -1: the order is not known
    _window: int = 0
    _required_hits: int = 0  # how many of those that came along last must be used yet, that is half of them

    @property
    def has_order(self) -> bool:
        """Whether it is known in which order they are read; `keys` is in that order then."""
        return self._next_position >= 0

    def detect_order(self, key: bytes, sort_key: SortKey) -> bool:
        """A content was asked for: is it known now? `other` is tried where nothing else fits."""
        self._recent_reads = [*self._recent_reads[1 - MIN_SEQUENTIAL_READS :], key]
        self._read_count += 1
        if self._read_count in ORDER_CHECK_READS:
            for order in self._candidate_orders(sort_key):
                places = [order.index(each) for each in self._recent_reads]
                if all(0 < after - before <= MAX_ORDER_GAP_KEYS for before, after in pairwise(places)):
                    self.keys, self._next_position, self._recent_reads = order, places[-1], []
                    return True
        if self._read_count >= ORDER_CHECK_READS[-1]:
            self.keys, self._recent_reads = (), []  # there is none
        return False

    def _candidate_orders(self, sort_key: SortKey) -> list[Sequence[bytes]]:
        orders = [self.keys, sorted(self.keys)]
        return orders if self._read_count == MIN_SEQUENTIAL_READS else [*orders, sorted(self.keys, key=sort_key)]

    def plan_prefetch(self, position: int) -> int:
        """The content at this place has to be fetched; how many more may come with it?"""
        reads_on = 0 <= position - self._next_position <= MAX_ORDER_GAP_KEYS
        self._next_position = position + 1
        if reads_on and self._required_hits:
            self.keys = ()  # it is not read as it was thought to be
        if not reads_on or not self.keys:
            self._window = 0
            return 0
        return min(max(self._window, INITIAL_PREFETCH_KEYS), MAX_PREFETCH_KEYS)

    def record_prefetch(self, count: int, last_position: int) -> None:
        """So many come along, the last one from this place."""
        self._window = max(0, self._window - count)
        self._required_hits = count // 2
        self._next_position = last_position + 1

    def record_hit(self) -> None:
        """One that came along was asked for."""
        self._window = min(self._window + 2, 2 * MAX_PREFETCH_KEYS)
        self._required_hits = max(0, self._required_hits - 1)

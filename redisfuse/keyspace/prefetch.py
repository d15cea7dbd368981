"""Prefetching: decides which contents are fetched together with a requested one.

A program that reads all files of a directory requests one content after the other; a round trip for each would take
most of its time. So the keys of a listing, up to the first read of one of them, share an `AccessPattern`. Once their
reading order is detected, the next contents are fetched with the requested one: more each time while the prefetched
ones are used, none when the program stops reading in order. No key is fetched more often than without.

The orders: as listed (`grep -r`, `tar`), by name (a shell's `*`, `rsync`), and one more that the caller passes (in
directories of more than 10 000 files, `grep -r` and `find` sort by inode number: fts(3) of gnulib lists 100 000 at a
time, sorts and visits them).

A tree has many patterns. So the last detected order is a `ReadingHint` for the next pattern, which needs no detection
if it is read in the same order.

Bookkeeping only, under the cache's lock.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from redisfuse.keyspace.packed_metadata import PackedMetadata

MIN_SEQUENTIAL_READS = 3  # contents that are requested one by one, in one order, before any is prefetched
RETRY_FACTOR = 4  # by which more reads in order are required after an order turned out to be wrong
MAX_HINTED_PATTERN_KEYS = 5000  # a larger pattern is not sorted on a mere hint
MAX_HINT_ERRORS = 2  # reads out of an assumed order, one after the other, until it is forgotten
MAX_ORDER_ERRORS = 4  # the same of a detected order
MAX_ORDER_GAP_KEYS = 8  # keys that may be skipped between two reads in order
INITIAL_PREFETCH_KEYS = 16  # contents of the first prefetch
MAX_PREFETCH_KEYS = 512  # contents of one prefetch
WINDOW_GROWTH = 8  # contents of the next prefetch for each one that was used
MAX_HINTED_KEYS = 256  # contents of a pattern's first prefetch, after many in the same order were used
MAX_PREFETCH_VALUE_BYTES = 16 << 10  # of one content
MAX_PREFETCH_TOTAL_BYTES = 2 << 20  # of all contents of one prefetch
MAX_PREFETCH_CANDIDATES = 2 * MAX_PREFETCH_KEYS  # keys after the requested one that are considered
MAX_EXTENDED_KEYS = 512  # keys whose extended metadata is fetched together

PATTERN_OVERHEAD_BYTES = 1000  # memory of a pattern besides its table and its order

SortKey = Callable[[bytes], Any]  # as the `key` of `sorted`

AS_LISTED, BY_NAME, BY_SORT_KEY = range(3)
ORDERS = (AS_LISTED, BY_NAME, BY_SORT_KEY)


@dataclass(slots=True)
class ReadingHint:
    """The reading order that was detected last.

    It also counts how often prefetching in that order was right.
    """

    order: int | None = None
    credit: int = 0  # contents that may be prefetched before a pattern's order is confirmed

    def record_order(self, order: int) -> None:
        """Record that an order was detected."""
        if order != self.order:
            self.order, self.credit = order, 0

    def record_hit(self) -> None:
        """Record that a prefetched content was requested."""
        self.credit = min(self.credit + 1, 4 * MAX_HINTED_KEYS)

    def take_credit(self) -> int:
        """Return how many contents the first prefetch of a pattern may have."""
        count = min(self.credit, MAX_HINTED_KEYS)
        self.credit -= count
        return max(count, INITIAL_PREFETCH_KEYS)


@dataclass(frozen=True, slots=True)
class ReadingOrder:
    """The keys of a table in one order. A key's *rank* is its place in that order."""

    order: int
    positions: array[int] | None = None  # in the table, by rank; None: as listed
    ranks: array[int] | None = None  # by position

    @classmethod
    def sort(cls, table: PackedMetadata, order: int, sort_key: SortKey) -> ReadingOrder:
        """Sort the keys of a table that is complete.

        Takes up to 0.3 seconds for 100 000 keys.
        """
        if order == AS_LISTED:
            return cls(order)
        keys = list(map(table.get_key, range(len(table))))
        values: list[Any] = keys if order == BY_NAME else list(map(sort_key, keys))
        positions = array("I", sorted(range(len(keys)), key=values.__getitem__))
        ranks = array("I", bytes(4 * len(keys)))
        for rank, position in enumerate(positions):
            ranks[position] = rank
        return cls(order, positions, ranks)


@dataclass(slots=True, eq=False)
class Listing:
    """A listing in progress, whose keys are fetched in batches."""

    pattern: AccessPattern | None = None  # to which its next keys belong


@dataclass(slots=True, eq=False)
class AccessPattern:
    """The keys of a listing, and the order in which they are read.

    Keys that are listed after the first read of one of them belong to the next pattern.
    """

    listed_at: float  # time.monotonic() of the first batch
    table: PackedMetadata = field(default_factory=PackedMetadata)
    is_closed: bool = False  # one of the keys was read: no more are added
    _order: ReadingOrder | None = None  # if it is known
    _is_assumed: bool = False  # the order is that of the hint, not detected
    _accepts_hint: bool = True
    _order_errors: int = 0  # reads out of order, one after the other
    _recent_reads: list[bytes] = field(default_factory=list)  # while the order is unknown
    _run_lengths: list[int] = field(default_factory=lambda: [0] * len(ORDERS))  # ascending reads, by order
    _required_run: int = MIN_SEQUENTIAL_READS
    _next_rank: int = -1  # of the expected read
    _window: int = 0  # contents of the next prefetch
    _required_hits: int = 0  # prefetched contents that must still be used: half of the last prefetch
    _extended_window: int = 0  # keys of the last fetch of extended metadata
    _extended_end: int = -1  # the rank after them

    @property
    def memory_bytes(self) -> int:
        """The memory in use."""
        rank_bytes = 0 if self._order is None or self._order.ranks is None else 8 * len(self.table)
        return PATTERN_OVERHEAD_BYTES + self.table.memory_bytes + rank_bytes

    def clear(self) -> None:
        """Free the memory: the pattern is no longer used."""
        self.table = PackedMetadata()
        self._forget_order()

    # -- the reading order --------------------------------------------------------------------------------------------

    @property
    def has_order(self) -> bool:
        """Whether the reading order is known."""
        return self._order is not None

    def get_rank(self, key: bytes) -> int | None:
        """Return the rank of a key; None if the pattern does not have it."""
        return self._get_rank(key, self._order)

    def _get_rank(self, key: bytes, order: ReadingOrder | None) -> int | None:
        position = self.table.find(key)
        return position if position is None or order is None or order.ranks is None else order.ranks[position]

    def iter_keys(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the keys of the ranks from `start` to before `end`."""
        positions = None if self._order is None else self._order.positions
        for rank in range(start, min(end, len(self.table))):
            yield self.table.get_key(rank if positions is None else positions[rank])

    def record_read(self, key: bytes, sort_key: SortKey, hint: ReadingHint) -> list[int]:
        """Record the read of a key while the order is unknown; no more keys are added.

        Returns the orders that are possible now, to be tried by `adopt_order` until one is adopted.
        """
        self.is_closed = True
        previous = self._recent_reads[-1] if self._recent_reads else None
        self._recent_reads = [*self._recent_reads[1 - MIN_SEQUENTIAL_READS :], key]
        if hint.order is not None and self._accepts_hint and len(self.table) <= MAX_HINTED_PATTERN_KEYS:
            self._is_assumed = True
            return [hint.order]
        for order in ORDERS:
            is_ascending = previous is not None and self._precedes(previous, key, order, sort_key)
            self._run_lengths[order] = self._run_lengths[order] + 1 if is_ascending else 1
        return [order for order in ORDERS if self._run_lengths[order] >= self._required_run]

    def _precedes(self, first: bytes, second: bytes, order: int, sort_key: SortKey) -> bool:
        if order == AS_LISTED:
            return (self.table.find(first) or 0) < (self.table.find(second) or 0)
        return first < second if order == BY_NAME else bool(sort_key(first) < sort_key(second))

    def adopt_order(self, order: ReadingOrder, hint: ReadingHint) -> bool:
        """Adopt an order if the last reads fit; return whether the order is known now."""
        if self.has_order:
            return True  # another thread was first
        if not self._recent_reads:
            return False  # another thread has rejected the orders
        ranks = [self._get_rank(read, order) or 0 for read in self._recent_reads]
        if not all(0 < after - before <= MAX_ORDER_GAP_KEYS for before, after in pairwise(ranks)):
            return False
        self._order, self._next_rank = order, ranks[-1]
        self._restart_detection()
        if self._is_assumed:
            self._window = hint.take_credit()
        else:
            hint.record_order(order.order)
        return True

    def reject_orders(self) -> None:
        """Note that none of the possible orders was adopted.

        More reads in order are required next time.
        """
        if not self._is_assumed:
            self._required_run *= RETRY_FACTOR
        self._is_assumed = self._accepts_hint = False
        self._restart_detection()

    def _restart_detection(self) -> None:
        self._run_lengths = [0] * len(ORDERS)
        self._recent_reads = []

    def _forget_order(self) -> None:
        """Forget an order; the same or another one can still be detected."""
        self._order = None
        self._is_assumed = self._accepts_hint = False
        self._next_rank, self._window, self._required_hits, self._order_errors = -1, 0, 0, 0

    # -- contents -----------------------------------------------------------------------------------------------------

    def plan_prefetch(self, rank: int) -> int:
        """Return how many contents may be prefetched with one that is fetched now.

        `rank` is that of the latter.
        """
        is_in_order = 0 <= rank - self._next_rank <= MAX_ORDER_GAP_KEYS
        self._next_rank = rank + 1
        self._order_errors = 0 if is_in_order else self._order_errors + 1
        if self._order_errors >= (MAX_HINT_ERRORS if self._is_assumed else MAX_ORDER_ERRORS):
            self._forget_order()
        elif is_in_order and self._required_hits:
            self._forget_order()  # prefetched contents were not used
            self._required_run *= RETRY_FACTOR
        if not is_in_order or not self.has_order:
            self._window = self._required_hits = 0
            return 0
        return min(max(self._window, INITIAL_PREFETCH_KEYS), MAX_PREFETCH_KEYS)

    def record_prefetch(self, count: int, last_rank: int) -> None:
        """Record that `count` contents are prefetched, up to `last_rank`."""
        self._window = max(0, self._window - count)
        self._required_hits = count // 2
        self._next_rank = last_rank + 1

    def record_hit(self) -> None:
        """Record that a prefetched content was requested."""
        self._window = min(self._window + WINDOW_GROWTH, 2 * MAX_PREFETCH_KEYS)
        self._required_hits = max(0, self._required_hits - 1)

    # -- extended metadata --------------------------------------------------------------------------------------------

    def plan_extended(self, rank: int) -> int:
        """Return of how many keys to fetch the extended metadata, from `rank` on.

        Twice as many as before while it is requested in order.
        """
        is_in_order = 0 <= rank - self._extended_end <= MAX_ORDER_GAP_KEYS
        self._extended_window = max(1, min(2 * self._extended_window, MAX_EXTENDED_KEYS) if is_in_order else 1)
        self._extended_end = min(rank + self._extended_window, len(self.table))
        return self._extended_window

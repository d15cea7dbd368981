"""Which contents come along when one is asked for.

A program that reads all files of a directory asks for one content after the other; a round trip for each would be most
of its time. So keys that were described together, as a listing does, stay together in a `Batch`. Once it shows in which
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

PATIENCE = 3  # contents of a batch that are asked for one by one before any comes along
TRIES = (PATIENCE, 2 * PATIENCE, 4 * PATIENCE)  # after how many the order is looked for
NEAR = 8  # keys that may lie between two that are read one after the other
FIRST = 8  # contents that come along at first
MOST = 64  # contents that come along at once
LONGEST = 16 << 10  # bytes of one
ROOM = 256 << 10  # bytes of all that come along at once
LOOKED_AT = 4 * MOST  # keys behind the one that is asked for, of which they are chosen

Order = Callable[[bytes], Any]  # what keys are sorted by


@dataclass(slots=True, eq=False)
class Batch:
    """Keys that were described together: in the order of their listing, until another one shows."""

    keys: Sequence[bytes]
    _asked: list[bytes] = field(default_factory=list)  # the last ones, until the order is known
    _count: int = 0
    _next: int = -1  # the place where the reader is expected; -1: the order is not known
    _credit: int = 0
    _unused: int = 0  # how many of those that came along last must be used yet, that is half of them

    @property
    def has_order(self) -> bool:
        """Whether it is known in which order they are read; `keys` is in that order then."""
        return self._next >= 0

    def find_order(self, key: bytes, other: Order) -> bool:
        """A content was asked for: is it known now? `other` is tried where nothing else fits."""
        self._asked = [*self._asked[1 - PATIENCE :], key]
        self._count += 1
        if self._count in TRIES:
            for order in self._orders(other):
                places = [order.index(each) for each in self._asked]
                if all(0 < after - before <= NEAR for before, after in pairwise(places)):
                    self.keys, self._next, self._asked = order, places[-1], []
                    return True
        if self._count >= TRIES[-1]:
            self.keys, self._asked = (), []  # there is none
        return False

    def _orders(self, other: Order) -> list[Sequence[bytes]]:
        orders = [self.keys, sorted(self.keys)]
        return orders if self._count == PATIENCE else [*orders, sorted(self.keys, key=other)]

    def asked(self, place: int) -> int:
        """The content at this place has to be fetched; how many more may come with it?"""
        reads_on = 0 <= place - self._next <= NEAR
        self._next = place + 1
        if reads_on and self._unused:
            self.keys = ()  # it is not read as it was thought to be
        if not reads_on or not self.keys:
            self._credit = 0
            return 0
        return min(max(self._credit, FIRST), MOST)

    def brought(self, contents: int, last: int) -> None:
        """So many come along, the last one from this place."""
        self._credit = max(0, self._credit - contents)
        self._unused = contents // 2
        self._next = last + 1

    def used(self) -> None:
        """One that came along was asked for."""
        self._credit = min(self._credit + 2, 2 * MOST)
        self._unused = max(0, self._unused - 1)

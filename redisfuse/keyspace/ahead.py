"""Which contents come along when one is asked for.

A program that reads all files of a directory (`grep -r`, `tar`, `rsync`) asks for one content after the other; a round
trip for each would be most of its time. So keys that were described together, as a listing does, stay together in a
`Batch`. When some of them were asked for one by one, the next come along with the one that is asked for: more each time
while those that came along are used, one at most while they are not. A key is read no more often for it.

Bookkeeping only, under the cache's lock.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PATIENCE = 2  # contents of a batch that are asked for one by one before any comes along
FIRST = 8  # contents that come along then
MOST = 64  # contents that come along at once
LONGEST = 16 << 10  # bytes of one
ROOM = 256 << 10  # bytes of all that come along at once
LOOKED_AT = 4 * MOST  # keys behind the one that is asked for, of which they are chosen


@dataclass(slots=True, eq=False)
class Batch:
    """Keys that were described together, in the order of their listing."""

    keys: Sequence[bytes]
    _asked: int = 0
    _credit: int = 0

    def asked(self) -> int:
        """A content was asked for that had not come along; how many more may come with it?"""
        self._asked += 1
        if self._asked <= PATIENCE:
            return 0
        self._credit += FIRST if self._asked == PATIENCE + 1 else 1
        return min(self._credit, MOST)

    def brought(self, contents: int) -> None:
        """So many come along."""
        self._credit -= contents

    def used(self) -> None:
        """One that came along was asked for."""
        self._credit = min(self._credit + 2, 2 * MOST)

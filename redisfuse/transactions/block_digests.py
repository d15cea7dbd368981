"""Digests of the parts of a large string that an edit depends on.

A string over 1 MiB is not read whole when it is opened. Its edit depends on what the program has read and on what it
overwrites or cuts off. These parts are remembered as digests of whole blocks, and compared when the edit is saved.
"""

import hashlib
from collections.abc import Iterable, Iterator

from redisfuse.config import CHUNK_BYTES

BLOCK_BYTES = 64 * 1024
"""Bytes of one block; the last one of a string may be shorter. A whole number of blocks makes one chunk."""


class BlockDigests:
    """The known blocks of a string of `size` bytes.

    The digests are those of the string as the edit began, or as this mount last saved it. Threads: `record` may be
    called from several at once; each access to the table is atomic.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.has_changed = False  # a block is known to differ, or is unknown and can't be read any more
        self._digests: dict[int, bytes] = {}  # SHA-256 by block number

    def bounds(self, number: int) -> tuple[int, int]:
        """Return where a block begins and ends."""
        return number * BLOCK_BYTES, min((number + 1) * BLOCK_BYTES, self.size)

    def numbers_in(self, start: int, end: int) -> range:
        """Return the numbers of the blocks that overlap a range of bytes."""
        end = min(end, self.size)
        return range(start // BLOCK_BYTES, (end + BLOCK_BYTES - 1) // BLOCK_BYTES) if start < end else range(0)

    def align(self, start: int, end: int) -> tuple[int, int]:
        """Return the smallest range of whole blocks that contains a range of bytes."""
        numbers = self.numbers_in(start, end)
        return (self.bounds(numbers[0])[0], self.bounds(numbers[-1])[1]) if numbers else (start, start)

    # -- recording ---------------------------------------------------------------------------------------------------

    def record(self, start: int, data: bytes) -> bool:
        """Record whole blocks that were read from the server.

        Returns False if one of them differs from what is known of it: another client has changed the string.
        """
        for number, digest in self._digest_blocks(start, [data]):
            if self._digests.setdefault(number, digest) != digest:
                self.has_changed = True
        return not self.has_changed

    def record_saved(self, number: int, data: bytes) -> None:
        """Record a block that this mount saves."""
        self._digests[number] = hashlib.sha256(data).digest()

    def copy_block(self, before: "BlockDigests", number: int) -> None:
        """Take over what is known of a block that a save leaves as it was."""
        digest = before._digests.get(number)
        if digest is not None:
            self._digests[number] = digest

    # -- queries -----------------------------------------------------------------------------------------------------

    def __contains__(self, number: int) -> bool:
        return number in self._digests

    @property
    def covers_everything(self) -> bool:
        """Whether every block is known."""
        return len(self._digests) == len(self.numbers_in(0, self.size))

    def known_ranges(self) -> list[tuple[int, int]]:
        """Return the bounds of the known blocks, merged up to a chunk."""
        return list(self._merge(sorted(self._digests)))

    def unknown_ranges(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the bounds of the unknown blocks of a range, merged up to a chunk."""
        return list(self._merge(number for number in self.numbers_in(start, end) if number not in self._digests))

    def match(self, start: int, chunks: Iterable[bytes]) -> bool:
        """Return whether the known blocks in these bytes are the same.

        The bytes begin at `start`, the beginning of a block.
        """
        return not self.has_changed and all(
            self._digests.get(number, digest) == digest for number, digest in self._digest_blocks(start, chunks)
        )

    def _digest_blocks(self, start: int, chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
        """Yield the numbers and digests of the blocks in contiguous bytes.

        The bytes begin at `start`, the beginning of a block.
        """
        pending = b""
        for chunk in chunks:
            pending = pending + chunk if pending else chunk
            view, position = memoryview(pending), 0
            while start < self.size:
                number = start // BLOCK_BYTES
                _, end = self.bounds(number)
                if len(view) - position < end - start:
                    break
                yield number, hashlib.sha256(view[position : position + end - start]).digest()
                position += end - start
                start = end
            pending = bytes(view[position:])

    def _merge(self, numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
        first: int | None = None
        end = 0
        for number in numbers:
            start, block_end = self.bounds(number)
            if first is not None and (start != end or block_end - first > CHUNK_BYTES):
                yield first, end
                first = None
            if first is None:
                first = start
            end = block_end
        if first is not None:
            yield first, end

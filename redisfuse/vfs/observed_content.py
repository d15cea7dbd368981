"""The base of an edit of a large string.

What is read of it is remembered, so that the save can be checked.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

from more_itertools import constrained_batches

from redisfuse.client.client import RedisClient
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import ConflictError, NotFoundError, UnavailableError, WrongTypeError
from redisfuse.transactions.block_digests import BLOCK_BYTES, BlockDigests
from redisfuse.transactions.precondition import UnchangedCheck
from redisfuse.vfs.content_types import RangedContent

MAX_OBSERVED_BYTES = 16 * CHUNK_BYTES
"""Bytes that are fetched in one pipeline. A string up to this is observed whole."""


class ObservedContent(RangedContent):
    """A string of any length, of which every block that is fetched is recorded.

    A block that is fetched again must be the same, so that a reader gets one version of each block.
    """

    def __init__(
        self, client: RedisClient, key: bytes, blocks: BlockDigests, is_unchanged: UnchangedCheck | None
    ) -> None:
        """Create the content of a string of `blocks.size` bytes.

        `is_unchanged`: whether the string is as it was when the edit began; None: changes are not announced.
        """
        super().__init__(client, key, blocks.size)
        self.blocks = blocks
        self._is_unchanged = is_unchanged

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes, as `RangedContent.read` does.

        The first read of a string of up to 16 MiB also observes the rest of it.
        """
        data = super().read(offset, size)
        if self.size <= MAX_OBSERVED_BYTES and not self.blocks.covers_everything:
            with suppress(UnavailableError):
                self._fetch_unknown(0, self.size)
        return data

    def is_observed(self, start: int, end: int) -> bool:
        """Return whether `observe` sends nothing."""
        return not self.blocks.unknown_ranges(start, end)

    def observe(self, start: int, end: int) -> None:
        """Record the blocks of a range that is about to be overwritten or cut off.

        If they are not known to be as they were when the edit began, the save is a conflict. Raises UnavailableError
        and the server's error replies.
        """
        if self.is_observed(start, end):
            return
        if self.size <= MAX_OBSERVED_BYTES:
            self._fetch_unknown(0, self.size)
        else:
            self._fetch_unknown(start, end)
        if self._is_unchanged is not None and not self._is_unchanged():
            self.blocks.has_changed = True

    def _fetch_unknown(self, start: int, end: int) -> None:
        """Record the unknown blocks of a range.

        If they can't be read any more, the string has changed.
        """
        try:
            if end - start <= CHUNK_BYTES:
                super().read(start, end - start)  # reads ahead of a program that overwrites from start to end
                return
            for batch in constrained_batches(
                self.blocks.unknown_ranges(start, end),
                MAX_OBSERVED_BYTES,
                MAX_OBSERVED_BYTES // BLOCK_BYTES,
                lambda bounds: bounds[1] - bounds[0],
                strict=False,
            ):
                self._fetch_ranges(list(batch))
        except (ConflictError, NotFoundError, WrongTypeError):
            self.blocks.has_changed = True

    def _fetch_ranges(self, byte_ranges: list[tuple[int, int]]) -> list[bytes]:
        """Fetch and record whole blocks; return the requested bytes."""
        aligned = [self.blocks.align(start, end) for start, end in byte_ranges]
        pieces = [_split_at_chunks(start, end) for start, end in aligned]
        fetched = iter(super()._fetch_ranges([piece for group in pieces for piece in group]))
        results: list[bytes] = []
        for (start, end), (first, _), group in zip(byte_ranges, aligned, pieces, strict=True):
            parts = [next(fetched) for _ in group]
            for (piece_start, _), data in zip(group, parts, strict=True):
                if not self.blocks.record(piece_start, data):
                    raise ConflictError(f"string {self._key!r} was changed since it was opened for writing")
            results.append(b"".join(parts)[start - first : end - first])
        return results


def _split_at_chunks(start: int, end: int) -> list[tuple[int, int]]:
    """Divide a range at the boundaries of chunks.

    No piece is longer than a chunk.
    """
    cuts = [start, *range((start // CHUNK_BYTES + 1) * CHUNK_BYTES, end, CHUNK_BYTES), end]
    return list(pairwise(cuts))

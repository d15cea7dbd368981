"""The bytes of one file that is being edited: what it was, and what was written over it. Knows no Redis.

A base of any length is read only where nothing was written over it, so that a patch to a large string never loads the
string. Written bytes are kept at their own offsets in memory, and in a sparse temporary file past `SPOOL_THRESHOLD_BYTES`.
Not thread-safe: the open file that owns a buffer holds its lock around every call.
"""

import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator

from redisfuse.batching import CHUNK_BYTES

SPOOL_THRESHOLD_BYTES = 4 * 1024 * 1024  # written bytes kept in memory before they move to a temporary file


class WriteBuffer:
    """`base_size` bytes that `read_base(offset, size)` gives, under the edits made since."""

    def __init__(self, base_size: int, read_base: Callable[[int, int], bytes]) -> None:
        self._base_size = base_size
        self._read_base = read_base
        self._base_end = base_size  # base bytes from here on are gone: a truncate went below them
        self._was_shortened = False  # whether it was ever made shorter
        self._range_starts: list[int] = []  # written ranges [start, end): sorted, disjoint, not touching
        self._range_ends: list[int] = []
        self._written_file = tempfile.SpooledTemporaryFile(max_size=SPOOL_THRESHOLD_BYTES)  # noqa: SIM115 - closed by close()
        self.size = base_size

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; short only at the end of the file."""
        end = min(offset + size, self.size)
        parts: list[bytes] = []
        while offset < end:
            piece = self._read_extent(offset, end)
            parts.append(piece)
            offset += len(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_extent(self, offset: int, end: int) -> bytes:
        """Bytes from `offset` up to the next place where their source changes, or `end`."""
        at = bisect_left(self._range_ends, offset + 1)  # the first range that ends after offset
        if at < len(self._range_starts):
            if self._range_starts[at] <= offset:
                self._written_file.seek(offset)
                return self._written_file.read(min(end, self._range_ends[at]) - offset)
            end = min(end, self._range_starts[at])
        if offset >= self._base_end:
            return bytes(min(end - offset, CHUNK_BYTES))
        return self._read_base(offset, min(end, self._base_end) - offset)

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` at `offset`; a gap before it reads as NULs."""
        if not data:
            return
        end = offset + len(data)
        if end > SPOOL_THRESHOLD_BYTES:
            self._written_file.rollover()  # before seeking: in memory the gap would be allocated
        self._written_file.seek(offset)
        self._written_file.write(data)
        first = bisect_left(self._range_ends, offset)  # the first range that touches or follows offset
        last = first
        start, stop = offset, end
        while last < len(self._range_starts) and self._range_starts[last] <= end:
            start, stop = min(start, self._range_starts[last]), max(stop, self._range_ends[last])
            last += 1
        self._range_starts[first:last] = [start]
        self._range_ends[first:last] = [stop]
        self.size = max(self.size, end)

    def truncate(self, size: int) -> None:
        """Make the file `size` bytes long: the rest is gone, or NULs are added."""
        if size < self.size:
            self._was_shortened = True
            self._base_end = min(self._base_end, size)
            keep = bisect_left(self._range_starts, size)
            del self._range_starts[keep:], self._range_ends[keep:]
            if keep and self._range_ends[keep - 1] > size:
                self._range_ends[keep - 1] = size
        self.size = size

    @property
    def is_modified(self) -> bool:
        """Whether anything was written or truncated."""
        return bool(self._range_starts) or self.size != self._base_size or self._base_end != self._base_size

    @property
    def has_base(self) -> bool:
        """Whether any of it may still have to be read from the base."""
        return self._base_end > 0

    def dirty_range(self) -> tuple[int, int] | None:
        """(offset, size) of the one range that holds all edits, if the rest of the base still stands; else None."""
        if self._base_end < self._base_size or not self.is_modified:
            return None
        starts, ends = list(self._range_starts), list(self._range_ends)
        if self.size > self._base_size:
            starts.append(self._base_size)
            ends.append(self.size)
        offset = min(starts)
        return offset, max(ends) - offset

    def written_ranges(self) -> list[tuple[int, int]]:
        """(offset, size) of what was written, in order; of what was only truncated or is NULs in a gap, nothing."""
        return [(start, end - start) for start, end in zip(self._range_starts, self._range_ends, strict=True)]

    def rebase(self, base_size: int, read_base: Callable[[int, int], bytes]) -> "WriteBuffer":
        """The same edits over another base, in which some of them may have been made already."""
        new = WriteBuffer(base_size, read_base)
        if self._was_shortened:  # bytes that an edit made and a later one took away may be in that base
            new.truncate(min(self._base_end, base_size))
        new.truncate(self.size)
        for offset, size in self.written_ranges():
            for chunk in self.iter_chunks(offset, size):
                new.write(offset, chunk)
                offset += len(chunk)
        return new

    def size_after_patch(self, end: int) -> int:
        """How long the base is with only what was written up to `end`, and what was truncated."""
        return min(self.size, max(self._base_size, end))

    def iter_chunks(self, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """The bytes of a range (default: all of them), in pieces of at most CHUNK_BYTES."""
        end = self.size if size is None else min(offset + size, self.size)
        while offset < end:
            piece = self.read(offset, min(CHUNK_BYTES, end - offset))
            yield piece
            offset += len(piece)

    def close(self) -> None:
        """Let the temporary file go."""
        self._written_file.close()

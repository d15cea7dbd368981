"""The bytes of one file that is being edited: its base and the edits over it.

It does not know Redis. A base of any length is read only where it was not overwritten, so that a patch to a large
string never loads the string. Written bytes are held at their own offsets: in memory, and in a sparse temporary file
past `SPOOL_THRESHOLD_BYTES`.

Threads: not thread-safe. The open file that owns a buffer holds its lock around every call.
"""

from __future__ import annotations

import io
from bisect import bisect_left
from collections.abc import Iterator
from typing import BinaryIO, Protocol, cast

from redisfuse.config import CHUNK_BYTES
from redisfuse.transactions.spool import open_spool_file

SPOOL_THRESHOLD_BYTES = 4 * 1024 * 1024  # written bytes held in memory before they move to a temporary file


class BaseContent(Protocol):
    """The bytes under the edits."""

    @property
    def size(self) -> int:
        """Length in bytes; read once, when the buffer is created."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes from `offset`, `size` of them or up to the end."""
        ...


class WriteBuffer:
    """A base content (None: empty) under the edits made since."""

    def __init__(self, base: BaseContent | None = None) -> None:
        self._base = base
        self._base_size = 0 if base is None else base.size
        self._base_end = self._base_size  # base bytes from here on are cut off: a truncate went below them
        self._was_shortened = False  # whether any truncate made the file shorter
        self._range_starts: list[int] = []  # written ranges [start, end): sorted, disjoint, not touching
        self._range_ends: list[int] = []
        self._written_file: BinaryIO = io.BytesIO()
        self._is_on_disk = False
        self.size = self._base_size

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`; fewer only at the end of the file."""
        end = min(offset + size, self.size)
        parts: list[bytes] = []
        while offset < end:
            part = self._read_extent(offset, end)
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_extent(self, offset: int, end: int) -> bytes:
        """Return the bytes from `offset` up to where their source changes, or `end`."""
        index = bisect_left(self._range_ends, offset + 1)  # the first range that ends after offset
        if index < len(self._range_starts):
            if self._range_starts[index] <= offset:
                self._written_file.seek(offset)
                return self._written_file.read(min(end, self._range_ends[index]) - offset)
            end = min(end, self._range_starts[index])
        if self._base is None or offset >= self._base_end:
            return bytes(min(end - offset, CHUNK_BYTES))
        return self._base.read(offset, min(end, self._base_end) - offset)

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`; a gap before it reads as NULs."""
        if not data:
            return
        end = offset + len(data)
        if end > SPOOL_THRESHOLD_BYTES and not self._is_on_disk:
            self._move_to_disk()  # before seeking: in memory the gap would be allocated
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

    def _move_to_disk(self) -> None:
        in_memory = cast(io.BytesIO, self._written_file)
        self._written_file = open_spool_file()
        self._written_file.write(in_memory.getbuffer())
        self._is_on_disk = True

    def truncate(self, size: int) -> None:
        """Make the file `size` bytes long: cut off the rest, or append NULs."""
        if size < self.size:
            self._was_shortened = True
            self._base_end = min(self._base_end, size)
            remaining = bisect_left(self._range_starts, size)
            del self._range_starts[remaining:], self._range_ends[remaining:]
            if remaining and self._range_ends[remaining - 1] > size:
                self._range_ends[remaining - 1] = size
        self.size = size

    @property
    def base(self) -> BaseContent | None:
        """The content under the edits."""
        return self._base

    def replace_base(self, base: BaseContent) -> None:
        """Read from another base.

        It has the same bytes as far as they are not cut off.
        """
        self._base = base

    def has_edits_in(self, start: int, end: int) -> bool:
        """Return whether any byte of a range was written, cut off or appended."""
        index = bisect_left(self._range_ends, start + 1)  # the first range that ends after start
        is_written = index < len(self._range_starts) and self._range_starts[index] < end
        return is_written or end > self._base_end

    def is_overwritten(self, start: int, end: int) -> bool:
        """Return whether no byte of a range is the base's."""
        end = min(end, self._base_end)
        index = bisect_left(self._range_ends, start + 1)
        if start >= end:
            return True
        return index < len(self._range_starts) and self._range_starts[index] <= start and self._range_ends[index] >= end

    @property
    def is_modified(self) -> bool:
        """Whether anything was written or truncated."""
        return bool(self._range_starts) or self.size != self._base_size or self._base_end != self._base_size

    @property
    def has_base(self) -> bool:
        """Whether some bytes may still have to be read from the base."""
        return self._base_end > 0

    @property
    def is_rewritten(self) -> bool:
        """Whether no byte of the base is left."""
        return self._base_end == 0 or (self._range_starts, self._range_ends) == ([0], [self.size])

    def dirty_range(self) -> tuple[int, int] | None:
        """Return (offset, size) of the range that holds all edits; None if there is none.

        There is none if nothing was modified, or if a truncate cut off a part of the base.
        """
        if self._base_end < self._base_size or not self.is_modified:
            return None
        starts, ends = list(self._range_starts), list(self._range_ends)
        if self.size > self._base_size:
            starts.append(self._base_size)
            ends.append(self.size)
        offset = min(starts)
        return offset, max(ends) - offset

    def written_ranges(self) -> list[tuple[int, int]]:
        """Return (offset, size) of each written range, in order.

        Truncates and the NULs in gaps are not in them.
        """
        return [(start, end - start) for start, end in zip(self._range_starts, self._range_ends, strict=True)]

    def rebase(self, base: BaseContent) -> WriteBuffer:
        """Return the same edits over another base, which may already have some."""
        rebased = WriteBuffer(base)
        if self._was_shortened:  # the base may have bytes that one edit wrote and a later one cut off
            rebased.truncate(min(self._base_end, base.size))
        rebased.truncate(self.size)
        for offset, size in self.written_ranges():
            rebased._copy_range(self, offset, size)
        return rebased

    def copy(self) -> WriteBuffer:
        """Return a buffer of the same bytes, without a base."""
        copy = WriteBuffer()
        copy._copy_range(self, 0, self.size)
        return copy

    def _copy_range(self, source: WriteBuffer, offset: int, size: int) -> None:
        for chunk in source.iter_chunks(offset, size):
            self.write(offset, chunk)
            offset += len(chunk)

    def size_after_patch(self, end: int) -> int:
        """Return the length of the base with only the writes up to `end`.

        Truncates count, too.
        """
        return min(self.size, max(self._base_size, end))

    def iter_chunks(self, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Yield a range (default: all bytes) in chunks of at most CHUNK_BYTES."""
        end = self.size if size is None else min(offset + size, self.size)
        while offset < end:
            chunk = self.read(offset, min(CHUNK_BYTES, end - offset))
            yield chunk
            offset += len(chunk)

    def close(self) -> None:
        """Delete the temporary file."""
        self._written_file.close()

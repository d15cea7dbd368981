"""Temporary files for what may exceed memory, and spools of encoded elements."""

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import BinaryIO, cast

from redisfuse.config import CHUNK_BYTES
from redisfuse.journal import portable
from redisfuse.journal.content import Blob
from redisfuse.journal.portable import ElementRecord

INITIAL_PAGE_ELEMENTS = 128  # elements; later pages are as long as 1 MiB allows
MAX_PAGE_ELEMENTS = 1000  # elements
SORT_RUN_BYTES = 8 * CHUNK_BYTES  # bytes of encoded elements that are sorted in memory


def open_spool_file() -> BinaryIO:
    """Open an unnamed temporary file, which is freed when its last user drops it."""
    return cast(BinaryIO, tempfile.TemporaryFile(prefix="redisfuse-"))


class RecordSpool:
    """Encoded elements of one collection, in memory while they are few.

    They stay in the order of arrival or, with `needs_sorting`, are sorted and deduplicated. `page_size` is the number
    of elements to request next.
    """

    def __init__(self, *, needs_sorting: bool) -> None:
        self.page_size = INITIAL_PAGE_ELEMENTS
        self._needs_sorting = needs_sorting
        self._buffered: list[bytes] = []
        self._buffered_bytes = 0
        self._runs: list[BinaryIO] = []

    def add_page(self, records: Iterable[ElementRecord]) -> None:
        """Add the elements of one page and size the next page."""
        count = size = 0
        for record in records:
            size += self._add(record)
            count += 1
        if count:
            self.page_size = max(1, min(MAX_PAGE_ELEMENTS, CHUNK_BYTES * count // max(size, 1)))

    def _add(self, record: ElementRecord) -> int:
        line = portable.encode_record(record)
        self._buffered.append(line)
        self._buffered_bytes += len(line)
        if self._buffered_bytes > SORT_RUN_BYTES:
            self._spill()
        return len(line)

    def _spill(self) -> None:
        if self._needs_sorting or not self._runs:
            self._runs.append(open_spool_file())
        self._runs[-1].writelines(sorted(self._buffered) if self._needs_sorting else self._buffered)
        self._buffered, self._buffered_bytes = [], 0

    def to_blob(self, header: bytes) -> Blob:
        """Return the header and all elements as one blob."""
        if not self._runs:
            lines = sorted(set(self._buffered)) if self._needs_sorting else self._buffered
            data = b"".join([header, *lines])
            if len(data) <= CHUNK_BYTES:
                return Blob.from_bytes(data)
        self._spill()
        for run in self._runs:
            run.seek(0)
        merged: Iterator[bytes] = heapq.merge(*self._runs)  # a single run keeps its order
        if self._needs_sorting:
            merged = (line for line, _ in groupby(merged))
        file = open_spool_file()
        file.write(header)
        file.writelines(merged)
        return Blob.from_file(file)

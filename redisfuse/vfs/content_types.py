"""The content of an open file, one class for each way to fetch it.

Inline, by ranges, spooled, streamed. Each class has `size` in bytes, `read(offset, size)` and `close()`, all safe from
any thread. A read past the end is empty. A read within the content returns all the bytes requested or raises: it is
never short because of a failure. The lock of a content is held while the server is queried, so two readers of one
content wait for each other.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from tempfile import TemporaryFile
from threading import Lock, Thread
from typing import BinaryIO, Protocol

from redisfuse.client.client import RedisClient
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import BadHandleError, ConflictError, RedisFuseError, ReplyTooLargeError
from redisfuse.rendering.strings import fetch_ranges


class FileContent(Protocol):
    """The content of an open file."""

    @property
    def size(self) -> int:
        """Its length in bytes."""

    @property
    def data(self) -> bytes | None:
        """All its bytes if they are in memory."""

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes from `offset`: `size` of them, or up to the end."""

    def close(self) -> None:
        """Free the memory and files that it holds."""


class InlineContent:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes from `offset`: `size` of them, or up to the end."""
        return self.data[offset : offset + size]

    def close(self) -> None:
        """Do nothing: the bytes are freed with the object."""


class RangedContent:
    """A string of any length, fetched in chunks of 1 MiB.

    At most 7 of them are in memory, including those in flight. For a sequential reader a thread fetches the next chunks
    while the reader consumes the last ones: one chunk more each time, up to three. A read elsewhere fetches the
    requested bytes only, until a second read is close to it.
    """

    data = None
    MAX_CACHED_CHUNKS = 4
    MAX_READ_AHEAD_CHUNKS = 3

    def __init__(self, client: RedisClient, key: bytes, length: int) -> None:
        self.size = length
        self._client = client
        self._key = key
        self._lock = Lock()  # guards all below; held while the server is queried
        self._chunks: OrderedDict[int, bytes] = OrderedDict()  # by number, least recently used first
        self._read_ahead: _ReadAhead | None = None
        self._read_ahead_window = 0  # chunks
        self._last_chunk = 0  # the number of the chunk in which the last read ended

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes. Raises WrongTypeError.

        Raises ConflictError if the string has another length now.
        """
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        with self._lock:
            first, last = offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES
            is_near = first in self._chunks or abs(first - self._last_chunk) <= 1
            is_sequential = last in (self._last_chunk, self._last_chunk + 1)
            self._last_chunk = last
            if last - first >= self.MAX_READ_AHEAD_CHUNKS or not is_near:
                self._read_ahead_window = 0
                starts = range(offset, end, CHUNK_BYTES)
                return b"".join(self._fetch_ranges([(start, min(start + CHUNK_BYTES, end)) for start in starts]))
            self._load_chunks(range(first, last + 1))
            if is_sequential:
                self._start_read_ahead(last + 1)
            chunks = [self._chunks[number] for number in range(first, last + 1)]
            joined = chunks[0] if first == last else b"".join(chunks)
            return joined[offset - first * CHUNK_BYTES : end - first * CHUNK_BYTES]

    def _load_chunks(self, chunk_numbers: range) -> None:
        """Put these chunks into the cache, and evict the oldest others."""
        if self._read_ahead is not None and any(
            number not in self._chunks and number in self._read_ahead.chunk_numbers for number in chunk_numbers
        ):
            read_ahead, self._read_ahead = self._read_ahead, None
            self._chunks.update(read_ahead.result())
        missing = [number for number in chunk_numbers if number not in self._chunks]
        if missing:
            self._chunks.update(zip(missing, self.fetch_chunks(missing), strict=True))
        for number in chunk_numbers:
            self._chunks.move_to_end(number)
        while len(self._chunks) > self.MAX_CACHED_CHUNKS:
            self._chunks.popitem(last=False)

    def _start_read_ahead(self, chunk_number: int) -> None:
        """Start fetching the chunks from `chunk_number` on.

        Chunks that are cached or in flight are skipped.
        """
        chunk_number += chunk_number in self._chunks
        is_in_flight = self._read_ahead is not None and chunk_number in self._read_ahead.chunk_numbers
        if chunk_number not in self._chunks and not is_in_flight and chunk_number * CHUNK_BYTES < self.size:
            self._read_ahead_window = min(self._read_ahead_window + 1, self.MAX_READ_AHEAD_CHUNKS)
            chunk_count = (self.size + CHUNK_BYTES - 1) // CHUNK_BYTES
            self._read_ahead = _ReadAhead(
                self, range(chunk_number, min(chunk_number + self._read_ahead_window, chunk_count))
            )

    def fetch_chunks(self, chunk_numbers: Iterable[int]) -> list[bytes]:
        """Fetch these chunks. Takes no lock."""
        return self._fetch_ranges(
            [(number * CHUNK_BYTES, min((number + 1) * CHUNK_BYTES, self.size)) for number in chunk_numbers]
        )

    def _fetch_ranges(self, byte_ranges: list[tuple[int, int]]) -> list[bytes]:
        return fetch_ranges(self._client, self._key, self.size, byte_ranges)

    def close(self) -> None:
        """Free the chunks."""
        with self._lock:
            self._chunks.clear()
            self._read_ahead = None


class _ReadAhead:
    """Chunks of a string that a thread is fetching."""

    def __init__(self, content: RangedContent, chunk_numbers: range) -> None:
        self.chunk_numbers = chunk_numbers
        self._content = content
        self._chunks: dict[int, bytes] = {}
        self._error: RedisFuseError | None = None
        self._thread = Thread(target=self._fetch_chunks, name="redisfuse-ahead", daemon=True)
        self._is_started = False
        with suppress(RuntimeError):  # no thread can be started: the reader fetches the chunks itself
            self._thread.start()
            self._is_started = True

    def _fetch_chunks(self) -> None:
        try:
            self._chunks = dict(zip(self.chunk_numbers, self._content.fetch_chunks(self.chunk_numbers), strict=True))
        except RedisFuseError as error:
            self._error = error

    def result(self) -> dict[int, bytes]:
        """Wait for the chunks.

        If they could not be fetched, raise the error or return none.

        An error that happened before the call is not raised: the caller fetches the chunks again.
        """
        is_recent = self._is_started and self._thread.is_alive()
        if self._is_started:
            self._thread.join()
        if is_recent and self._error is not None:
            raise self._error
        return self._chunks


class SpooledContent:
    """The value of a hash field, of which no command returns a part.

    It is fetched whole by the first read, straight into an unnamed temporary file (the only place where a value touches
    the disk outside the journal), so that memory doesn't grow with it. `length` is the reply of HSTRLEN at open.
    """

    data = None

    def __init__(self, client: RedisClient, key: bytes, field: bytes, length: int) -> None:
        self.size = length
        self._client = client
        self._key = key
        self._field = field
        self._lock = Lock()  # guards all below; held while the server is queried
        self._file: BinaryIO | None = None
        self._is_closed = False

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes. Raises NotFoundError, WrongTypeError.

        Raises ConflictError if the field has another length now.
        """
        with self._lock:
            if self._is_closed:
                raise BadHandleError("the file is closed")
            if self._file is None:
                self._file = self._fetch_to_file()
            return os.pread(self._file.fileno(), size, offset)

    def _fetch_to_file(self) -> BinaryIO:
        file = TemporaryFile()  # noqa: SIM115  # close() closes it
        try:
            try:
                length = self._client.download(file, b"HGET", self._key, self._field, max_bytes=self.size)
            except ReplyTooLargeError:
                length = -1
            file.flush()
            if length != self.size:
                raise ConflictError(f"field {self._field!r} of {self._key!r} was changed since it was opened")
        except BaseException:
            file.close()
            raise
        return file

    def close(self) -> None:
        """Remove the temporary file."""
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                self._file.close()
                self._file = None


class StreamedContent:
    """A text of unknown length: a large collection, or a view of any key.

    `size` is 0, as for the files in /proc: the file is read with direct I/O. Meant for sequential reading: the last MiB
    before the reader can be read again, but a read before that iterates over the text again, which may have changed
    since.
    """

    data = None

    def __init__(self, chunks: Iterable[bytes]) -> None:
        """`chunks` can be iterated over again and again.

        Each iteration renders the text again.
        """
        self.size = 0
        self._source = chunks
        self._lock = Lock()  # guards all below; held while the server is queried
        self._restart()

    def _restart(self) -> None:
        self._stream = iter(self._source)
        self._buffer: deque[tuple[int, bytes]] = deque()  # (offset, chunk)
        self._buffer_end = 0  # the offset of the next chunk
        self._error: Exception | None = None
        self._is_exhausted = False

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes; fewer than `size` only at the end.

        Raises the errors of rendering, each time again.
        """
        with self._lock:
            if offset < (self._buffer[0][0] if self._buffer else self._buffer_end):
                self._restart()
            while self._buffer_end < offset + size and not self._is_exhausted:
                self._buffer_next_chunk(offset)
            return b"".join(
                chunk[max(0, offset - start) : offset + size - start]
                for start, chunk in self._buffer
                if start < offset + size and start + len(chunk) > offset
            )

    def _buffer_next_chunk(self, offset: int) -> None:
        if self._error is not None:
            raise self._error
        try:
            chunk = next(self._stream, None)
        except Exception as error:  # a generator that has raised would seem to have ended at the next call
            self._error = error
            raise
        if chunk is None:
            self._is_exhausted = True
            return
        self._buffer.append((self._buffer_end, chunk))
        self._buffer_end += len(chunk)
        while len(self._buffer) > 1 and self._buffer[1][0] <= offset - CHUNK_BYTES:
            self._buffer.popleft()

    def close(self) -> None:
        """Free the buffered chunks."""
        with self._lock:
            self._buffer.clear()
            self._is_exhausted = True


def sha256_of_content(content: FileContent) -> bytes:
    """Return the SHA-256 of a whole content."""
    sha = hashlib.sha256()
    for chunk in iter_content_chunks(content):
        sha.update(chunk)
    return sha.digest()


def iter_content_chunks(content: FileContent) -> Iterator[bytes]:
    """Yield a whole content in chunks of at most CHUNK_BYTES."""
    for offset in range(0, content.size, CHUNK_BYTES):
        yield content.read(offset, CHUNK_BYTES)

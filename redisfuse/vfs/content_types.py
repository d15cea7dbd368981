"""What an open file reads from. Each class: `size` in bytes, `read(offset, size)`, `close()`; safe from any thread.

A read past the end is empty; a read within gives all the bytes asked for, or raises: never fewer because something
failed. The lock of a snapshot is held while the server is asked, so two readers of one handle wait for each other.
"""

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from tempfile import TemporaryFile
from threading import Lock, Thread
from typing import BinaryIO, Protocol

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import RedisClient
from redisfuse.errors import BadHandleError, ConflictError, RedisFuseError
from redisfuse.rendering.strings import fetch_ranges


class FileContent(Protocol):
    """The content of an open file."""

    @property
    def size(self) -> int:
        """Its length in bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from `offset`, `size` of them or up to the end."""

    def close(self) -> None:
        """Let go of what it holds."""


class InlineContent:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from `offset`, `size` of them or up to the end."""
        return self.data[offset : offset + size]

    def close(self) -> None:
        """Nothing to let go of."""


class RangedContent:
    """A string of any length, in pieces of 1 MiB; at most 7 of them in memory, those under way included.

    For a sequential reader the next pieces are fetched by a thread while it digests the last ones: one more each time,
    up to three. A read elsewhere fetches what was asked for and nothing else, until a second one comes close to it.
    """

    MAX_CACHED_CHUNKS = 4  # pieces
    MAX_READ_AHEAD_CHUNKS = 3  # pieces

    def __init__(self, client: RedisClient, key: bytes, length: int) -> None:
        self.size = length
        self._client = client
        self._key = key
        self._lock = Lock()
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self._read_ahead: _ReadAhead | None = None
        self._read_ahead_window = 0
        self._last_chunk = 0  # the piece in which the last read was

    def read(self, offset: int, size: int) -> bytes:
        """The bytes. Raises ConflictError if the string has another length now, WrongTypeError."""
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        with self._lock:
            first, last = offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES
            near = first in self._chunks or abs(first - self._last_chunk) <= 1
            onwards = last in (self._last_chunk, self._last_chunk + 1)
            self._last_chunk = last
            if last - first >= self.MAX_READ_AHEAD_CHUNKS or not near:
                self._read_ahead_window = 0
                starts = range(offset, end, CHUNK_BYTES)
                return b"".join(self._fetch_ranges([(start, min(start + CHUNK_BYTES, end)) for start in starts]))
            self._load_chunks(range(first, last + 1))
            if onwards:
                self._start_read_ahead(last + 1)
            pieces = [self._chunks[number] for number in range(first, last + 1)]
            whole = pieces[0] if first == last else b"".join(pieces)
            return whole[offset - first * CHUNK_BYTES : end - first * CHUNK_BYTES]

    def _load_chunks(self, chunk_numbers: range) -> None:
        """Have these pieces; the oldest others go."""
        if self._read_ahead is not None and any(
            n not in self._chunks and n in self._read_ahead.chunk_numbers for n in chunk_numbers
        ):
            coming, self._read_ahead = self._read_ahead, None
            self._chunks.update(coming.result())
        missing = [number for number in chunk_numbers if number not in self._chunks]
        if missing:
            self._chunks.update(zip(missing, self._fetch_ranges([self._chunk_range(n) for n in missing]), strict=True))
        for number in chunk_numbers:
            self._chunks.move_to_end(number)
        while len(self._chunks) > self.MAX_CACHED_CHUNKS:
            self._chunks.popitem(last=False)

    def _start_read_ahead(self, chunk_number: int) -> None:
        """Begin to fetch what follows, from piece `number` on, if that is soon needed and not under way."""
        chunk_number += chunk_number in self._chunks
        under_way = self._read_ahead is not None and chunk_number in self._read_ahead.chunk_numbers
        if chunk_number not in self._chunks and not under_way and chunk_number * CHUNK_BYTES < self.size:
            self._read_ahead_window = min(self._read_ahead_window + 1, self.MAX_READ_AHEAD_CHUNKS)
            numbers = range(
                chunk_number, min(chunk_number + self._read_ahead_window, (self.size + CHUNK_BYTES - 1) // CHUNK_BYTES)
            )
            self._read_ahead = _ReadAhead(numbers, lambda: self._fetch_ranges([self._chunk_range(n) for n in numbers]))

    def _chunk_range(self, chunk_number: int) -> tuple[int, int]:
        return chunk_number * CHUNK_BYTES, min((chunk_number + 1) * CHUNK_BYTES, self.size)

    def _fetch_ranges(self, byte_ranges: list[tuple[int, int]]) -> list[bytes]:
        return fetch_ranges(self._client, self._key, self.size, byte_ranges)

    def close(self) -> None:
        """Free the pieces."""
        with self._lock:
            self._chunks.clear()
            self._read_ahead = None


class _ReadAhead:
    """Pieces that a thread of its own is fetching."""

    def __init__(self, chunk_numbers: range, fetch: Callable[[], list[bytes]]) -> None:
        self.chunk_numbers = chunk_numbers
        self._chunks: dict[int, bytes] = {}
        self._error: RedisFuseError | None = None
        self._thread = Thread(target=self._fetch_chunks, args=[fetch], name="redisfuse-ahead", daemon=True)
        self._is_started = False
        with suppress(RuntimeError):  # no more threads: then nothing is ahead
            self._thread.start()
            self._is_started = True

    def _fetch_chunks(self, fetch: Callable[[], list[bytes]]) -> None:
        try:
            self._chunks = dict(zip(self.chunk_numbers, fetch(), strict=True))
        except RedisFuseError as error:
            self._error = error

    def result(self) -> dict[int, bytes]:
        """Wait for them. If they could not be fetched: the error where that is news, else none, to be asked again."""
        news = self._is_started and self._thread.is_alive()
        if self._is_started:
            self._thread.join()
        if news and self._error is not None:
            raise self._error
        return self._chunks


class SpooledContent:
    """The value of a hash's field, or any other reply that no command gives a part of.

    It is fetched whole at the first read, straight into a temporary file without a name (the one place where a value
    touches the disk outside the journal), so that memory does not grow with it. `length` is what HSTRLEN said at open.
    """

    def __init__(self, client: RedisClient, key: bytes, field: bytes, length: int) -> None:
        self.size = length
        self._client = client
        self._command = (b"HGET", key, field)
        self._lock = Lock()
        self._file: BinaryIO | None = None
        self._closed = False

    def read(self, offset: int, size: int) -> bytes:
        """The bytes. Raises NotFoundError, WrongTypeError; ConflictError if the field has another length now."""
        with self._lock:
            if self._closed:
                raise BadHandleError("the file is closed")
            if self._file is None:
                self._file = self._fetch_to_file()
            return os.pread(self._file.fileno(), size, offset)

    def _fetch_to_file(self) -> BinaryIO:
        file = TemporaryFile()  # noqa: SIM115  # it is kept until close()
        try:
            length = self._client.download(file, *self._command)
            file.flush()
            if length != self.size:
                raise ConflictError(
                    f"field {self._command[2]!r} of {self._command[1]!r} was changed since it was opened"
                )
        except BaseException:
            file.close()
            raise
        return file

    def close(self) -> None:
        """Remove the temporary file."""
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()
                self._file = None


class StreamedContent:
    """A text of unknown length that `begin()` gives in pieces: a large collection, or a view of any key.

    `size` is 0, as of the files in /proc: it is read with direct I/O. Meant for reading forwards; the last MiB behind
    the reader can be read again, anything before it begins the text anew (which may have changed by then).
    """

    def __init__(self, open_stream: Callable[[], Iterator[bytes]]) -> None:
        self.size = 0
        self._open_stream = open_stream
        self._lock = Lock()
        self._restart()

    def _restart(self) -> None:
        self._stream = self._open_stream()
        self._buffer: deque[tuple[int, bytes]] = deque()  # where a piece begins, and its bytes
        self._buffer_end = 0  # where the next piece begins
        self._error: Exception | None = None
        self._is_exhausted = False

    def read(self, offset: int, size: int) -> bytes:
        """The bytes; fewer than `size` only at the end. Raises what the rendering raises, and again if asked again."""
        with self._lock:
            if offset < (self._buffer[0][0] if self._buffer else self._buffer_end):
                self._restart()
            while self._buffer_end < offset + size and not self._is_exhausted:
                self._buffer_next_chunk(offset)
            found = []
            for start, piece in self._buffer:
                if start < offset + size and start + len(piece) > offset:
                    found.append(piece[max(0, offset - start) : offset + size - start])
            return b"".join(found)

    def _buffer_next_chunk(self, offset: int) -> None:
        if self._error is not None:
            raise self._error
        try:
            piece = next(self._stream, None)
        except Exception as error:  # a generator that raised would say next time that it is at its end
            self._error = error
            raise
        if piece is None:
            self._is_exhausted = True
            return
        self._buffer.append((self._buffer_end, piece))
        self._buffer_end += len(piece)
        while len(self._buffer) > 1 and self._buffer[1][0] <= offset - CHUNK_BYTES:
            self._buffer.popleft()

    def close(self) -> None:
        """Free the pieces."""
        with self._lock:
            self._buffer.clear()
            self._is_exhausted = True

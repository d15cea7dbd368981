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
from redisfuse.client.client import Server
from redisfuse.errors import BadHandleError, ConflictError, RedisFuseError
from redisfuse.rendering.strings import ranges


class Snapshot(Protocol):
    """The content of an open file."""

    @property
    def size(self) -> int:
        """Its length in bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from `offset`, `size` of them or up to the end."""

    def close(self) -> None:
        """Let go of what it holds."""


class SmallSnapshot:
    """Bytes in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from `offset`, `size` of them or up to the end."""
        return self.content[offset : offset + size]

    def close(self) -> None:
        """Nothing to let go of."""


class LargeString:
    """A string of any length, in pieces of 1 MiB; at most 7 of them in memory, those under way included.

    For a sequential reader the next pieces are fetched by a thread while it digests the last ones: one more each time,
    up to three. A read elsewhere fetches what was asked for and nothing else, until a second one comes close to it.
    """

    KEPT = 4  # pieces
    AHEAD = 3  # pieces

    def __init__(self, server: Server, key: bytes, length: int) -> None:
        self.size = length
        self._server = server
        self._key = key
        self._lock = Lock()
        self._pieces: OrderedDict[int, bytes] = OrderedDict()
        self._coming: _Coming | None = None
        self._ahead = 0
        self._touched = 0  # the piece in which the last read was

    def read(self, offset: int, size: int) -> bytes:
        """The bytes. Raises ConflictError if the string has another length now, WrongTypeError."""
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        with self._lock:
            first, last = offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES
            near = first in self._pieces or abs(first - self._touched) <= 1
            onwards = last in (self._touched, self._touched + 1)
            self._touched = last
            if last - first >= self.AHEAD or not near:
                self._ahead = 0
                starts = range(offset, end, CHUNK_BYTES)
                return b"".join(self._fetch([(start, min(start + CHUNK_BYTES, end)) for start in starts]))
            self._load(range(first, last + 1))
            if onwards:
                self._look_ahead(last + 1)
            pieces = [self._pieces[number] for number in range(first, last + 1)]
            whole = pieces[0] if first == last else b"".join(pieces)
            return whole[offset - first * CHUNK_BYTES : end - first * CHUNK_BYTES]

    def _load(self, wanted: range) -> None:
        """Have these pieces; the oldest others go."""
        if self._coming is not None and any(n not in self._pieces and n in self._coming.numbers for n in wanted):
            coming, self._coming = self._coming, None
            self._pieces.update(coming.result())
        missing = [number for number in wanted if number not in self._pieces]
        if missing:
            self._pieces.update(zip(missing, self._fetch([self._span(n) for n in missing]), strict=True))
        for number in wanted:
            self._pieces.move_to_end(number)
        while len(self._pieces) > self.KEPT:
            self._pieces.popitem(last=False)

    def _look_ahead(self, number: int) -> None:
        """Begin to fetch what follows, from piece `number` on, if that is soon needed and not under way."""
        number += number in self._pieces
        under_way = self._coming is not None and number in self._coming.numbers
        if number not in self._pieces and not under_way and number * CHUNK_BYTES < self.size:
            self._ahead = min(self._ahead + 1, self.AHEAD)
            numbers = range(number, min(number + self._ahead, (self.size + CHUNK_BYTES - 1) // CHUNK_BYTES))
            self._coming = _Coming(numbers, lambda: self._fetch([self._span(n) for n in numbers]))

    def _span(self, number: int) -> tuple[int, int]:
        return number * CHUNK_BYTES, min((number + 1) * CHUNK_BYTES, self.size)

    def _fetch(self, spans: list[tuple[int, int]]) -> list[bytes]:
        return ranges(self._server, self._key, self.size, spans)

    def close(self) -> None:
        """Free the pieces."""
        with self._lock:
            self._pieces.clear()
            self._coming = None


class _Coming:
    """Pieces that a thread of its own is fetching."""

    def __init__(self, numbers: range, fetch: Callable[[], list[bytes]]) -> None:
        self.numbers = numbers
        self._found: dict[int, bytes] = {}
        self._error: RedisFuseError | None = None
        self._thread = Thread(target=self._run, args=[fetch], name="redisfuse-ahead", daemon=True)
        self._started = False
        with suppress(RuntimeError):  # no more threads: then nothing is ahead
            self._thread.start()
            self._started = True

    def _run(self, fetch: Callable[[], list[bytes]]) -> None:
        try:
            self._found = dict(zip(self.numbers, fetch(), strict=True))
        except RedisFuseError as error:
            self._error = error

    def result(self) -> dict[int, bytes]:
        """Wait for them. If they could not be fetched: the error where that is news, else none, to be asked again."""
        news = self._started and self._thread.is_alive()
        if self._started:
            self._thread.join()
        if news and self._error is not None:
            raise self._error
        return self._found


class LargeField:
    """The value of a hash's field, or any other reply that no command gives a part of.

    It is fetched whole at the first read, straight into a temporary file without a name (the one place where a value
    touches the disk outside the journal), so that memory does not grow with it. `length` is what HSTRLEN said at open.
    """

    def __init__(self, server: Server, key: bytes, field: bytes, length: int) -> None:
        self.size = length
        self._server = server
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
                self._file = self._fetched()
            return os.pread(self._file.fileno(), size, offset)

    def _fetched(self) -> BinaryIO:
        file = TemporaryFile()  # noqa: SIM115  # it is kept until close()
        try:
            length = self._server.fetch_into(file, *self._command)
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


class StreamedRendering:
    """A text of unknown length that `begin()` gives in pieces: a large collection, or a view of any key.

    `size` is 0, as of the files in /proc: it is read with direct I/O. Meant for reading forwards; the last MiB behind
    the reader can be read again, anything before it begins the text anew (which may have changed by then).
    """

    def __init__(self, begin: Callable[[], Iterator[bytes]]) -> None:
        self.size = 0
        self._begin = begin
        self._lock = Lock()
        self._restart()

    def _restart(self) -> None:
        self._pieces = self._begin()
        self._window: deque[tuple[int, bytes]] = deque()  # where a piece begins, and its bytes
        self._end = 0  # where the next piece begins
        self._error: Exception | None = None
        self._finished = False

    def read(self, offset: int, size: int) -> bytes:
        """The bytes; fewer than `size` only at the end. Raises what the rendering raises, and again if asked again."""
        with self._lock:
            if offset < (self._window[0][0] if self._window else self._end):
                self._restart()
            while self._end < offset + size and not self._finished:
                self._advance(offset)
            found = []
            for start, piece in self._window:
                if start < offset + size and start + len(piece) > offset:
                    found.append(piece[max(0, offset - start) : offset + size - start])
            return b"".join(found)

    def _advance(self, offset: int) -> None:
        if self._error is not None:
            raise self._error
        try:
            piece = next(self._pieces, None)
        except Exception as error:  # a generator that raised would say next time that it is at its end
            self._error = error
            raise
        if piece is None:
            self._finished = True
            return
        self._window.append((self._end, piece))
        self._end += len(piece)
        while len(self._window) > 1 and self._window[1][0] <= offset - CHUNK_BYTES:
            self._window.popleft()

    def close(self) -> None:
        """Free the pieces."""
        with self._lock:
            self._window.clear()
            self._finished = True

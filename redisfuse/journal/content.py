"""Contents that may be too large for memory. Pure.

A *content* is bytes with their length and SHA-256 digest, read in chunks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import JournalError


class Blob:
    """A content that may be too large for memory.

    The digest is SHA-256, 32 bytes. Two contents are equal if their digests are. `iter_chunks()` can be called any
    number of times.
    """

    __slots__ = ("_source", "digest", "size")

    def __init__(self, size: int, digest: bytes, source: bytes | Callable[[], Iterator[bytes]]) -> None:
        self.size = size
        self.digest = digest
        self._source = source

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Blob:
        """Create the content of these bytes."""
        data = bytes(data)
        return cls(len(data), hashlib.sha256(data).digest(), data)

    @classmethod
    def from_file(cls, file: BinaryIO, offset: int = 0, size: int | None = None) -> Blob:
        """Create the content of `size` bytes of `file`, by default to its end.

        They begin at `offset`. Up to one chunk is copied into memory. A larger content is only digested now, in one
        pass: the file must stay open and unchanged while the content is in use, and reading it moves the file's
        position. Raises JournalError if the file is shorter than `offset + size`.
        """
        if size is None:
            size = file.seek(0, os.SEEK_END) - offset
        source = _FileRegion(file, offset, max(size, 0))
        if source.size <= CHUNK_BYTES:
            return cls.from_bytes(b"".join(source()))
        sha = hashlib.sha256()
        for chunk in source():
            sha.update(chunk)
        return cls(source.size, sha.digest(), source)

    @classmethod
    def from_chunks(cls, chunks: Iterator[bytes], spool: BinaryIO) -> Blob:
        """Create the content of these chunks, written to `spool`.

        `spool`: an empty file, open for reading and writing.
        """
        sha = hashlib.sha256()
        for chunk in chunks:
            spool.write(chunk)
            sha.update(chunk)
        spool.flush()
        size = spool.tell()
        return cls.from_file(spool) if size <= CHUNK_BYTES else cls(size, sha.digest(), _FileRegion(spool, 0, size))

    def iter_chunks(self) -> Iterator[bytes]:
        """Yield the bytes in order, in chunks of at most 1 MiB, none of them empty."""
        if isinstance(self._source, bytes):
            data = self._source
            if len(data) <= CHUNK_BYTES:
                if data:
                    yield data
                return
            for start in range(0, len(data), CHUNK_BYTES):
                yield data[start : start + CHUNK_BYTES]
        else:
            yield from self._source()

    def read(self) -> bytes:
        """Return all bytes, in memory."""
        return self._source if isinstance(self._source, bytes) else b"".join(self.iter_chunks())

    def read_prefix(self, max_bytes: int) -> bytes:
        """Return the first `max_bytes` bytes, without reading the rest.

        They are not verified: that needs all bytes.
        """
        prefix = bytearray()
        for chunk in self.iter_chunks():
            prefix += chunk[: max_bytes - len(prefix)]
            if len(prefix) >= max_bytes:
                break
        return bytes(prefix)

    def read_suffix(self, max_bytes: int) -> bytes:
        """Return the last `max_bytes` bytes, which takes reading all of them."""
        suffix = b""
        for chunk in self.iter_chunks():
            suffix = (suffix + chunk)[-max_bytes:]
        return suffix

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Blob):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<Blob of {self.size} bytes, {self.digest.hex()[:12]}>"


@dataclass(frozen=True, slots=True)
class _FileRegion:
    """A region of an open file, read in chunks."""

    file: BinaryIO
    offset: int
    size: int

    def __call__(self) -> Iterator[bytes]:
        position, remaining = self.offset, self.size
        while remaining:
            self.file.seek(position)
            chunk = self.file.read(min(CHUNK_BYTES, remaining))
            if not chunk:
                raise JournalError(
                    f"a file became shorter while it was being journaled ({remaining} bytes are missing)"
                )
            yield chunk
            position += len(chunk)
            remaining -= len(chunk)

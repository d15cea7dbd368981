"""FILE.part, to which an archive is written until it is complete.

A resumed dump keeps the records before the first torn line or, in a compressed file, the first torn frame.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from redisfuse.errors import ExistsError, InvalidArgumentError
from redisfuse.transactions.archive_compression import Compression, list_decompression_errors
from redisfuse.transactions.archive_record import ArchiveHeader, decode_key

_PIECE_BYTES = 1 << 16  # of a compressed file that are decompressed together
_BUCKET_BYTES = 2  # of a digest, which select its bucket
_DIGEST_BYTES = 16


class KeySet:
    """A set of keys that takes about 20 bytes for each: it has their digests."""

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(1 << (8 * _BUCKET_BYTES))]

    def add(self, key: bytes) -> None:
        """Add a key."""
        bucket, rest = self._locate(key)
        bucket += rest

    def __contains__(self, key: bytes) -> bool:
        """Return whether the key was added."""
        bucket, rest = self._locate(key)
        position = bucket.find(rest)
        while position % len(rest) and position >= 0:  # between two digests
            position = bucket.find(rest, position + 1)
        return position >= 0

    def _locate(self, key: bytes) -> tuple[bytearray, bytes]:
        digest = hashlib.blake2b(key, digest_size=_DIGEST_BYTES).digest()
        return self._buckets[int.from_bytes(digest[:_BUCKET_BYTES])], digest[_BUCKET_BYTES:]


@dataclass(slots=True)
class WholeRecords:
    """The records that a resumed dump keeps; `size` is their end in the file."""

    header: ArchiveHeader | None = None
    keys: KeySet = field(default_factory=KeySet)
    count: int = 0
    size: int = 0


def unfinished_path(path: Path) -> Path:
    """Return the path of the unfinished file."""
    return path.with_name(f"{path.name}.part")


def open_unfinished(path: Path, *, force: bool, resume: bool) -> BinaryIO:
    """Open the unfinished file of an archive for reading and writing, and lock it.

    Only this user can read it. Raises ExistsError if there is one, unless it shall be resumed or replaced; or if
    another dump is writing it. Raises OSError.
    """
    part = unfinished_path(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(part, flags if force or resume else flags | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ExistsError(
            f"{part} is of a dump that was interrupted; add --resume to finish it, or --force to begin again"
        ) from None
    file = os.fdopen(descriptor, "r+b", buffering=1 << 20)
    try:
        _lock(file, part)
        os.fchmod(descriptor, 0o600)
        if not resume:
            file.truncate(0)
    except BaseException:
        file.close()
        raise
    return file


def _lock(file: BinaryIO, part: Path) -> None:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
        raise ExistsError(f"{part} is not a file of this user; remove it, or give another name")
    with contextlib.suppress(FileNotFoundError):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(status, os.lstat(part)):  # the other dump has not finished meanwhile
                return
        except BlockingIOError:
            pass
    raise ExistsError(f"another dump is writing {part}")


def read_whole_records(file: BinaryIO, compression: Compression | None) -> WholeRecords:
    """Read an unfinished archive from its beginning to the first torn line or frame.

    Raises ExistsError if it is something else.
    """
    whole = WholeRecords()
    pending: list[bytes] = []  # keys of records after `size`
    is_continued = False  # whether the record continues on the next line
    for line in _iter_whole_lines(file, compression):
        if isinstance(line, int):
            if not is_continued:
                for name in pending:
                    whole.keys.add(name)
                whole.count += len(pending)
                whole.size, pending = line, []
            continue
        if whole.header is None:
            try:
                whole.header = ArchiveHeader.decode(line)
            except InvalidArgumentError:
                raise ExistsError(f"{file.name} is not an archive; remove it, or give another name") from None
            continue
        decoded = decode_key(line)
        if decoded is None:
            break
        key, has_more = decoded
        if not is_continued:
            if key is None:
                break
            pending.append(key)
        is_continued = has_more
    return whole


def _iter_whole_lines(file: BinaryIO, compression: Compression | None) -> Iterator[bytes | int]:
    """Yield the lines, and each position at which the file can be cut off."""
    if compression is None:
        position = 0
        for line in file:
            if not line.endswith(b"\n"):
                return
            position += len(line)
            yield line
            yield position
        return
    position, rest = 0, b""
    decompressor = compression.create_decompressor()
    while piece := file.read(_PIECE_BYTES):
        position += len(piece)
        while piece:
            try:
                *lines, rest = (rest + decompressor.decompress(piece)).split(b"\n")
            except list_decompression_errors():
                return
            yield from (line + b"\n" for line in lines)
            piece = b""
            if decompressor.eof:
                piece = decompressor.unused_data
                if not rest:
                    yield position - len(piece)
                decompressor = compression.create_decompressor()

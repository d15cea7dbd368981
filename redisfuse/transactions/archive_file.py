"""Archives of keys as files, on standard streams, and as directory trees.

A file whose name ends in .gz is compressed. A tree has one file for each key at the key's path, `user/1%.json`: no
directory of keys can have such a name. docs/archives.md has the format.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from redisfuse.errors import ExistsError, InvalidArgumentError, NotFoundError, UsageError
from redisfuse.paths.grammar import DIGEST_DIR, PATH_MAX, PathCodec, sha256_hex
from redisfuse.transactions.archive_record import ArchivedKey, ArchiveHeader, decode_records, encode_end, encode_record

STREAM_NAME = "-"
"""Standard output or input instead of a file."""

MAX_LINE_BYTES = 1 << 30  # bytes of a line that is read: those of one element of 512 MiB, in base64

_SUFFIX = b"%.json"
_HEADER_FILE = b"%archive.json"
_UNFINISHED_FILE = b"%unfinished"


class ArchiveWriter(ABC):
    """Writes an archive.

    After `finish` it is complete; without it, `discard` leaves nothing of a file.
    """

    def __init__(self) -> None:
        self.key_count = 0

    @abstractmethod
    def write(self, archived: ArchivedKey) -> None:
        """Add a key."""

    def has_key(self, key: bytes) -> bool:  # noqa: ARG002 - only a tree can be resumed
        """Return whether the archive has the key from a dump that was interrupted."""
        return False

    @abstractmethod
    def finish(self) -> None:
        """Write the end, and give the archive its name."""

    @abstractmethod
    def discard(self) -> None:
        """Close what is open, and remove an unfinished file."""


class FileArchiveWriter(ArchiveWriter):
    """Writes a file, which has its name once it is complete, or standard output."""

    def __init__(self, target: str, header: ArchiveHeader, *, force: bool) -> None:
        super().__init__()
        self._path = None if target == STREAM_NAME else Path(target)
        self._temporary: str | None = None
        self._raw: BinaryIO
        if self._path is None:
            self._raw = self._file = sys.stdout.buffer
        else:
            if self._path.exists() and not force:
                raise ExistsError(f"{target} exists; give another name, or --force to replace it")
            descriptor, self._temporary = tempfile.mkstemp(
                prefix=f".{self._path.name[:200]}.", suffix=".part", dir=self._path.parent
            )
            self._raw = os.fdopen(descriptor, "wb", buffering=1 << 20)
            is_compressed = self._path.suffix == ".gz"
            self._file = (
                cast(BinaryIO, gzip.GzipFile("", "wb", compresslevel=6, fileobj=self._raw, mtime=0))
                if is_compressed
                else self._raw
            )
        self._file.write(header.encode())

    def write(self, archived: ArchivedKey) -> None:
        """Add a key."""
        self._file.writelines(encode_record(archived))
        self.key_count += 1

    def finish(self) -> None:
        """Write the end, and give the file its name.

        By then it is on the disk. Only this user can read it.
        """
        self._file.write(encode_end(self.key_count))
        if self._path is None:
            self._file.flush()
            return
        if self._file is not self._raw:
            self._file.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())
        self._raw.close()
        assert self._temporary is not None
        os.rename(self._temporary, self._path)
        self._temporary = None

    def discard(self) -> None:
        """Remove the file unless it is complete."""
        if self._temporary is not None:
            self._raw.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)


class TreeArchiveWriter(ArchiveWriter):
    """Writes a tree of files into an empty directory, or an incomplete archive.

    A file has its name once it is complete, so that a resumed dump can keep it.
    """

    def __init__(self, target: str, header: ArchiveHeader, codec: PathCodec, *, resume: bool) -> None:
        super().__init__()
        self._root = os.fsencode(target)
        self._codec = codec
        self._directories: set[bytes] = set()
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        self._is_resumed = bool(os.listdir(self._root))
        if not self._is_resumed:
            self._write_file(_HEADER_FILE, [header.encode()])
        elif resume:
            self._check_incomplete(target, header)
        else:
            raise ExistsError(f"{target} is not empty; give a new directory, or --resume to finish a dump into it")

    def _check_incomplete(self, target: str, header: ArchiveHeader) -> None:
        """Raise ExistsError unless this is an incomplete archive of the same keys."""
        try:
            with open(os.path.join(self._root, _HEADER_FILE), "rb") as file:
                earlier, end = ArchiveHeader.decode(file.readline()), file.readline()
        except (FileNotFoundError, InvalidArgumentError):
            raise ExistsError(f"{target} is not empty, and not an archive; give a new directory") from None
        if end:
            raise ExistsError(f"{target} is a complete archive; give a new directory")
        if (earlier.server, earlier.prefix) != (header.server, header.prefix):
            raise ExistsError(f"{target} was begun with other keys, or by another server; give a new directory")

    def has_key(self, key: bytes) -> bool:
        """Return whether the earlier dump has written the key."""
        return self._is_resumed and os.path.exists(os.path.join(self._root, archive_path(self._codec, key)))

    def write(self, archived: ArchivedKey) -> None:
        """Write the file of a key."""
        self._write_file(archive_path(self._codec, archived.key), encode_record(archived))
        self.key_count += 1

    def finish(self) -> None:
        """Add the end to the file of the header."""
        total = self.key_count
        if self._is_resumed:
            total = sum(name.endswith(_SUFFIX) for _, _, files in os.walk(self._root) for name in files)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._root, _UNFINISHED_FILE))  # of an interrupted dump
        with open(os.path.join(self._root, _HEADER_FILE), "ab") as file:
            file.write(encode_end(total))

    def discard(self) -> None:
        """Do nothing: the files of the keys that were read stay, without an end."""

    def _write_file(self, path: bytes, lines: Iterator[bytes] | list[bytes]) -> None:
        directory = os.path.dirname(path)
        if directory not in self._directories:
            os.makedirs(os.path.join(self._root, directory), mode=0o700, exist_ok=True)
            if len(self._directories) < 100_000:
                self._directories.add(directory)
        unfinished = os.path.join(self._root, _UNFINISHED_FILE)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(lines)
        os.rename(unfinished, os.path.join(self._root, path))


def archive_path(codec: PathCodec, key: bytes) -> bytes:
    """Return the path of a key's file in a tree: that of a mount, and `%.json`."""
    *directory, leaf = codec.split_key(key)
    if not codec.key_needs_digest(key):
        path = codec.join_path(directory, codec.key_name(leaf, in_root=not directory) + _SUFFIX)
        if len(path) <= PATH_MAX:
            return path
    return DIGEST_DIR + b"/" + sha256_hex(key).encode() + _SUFFIX


def create_archive(
    target: str, header: ArchiveHeader, codec: PathCodec, *, force: bool, resume: bool = False
) -> ArchiveWriter:
    """Open an archive for writing.

    It is a tree if `target` ends in a slash or is a directory. Raises ExistsError, OSError, UsageError.
    """
    if target != STREAM_NAME and (target.endswith("/") or os.path.isdir(target)):
        return TreeArchiveWriter(target, header, codec, resume=resume)
    if resume:
        raise UsageError("--resume is for a directory, DIR/: an interrupted dump leaves nothing of a file")
    return FileArchiveWriter(target, header, force=force)


class ArchiveReader:
    """Reads an archive once, from its beginning to its end.

    `expected_keys`: the keys that the end states, once it was read; None: there is no end, the archive is incomplete.
    """

    def __init__(self, source: str) -> None:
        """Open an archive. Raises NotFoundError, InvalidArgumentError."""
        self._source = source
        self.key_count = 0
        self.expected_keys: int | None = None
        self._root = os.fsencode(source) if source != STREAM_NAME and os.path.isdir(source) else None
        self._raw: BinaryIO = self._open(source)
        self.total_bytes: int | None = None
        if source != STREAM_NAME and self._root is None:
            self.total_bytes = os.fstat(self._raw.fileno()).st_size
        # Compression is recognized by its magic number: a pipe has no name.
        is_compressed = self._raw.peek(2)[:2] == b"\x1f\x8b"  # type: ignore[attr-defined]  # a BufferedReader
        self._file = cast(BinaryIO, gzip.GzipFile(fileobj=self._raw)) if is_compressed else self._raw
        self._line_number = 0
        try:
            self.header = ArchiveHeader.decode(next(self._iter_lines(), (source, b""))[1])
        except InvalidArgumentError as error:
            self.close()
            raise InvalidArgumentError(f"{source}: {error}") from None

    def _open(self, source: str) -> BinaryIO:
        if source == STREAM_NAME:
            return sys.stdin.buffer
        path = source if self._root is None else os.path.join(self._root, _HEADER_FILE)
        try:
            return open(path, "rb", buffering=1 << 20)
        except FileNotFoundError:
            name = source if self._root is None else f"{source}/{os.fsdecode(_HEADER_FILE)}"
            raise NotFoundError(f"{name} does not exist, so there is no archive to read") from None

    @property
    def position(self) -> int:
        """The bytes of the file that were read."""
        return 0 if self.total_bytes is None else self._raw.tell()

    def __iter__(self) -> Iterator[ArchivedKey]:
        """Yield the keys. Raises InvalidArgumentError where the archive is damaged."""
        try:
            for record in decode_records(self._iter_lines()):
                if isinstance(record, int):
                    self.expected_keys = record
                else:
                    self.key_count += 1
                    yield record
            if self._root is not None:
                for record in self._iter_tree():
                    self.key_count += 1
                    yield record
        except (InvalidArgumentError, EOFError, gzip.BadGzipFile, OSError) as error:
            raise InvalidArgumentError(f"{self._source}: {error}") from None

    def _iter_lines(self) -> Iterator[tuple[str, bytes]]:
        while line := self._file.readline(MAX_LINE_BYTES):
            self._line_number += 1
            yield f"line {self._line_number}", line

    def _iter_tree(self) -> Iterator[ArchivedKey]:
        assert self._root is not None
        for directory, names, files in os.walk(self._root):
            names.sort()
            for name in sorted(files):
                if not name.endswith(_SUFFIX):
                    continue
                path = os.path.join(directory, name)
                place = os.fsdecode(os.path.relpath(path, self._root))
                with open(path, "rb") as file:
                    for record in decode_records((place, line) for line in file):
                        if isinstance(record, ArchivedKey):
                            yield record

    def close(self) -> None:
        """Close the file."""
        if self._raw is not sys.stdin.buffer:
            self._raw.close()

"""Archives of keys as files, on standard streams, and as directory trees.

A file whose name ends in .gz or .zst is compressed. A tree has one file for each key at the key's path,
`user/1%.json`: no directory of keys can have such a name. docs/archives.md has the format.
"""

from __future__ import annotations

import contextlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from redisfuse.errors import ExistsError, InvalidArgumentError, NotFoundError, UsageError
from redisfuse.paths.grammar import DIGEST_DIR, PATH_MAX, PathCodec, sha256_hex
from redisfuse.transactions.archive_compression import find_by_content, find_by_name, list_decompression_errors
from redisfuse.transactions.archive_record import ArchivedKey, ArchiveHeader, decode_records, encode_end, encode_record
from redisfuse.transactions.unfinished_archive import (
    WholeRecords,
    open_unfinished,
    read_whole_records,
    unfinished_path,
)

STREAM_NAME = "-"
"""Standard output or input instead of a file."""

FRAME_BYTES = 4 << 20
"""Of the text in a compressed frame, except for a longer record."""

MAX_LINE_BYTES = 1 << 30  # bytes of a line that is read: those of one element of 512 MiB, in base64

_SUFFIX = b"%.json"
_HEADER_FILE = b"%archive.json"
_UNFINISHED_FILE = b"%unfinished"


class ArchiveWriter(ABC):
    """Writes an archive.

    After `finish` it is complete. Without it, what was written stays after `close`, under `unfinished_name`, so that it
    can be resumed.
    """

    def __init__(self) -> None:
        self.key_count = 0  # written by this object
        self.unfinished_name = ""

    @abstractmethod
    def write(self, archived: ArchivedKey) -> None:
        """Add a key."""

    def has_key(self, key: bytes) -> bool:  # noqa: ARG002 - a stream can't be resumed
        """Return whether the archive has the key from a dump that was interrupted."""
        return False

    @abstractmethod
    def finish(self) -> None:
        """Write the end, and give the archive its name."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open."""


class StreamArchiveWriter(ArchiveWriter):
    """Writes standard output."""

    def __init__(self, header: ArchiveHeader) -> None:
        super().__init__()
        self._file = sys.stdout.buffer
        self._file.write(header.encode())

    def write(self, archived: ArchivedKey) -> None:
        """Add a key."""
        self._file.writelines(encode_record(archived))
        self.key_count += 1

    def finish(self) -> None:
        """Write the end."""
        self._file.write(encode_end(self.key_count))
        self._file.flush()

    def close(self) -> None:
        """Do nothing: the caller of the program closes its standard output."""


class FileArchiveWriter(ArchiveWriter):
    """Writes a file at its `unfinished_path`, until it is complete."""

    def __init__(self, target: str, header: ArchiveHeader, *, force: bool, resume: bool) -> None:
        super().__init__()
        self._path = Path(target)
        if self._path.exists() and not force:
            raise ExistsError(f"{target} exists; give another name, or --force to replace it")
        compression = find_by_name(self._path.name)
        self._compressor = None if compression is None else compression.create_compressor()
        self._frame_bytes = 0  # before compression
        self._is_torn = False  # whether a part of a record was written
        self._file = open_unfinished(self._path, force=force, resume=resume)
        try:
            self._whole = read_whole_records(self._file, compression) if resume else WholeRecords()
            if self._whole.header is not None:
                _check_origin(target, self._whole.header, header)
            self._file.truncate(self._whole.size)
            self._file.seek(self._whole.size)
        except BaseException:
            self._file.close()
            raise
        if not self._whole.size:
            self._write_line(header.encode())

    def has_key(self, key: bytes) -> bool:
        """Return whether the earlier dump has written the key."""
        return self._whole.count > 0 and key in self._whole.keys

    def write(self, archived: ArchivedKey) -> None:
        """Add a key."""
        self._is_torn = True
        for line in encode_record(archived):
            self._write_line(line)
        self._is_torn = False
        self.key_count += 1
        if self._frame_bytes >= FRAME_BYTES:
            self._end_frame()

    def finish(self) -> None:
        """Write the end, and give the file its name.

        By then it is on the disk.
        """
        self._write_line(encode_end(self._whole.count + self.key_count))
        self._end_frame()
        self._file.flush()
        os.fsync(self._file.fileno())
        os.rename(unfinished_path(self._path), self._path)
        self._file.close()

    def close(self) -> None:
        """Close the file; one without keys is removed."""
        if self._file.closed:
            return
        part = unfinished_path(self._path)
        if self._whole.count + self.key_count:
            self.unfinished_name = str(part)
        else:
            part.unlink()
        with contextlib.suppress(OSError):  # a disk that is full; resuming keeps what is there
            if not self._is_torn:
                self._end_frame()
            self._file.close()

    def _write_line(self, line: bytes) -> None:
        self._frame_bytes += len(line)
        self._file.write(line if self._compressor is None else self._compressor.compress(line))

    def _end_frame(self) -> None:
        if self._compressor is not None and self._frame_bytes:
            self._file.write(self._compressor.end_frame())
        self._frame_bytes = 0


class TreeArchiveWriter(ArchiveWriter):
    """Writes a tree of files into an empty directory, or an incomplete archive.

    A file has its name once it is complete, so that a resumed dump can keep it.
    """

    def __init__(self, target: str, header: ArchiveHeader, codec: PathCodec, *, resume: bool) -> None:
        super().__init__()
        self.unfinished_name = target
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
        _check_origin(target, earlier, header)

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
        self.unfinished_name = ""

    def close(self) -> None:
        """Do nothing: the files of the keys that were read stay."""

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


def _check_origin(target: str, earlier: ArchiveHeader, header: ArchiveHeader) -> None:
    """Raise ExistsError if an interrupted dump was of other keys."""
    if (earlier.server, earlier.prefix) != (header.server, header.prefix):
        raise ExistsError(f"the dump to {target} was begun with other keys, or by another server; give a new name")


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
    if target != STREAM_NAME:
        return FileArchiveWriter(target, header, force=force, resume=resume)
    if resume:
        raise UsageError("--resume needs a file or a directory, in which the interrupted dump has left its keys")
    return StreamArchiveWriter(header)


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
        compression = find_by_content(self._raw.peek(4))  # type: ignore[attr-defined]  # a BufferedReader
        self._file = self._raw if compression is None else compression.open_file(self._raw)
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
        errors: tuple[type[Exception], ...] = (InvalidArgumentError, OSError, *list_decompression_errors())
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
        except errors as error:
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

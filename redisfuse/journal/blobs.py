"""Contents in the journal: one copy of equal bytes, in chunks of at most 1 MiB.

A large content is *staged* before the change that uses it: its chunks are written in transactions of their own, without
a digest, so that it needs little memory and delays no other writer. The transaction with the change then sets the
digest. `prune` removes a content that was staged and never used, which a crash leaves.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from more_itertools import chunked

from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import JournalError
from redisfuse.journal.content import Blob
from redisfuse.journal.models import ChangeIntent
from redisfuse.journal.reader import JournalReader
from redisfuse.journal.writer import JournalWriter

MIN_COMPRESSED_BYTES = 128  # shorter chunks are never compressed
COMPRESSION_SAMPLE_BYTES = 2048  # of a longer chunk, twice: they show whether compression helps
LOOKED_UP_BYTES = 8192  # a longer content is compressed only if the journal doesn't contain it yet
CHUNKS_PER_TRANSACTION = 4  # chunks staged in one transaction


@dataclass(frozen=True, slots=True)
class PreparedBlob:
    """A content ready for the writer's thread: compressed or, if large, staged."""

    blob: Blob
    is_new: bool  # probably not in the journal yet
    compressed: int = 0
    data: bytes | None = None  # of a small one
    staged_id: int | None = None  # blobs.id of a large one


class BlobPrunedError(Exception):
    """A content was pruned after it was prepared, so it must be staged."""


@contextmanager
def prepared_blobs(
    writer: JournalWriter, reader: JournalReader, intents: Sequence[ChangeIntent], *, force_stage: bool
) -> Iterator[list[PreparedBlob]]:
    """Prepare the contents of intents for the body, which inserts them.

    `force_stage`: stage large contents even if the journal contains them already. What was staged is discarded if the
    body fails.
    """
    prepared: list[PreparedBlob] = []
    try:
        for content, is_new in _collect_blobs(intents).values():
            prepared.append(_prepare_blob(writer, reader, content, is_new=is_new, force_stage=force_stage))
        yield prepared
    except BaseException:
        for each in prepared:
            if each.staged_id is not None:
                with suppress(JournalError):
                    _enqueue_discard(writer, each.staged_id)
        raise


def _collect_blobs(intents: Sequence[ChangeIntent]) -> dict[bytes, tuple[Blob, bool]]:
    """Return each content of the intents once, by digest, and whether it is new.

    A prior content is not: it is often the new content of an earlier change.
    """
    contents: dict[bytes, tuple[Blob, bool]] = {}
    for intent in intents:
        for state in (intent.prior, intent.new):
            for content in (state.content, state.portable_copy):
                if content is not None:
                    contents.setdefault(content.digest, (content, state is intent.new))
    return contents


def _prepare_blob(
    writer: JournalWriter, reader: JournalReader, blob: Blob, *, is_new: bool, force_stage: bool
) -> PreparedBlob:
    """Do all the work on a content that needs no transaction, or can have its own."""
    if blob.size > LOOKED_UP_BYTES and not force_stage and reader.query(_SELECT_BLOB_BY_DIGEST, (blob.digest,)):
        return PreparedBlob(blob, False)
    if blob.size <= CHUNK_BYTES:
        return PreparedBlob(blob, is_new, *_compress(blob.read()))
    return PreparedBlob(blob, False, staged_id=_stage_blob(writer, blob))


_SELECT_BLOB_BY_DIGEST = "SELECT id FROM blobs WHERE digest = ?"
_INSERT_BLOB = "INSERT OR IGNORE INTO blobs (digest, size, packed, data) VALUES (?, ?, ?, ?)"


def insert_blob(connection: sqlite3.Connection, prepared: PreparedBlob) -> int:
    """Insert a content in the open transaction if it is new; return its blobs.id.

    Raises BlobPrunedError.
    """
    content = prepared.blob
    row = (content.digest, content.size, prepared.compressed, prepared.data)
    if prepared.is_new and prepared.data is not None:
        inserted = connection.execute(_INSERT_BLOB, row)
        if inserted.rowcount:
            assert inserted.lastrowid is not None
            return inserted.lastrowid
    existing = connection.execute(_SELECT_BLOB_BY_DIGEST, (content.digest,)).fetchone()
    if existing:
        if prepared.staged_id is not None:
            for sql in DELETE_BLOB_SQL:
                connection.execute(sql, (prepared.staged_id,))
        return int(existing[0])
    if prepared.staged_id is not None:
        updated = connection.execute(
            "UPDATE blobs SET digest = ?, staged_at = NULL WHERE id = ?", (content.digest, prepared.staged_id)
        )
        if not updated.rowcount:
            raise BlobPrunedError
        return prepared.staged_id
    if prepared.data is None:
        raise BlobPrunedError
    inserted = connection.execute(_INSERT_BLOB, row)
    assert inserted.lastrowid is not None
    return inserted.lastrowid


DELETE_BLOB_SQL = ("DELETE FROM chunks WHERE blob = ?", "DELETE FROM blobs WHERE id = ?")
"""Statements that delete a blob and its chunks; each takes the blob's id."""


def _enqueue_discard(writer: JournalWriter, blob_id: int) -> None:
    """Enqueue the deletion of a staged content that is not needed."""
    for sql in DELETE_BLOB_SQL:
        writer.enqueue(sql, (blob_id,))


def _stage_blob(writer: JournalWriter, content: Blob) -> int:
    """Write a large content, without its digest, and return its blobs.id."""

    def insert_staged(connection: sqlite3.Connection) -> int:
        inserted = connection.execute(
            "INSERT INTO blobs (size, staged_at) VALUES (?, ?)", (content.size, time.time_ns() // 1_000_000)
        )
        assert inserted.lastrowid is not None
        return inserted.lastrowid

    blob_id = writer.submit(insert_staged, durable=False)
    try:
        sha = hashlib.sha256()
        number = 0
        for batch in chunked(content.iter_chunks(), CHUNKS_PER_TRANSACTION):
            rows = []
            for data in batch:
                sha.update(data)
                rows.append((blob_id, number, *_compress(data)))
                number += 1
            writer.submit(lambda connection, rows=rows: _insert_chunks(connection, rows), durable=False)  # type: ignore[misc]
        if sha.digest() != content.digest:
            raise JournalError("a file was altered while it was being journaled; save it again")
    except BaseException:
        _enqueue_discard(writer, blob_id)
        raise
    return blob_id


def _insert_chunks(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    connection.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?)", rows)


def _compress(data: bytes) -> tuple[int, bytes]:
    """Return (1, compressed data) if that saves at least a tenth, else (0, data)."""
    if len(data) >= MIN_COMPRESSED_BYTES:
        if len(data) > 4 * COMPRESSION_SAMPLE_BYTES:
            middle = len(data) // 2
            sample = data[:COMPRESSION_SAMPLE_BYTES] + data[middle : middle + COMPRESSION_SAMPLE_BYTES]
            if not _is_worthwhile(zlib.compress(sample, 1), sample):
                return 0, data
        compressed = zlib.compress(data, 1)
        if _is_worthwhile(compressed, data):
            return 1, compressed
    return 0, data


def _is_worthwhile(compressed: bytes, data: bytes) -> bool:
    return len(compressed) < len(data) * 9 // 10


# -- reading ---------------------------------------------------------------------------------------------------------


_SELECT_CHUNK = "SELECT packed, data FROM chunks WHERE blob = ? AND number = ?"
_SELECT_SMALL_BLOB = "SELECT packed, data FROM blobs WHERE id = ? AND 0 = ?"


def open_blob(reader: JournalReader, blob_id: int, size: int, digest: bytes) -> Blob:
    """Return the content of a blob. Its bytes are read when they are used."""
    return Blob(size, digest, lambda: read_chunks(reader, blob_id, size, digest))


def read_chunks(reader: JournalReader, blob_id: int, size: int, digest: bytes) -> Iterator[bytes]:
    """Yield the chunks of a blob, the last one only once the digest is verified.

    Raises JournalError if the digest differs. A caller that passes the chunks on must not complete then.
    """
    sha = hashlib.sha256()
    bytes_read = 0
    previous = b""
    number = 0
    while bytes_read < size:
        rows = reader.query(_SELECT_CHUNK if size > CHUNK_BYTES else _SELECT_SMALL_BLOB, (blob_id, number))
        if not rows or rows[0][1] is None:
            break
        if previous:
            yield previous
        previous = _decompress(*rows[0])
        sha.update(previous)
        bytes_read += len(previous)
        number += 1
    if bytes_read != size or sha.digest() != digest:
        raise JournalError(
            f"content {digest.hex()[:12]} in the journal is damaged: its bytes do not match its SHA-256 digest; "
            f"restore the journal from a backup"
        )
    if previous:
        yield previous


def _decompress(compressed: int, data: bytes) -> bytes:
    """Return the bytes of a chunk.

    Data that zlib can't decompress yields none, and the digest of the content then differs.
    """
    if not compressed:
        return data
    try:
        return zlib.decompressobj().decompress(data, CHUNK_BYTES + 1)
    except zlib.error:
        return b""

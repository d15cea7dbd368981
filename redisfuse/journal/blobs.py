"""Contents in the journal: one copy of the same bytes however often they appear, in chunks of at most 1 MiB.

A large content is written ahead in transactions of its own (`stage`), without a digest yet, so that it needs little
memory and holds up nobody; the transaction with the change then gives it its digest. What was staged and never used
(a crash) is removed by prune.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from redisfuse.batching import CHUNK_BYTES, batched
from redisfuse.errors import JournalError
from redisfuse.journal.models import Blob
from redisfuse.journal.writer import JournalWriter

MIN_COMPRESSED_BYTES = 128  # bytes: shorter chunks are never compressed
COMPRESSION_SAMPLE_BYTES = 16384  # bytes of a chunk that show whether compressing it helps
CHUNKS_PER_TRANSACTION = 4  # chunks staged in one transaction

QueryFunction = Callable[[str, tuple[Any, ...]], list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class PreparedBlob:
    """A content made ready outside the writer's thread: packed if small, staged if large."""

    blob: Blob
    is_new: bool  # probably not in the journal yet
    compressed: int = 0
    data: bytes | None = None  # of a small one
    staged_id: int | None = None  # blobs.id of a large one


class BlobPrunedError(Exception):
    """A large content that was in the journal when it was made ready is there no more (pruned): stage it."""


def prepare_blob(
    writer: JournalWriter, query: QueryFunction, blob: Blob, *, is_new: bool, force_stage: bool = False
) -> PreparedBlob:
    """Do all the work on a content that needs no transaction, or that can have one of its own."""
    if blob.size <= CHUNK_BYTES:
        return PreparedBlob(blob, is_new, *_compress(blob.read()))
    if not force_stage and query("SELECT 1 FROM blobs WHERE digest = ?", (blob.digest,)):
        return PreparedBlob(blob, False)
    return PreparedBlob(blob, False, staged_id=_stage_blob(writer, blob))


_SELECT_BLOB_BY_DIGEST = "SELECT id FROM blobs WHERE digest = ?"
_INSERT_BLOB = "INSERT OR IGNORE INTO blobs (digest, size, packed, data) VALUES (?, ?, ?, ?)"


def insert_blob(connection: sqlite3.Connection, prepared: PreparedBlob) -> int:
    """Put a content into the open transaction (or find that it is there) and return its blobs.id.

    Raises VanishedError.
    """
    content = prepared.blob
    row = (content.digest, content.size, prepared.compressed, prepared.data)
    if prepared.is_new and prepared.data is not None:
        added = connection.execute(_INSERT_BLOB, row)
        if added.rowcount:
            assert added.lastrowid is not None
            return added.lastrowid
    found = connection.execute(_SELECT_BLOB_BY_DIGEST, (content.digest,)).fetchone()
    if found:
        if prepared.staged_id is not None:
            for sql in DELETE_BLOB_SQL:
                connection.execute(sql, (prepared.staged_id,))
        return int(found[0])
    if prepared.staged_id is not None:
        changed = connection.execute(
            "UPDATE blobs SET digest = ?, staged_at = NULL WHERE id = ?", (content.digest, prepared.staged_id)
        )
        if not changed.rowcount:
            raise BlobPrunedError
        return prepared.staged_id
    if prepared.data is None:
        raise BlobPrunedError
    added = connection.execute(_INSERT_BLOB, row)
    assert added.lastrowid is not None
    return added.lastrowid


# Remove a blob with its chunks: each with its id.
DELETE_BLOB_SQL = ("DELETE FROM chunks WHERE blob = ?", "DELETE FROM blobs WHERE id = ?")


def enqueue_discard(writer: JournalWriter, blob_id: int) -> None:
    """Remove what was staged and is not needed, when it suits."""
    for sql in DELETE_BLOB_SQL:
        writer.enqueue(sql, (blob_id,))


def _stage_blob(writer: JournalWriter, content: Blob) -> int:
    def insert_staged(connection: sqlite3.Connection) -> int:
        row = connection.execute(
            "INSERT INTO blobs (size, staged_at) VALUES (?, ?)", (content.size, time.time_ns() // 1_000_000)
        )
        assert row.lastrowid is not None
        return row.lastrowid

    blob = writer.submit(insert_staged, durable=False)
    try:
        sha = hashlib.sha256()
        number = 0
        for batch in batched(content.iter_chunks(), CHUNKS_PER_TRANSACTION):
            rows = []
            for data in batch:
                sha.update(data)
                rows.append((blob, number, *_compress(data)))
                number += 1
            writer.submit(lambda connection, rows=rows: _insert_chunks(connection, rows), durable=False)  # type: ignore[misc]
        if sha.digest() != content.digest:
            raise JournalError("a file was altered while it was being journaled")
    except BaseException:
        enqueue_discard(writer, blob)
        raise
    return blob


def _insert_chunks(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    connection.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?)", rows)


def _compress(data: bytes) -> tuple[int, bytes]:
    """(1, compressed) if that saves at least a tenth, else (0, data)."""
    if len(data) >= MIN_COMPRESSED_BYTES:
        if (
            len(data) > 4 * COMPRESSION_SAMPLE_BYTES
            and len(zlib.compress(data[:COMPRESSION_SAMPLE_BYTES], 1)) > COMPRESSION_SAMPLE_BYTES * 9 // 10
        ):
            return 0, data
        packed = zlib.compress(data, 1)
        if len(packed) < len(data) * 9 // 10:
            return 1, packed
    return 0, data


# -- reading ---------------------------------------------------------------------------------------------------------


_SELECT_CHUNK = "SELECT packed, data FROM chunks WHERE blob = ? AND number = ?"
_SELECT_SMALL_BLOB = "SELECT packed, data FROM blobs WHERE id = ? AND 0 = ?"


def open_blob(query: QueryFunction, blob_id: int, size: int, digest: bytes) -> Blob:
    """The content of a blob, read when it is asked for."""
    return Blob(size, digest, lambda: read_chunks(query, blob_id, size, digest))


def read_chunks(query: QueryFunction, blob_id: int, size: int, digest: bytes) -> Iterator[bytes]:
    """The chunks of a blob. The last is only given once the digest of them all is right.

    Raises JournalError if it is not: whoever passes the chunks on must then not finish.
    """
    sha = hashlib.sha256()
    found = 0
    held = b""
    number = 0
    while found < size:
        rows = query(_SELECT_CHUNK if size > CHUNK_BYTES else _SELECT_SMALL_BLOB, (blob_id, number))
        if not rows or rows[0][1] is None:
            break
        if held:
            yield held
        held = _decompress(*rows[0])
        sha.update(held)
        found += len(held)
        number += 1
    if found != size or sha.digest() != digest:
        raise JournalError(
            f"content {digest.hex()[:12]} in the journal is damaged: its bytes do not fit its digest (journal check)"
        )
    if held:
        yield held


def _decompress(compressed: int, data: bytes) -> bytes:
    if not compressed:
        return data
    unpacker = zlib.decompressobj()
    try:
        return unpacker.decompress(data, CHUNK_BYTES + 1)
    except zlib.error:
        return b""  # the digest will say it

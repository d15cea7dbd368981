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
from redisfuse.journal.models import Content
from redisfuse.journal.writer import Writer

WORTH = 128  # bytes: shorter chunks are never compressed
SAMPLE = 16384  # bytes of a chunk that show whether compressing it helps
TOGETHER = 4  # chunks staged in one transaction

Query = Callable[[str, tuple[Any, ...]], list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Ready:
    """A content made ready outside the writer's thread: packed if small, staged if large."""

    content: Content
    fresh: bool  # probably not in the journal yet
    packed: int = 0
    data: bytes | None = None  # of a small one
    staged: int | None = None  # blobs.id of a large one


class VanishedError(Exception):
    """A large content that was in the journal when it was made ready is there no more (pruned): stage it."""


def ready(writer: Writer, query: Query, content: Content, *, fresh: bool, stage_anyway: bool = False) -> Ready:
    """Do all the work on a content that needs no transaction, or that can have one of its own."""
    if content.size <= CHUNK_BYTES:
        return Ready(content, fresh, *_packed(content.read()))
    if not stage_anyway and query("SELECT 1 FROM blobs WHERE digest = ?", (content.digest,)):
        return Ready(content, False)
    return Ready(content, False, staged=_stage(writer, content))


_FIND = "SELECT id FROM blobs WHERE digest = ?"
_INSERT = "INSERT OR IGNORE INTO blobs (digest, size, packed, data) VALUES (?, ?, ?, ?)"


def add(connection: sqlite3.Connection, ready: Ready) -> int:
    """Put a content into the open transaction (or find that it is there) and return its blobs.id.

    Raises VanishedError.
    """
    content = ready.content
    row = (content.digest, content.size, ready.packed, ready.data)
    if ready.fresh and ready.data is not None:
        added = connection.execute(_INSERT, row)
        if added.rowcount:
            assert added.lastrowid is not None
            return added.lastrowid
    found = connection.execute(_FIND, (content.digest,)).fetchone()
    if found:
        if ready.staged is not None:
            for sql in DISCARD:
                connection.execute(sql, (ready.staged,))
        return int(found[0])
    if ready.staged is not None:
        changed = connection.execute(
            "UPDATE blobs SET digest = ?, staged_at = NULL WHERE id = ?", (content.digest, ready.staged)
        )
        if not changed.rowcount:
            raise VanishedError
        return ready.staged
    if ready.data is None:
        raise VanishedError
    added = connection.execute(_INSERT, row)
    assert added.lastrowid is not None
    return added.lastrowid


# Remove a blob with its chunks: each with its id.
DISCARD = ("DELETE FROM chunks WHERE blob = ?", "DELETE FROM blobs WHERE id = ?")


def discard_later(writer: Writer, blob: int) -> None:
    """Remove what was staged and is not needed, when it suits."""
    for sql in DISCARD:
        writer.later(sql, (blob,))


def _stage(writer: Writer, content: Content) -> int:
    def begin(connection: sqlite3.Connection) -> int:
        row = connection.execute(
            "INSERT INTO blobs (size, staged_at) VALUES (?, ?)", (content.size, time.time_ns() // 1_000_000)
        )
        assert row.lastrowid is not None
        return row.lastrowid

    blob = writer.submit(begin, durable=False)
    try:
        sha = hashlib.sha256()
        number = 0
        for batch in batched(content.chunks(), TOGETHER):
            rows = []
            for data in batch:
                sha.update(data)
                rows.append((blob, number, *_packed(data)))
                number += 1
            writer.submit(lambda connection, rows=rows: _insert(connection, rows), durable=False)  # type: ignore[misc]
        if sha.digest() != content.digest:
            raise JournalError("a file was altered while it was being journaled")
    except BaseException:
        discard_later(writer, blob)
        raise
    return blob


def _insert(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    connection.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?)", rows)


def _packed(data: bytes) -> tuple[int, bytes]:
    """(1, compressed) if that saves at least a tenth, else (0, data)."""
    if len(data) >= WORTH:
        if len(data) > 4 * SAMPLE and len(zlib.compress(data[:SAMPLE], 1)) > SAMPLE * 9 // 10:
            return 0, data
        packed = zlib.compress(data, 1)
        if len(packed) < len(data) * 9 // 10:
            return 1, packed
    return 0, data


# -- reading ---------------------------------------------------------------------------------------------------------


_CHUNK = "SELECT packed, data FROM chunks WHERE blob = ? AND number = ?"
_SMALL = "SELECT packed, data FROM blobs WHERE id = ? AND 0 = ?"


def stored(query: Query, blob: int, size: int, digest: bytes) -> Content:
    """The content of a blob, read when it is asked for."""
    return Content(size, digest, lambda: read(query, blob, size, digest))


def read(query: Query, blob: int, size: int, digest: bytes) -> Iterator[bytes]:
    """The chunks of a blob. The last is only given once the digest of them all is right.

    Raises JournalError if it is not: whoever passes the chunks on must then not finish.
    """
    sha = hashlib.sha256()
    found = 0
    held = b""
    number = 0
    while found < size:
        rows = query(_CHUNK if size > CHUNK_BYTES else _SMALL, (blob, number))
        if not rows or rows[0][1] is None:
            break
        if held:
            yield held
        held = _unpacked(*rows[0])
        sha.update(held)
        found += len(held)
        number += 1
    if found != size or sha.digest() != digest:
        raise JournalError(
            f"content {digest.hex()[:12]} in the journal is damaged: its bytes do not fit its digest (journal check)"
        )
    if held:
        yield held


def _unpacked(packed: int, data: bytes) -> bytes:
    if not packed:
        return data
    unpacker = zlib.decompressobj()
    try:
        return unpacker.decompress(data, CHUNK_BYTES + 1)
    except zlib.error:
        return b""  # the digest will say it

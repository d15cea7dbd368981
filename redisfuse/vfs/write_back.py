"""How the edits of a write buffer become journal content and writes to Redis."""

from __future__ import annotations

import hashlib
import logging
import os

from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import ConflictError, NotFoundError, RedisFuseError, WrongTypeError
from redisfuse.journal.content import Blob
from redisfuse.journal.models import State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.expiry import Expiry
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.spool import open_spool_file
from redisfuse.vfs.write_buffer import WriteBuffer

log = logging.getLogger(__name__)

MAX_WHOLE_WRITE_BYTES = CHUNK_BYTES
"""A value up to this size is always written whole."""


def write_back(
    key_writer: KeyWriter,
    target: KeyRef,
    buffer: WriteBuffer,
    precondition: Precondition,
    path: bytes,
    *,
    is_new: bool,
    expiry: Expiry | None,
    supersedes: int | None,
    content: Blob | None,
) -> Blob | None:
    """Write the edits of a buffer to Redis as one journaled change.

    Returns the whole content that was saved, which may lack the newline at its end; None if it was patched.

    A large string is patched if the range that holds all edits is at most half of it; any other value is written whole.
    `path` is the one that the journal records; `expiry` and `supersedes` are those of `KeyWriter.save`. Raises what
    `KeyWriter.patch` and `KeyWriter.save` raise, and ConflictError if the part of the value that was not overwritten
    can't be read any more.
    """
    patch = (
        buffer.dirty_range() if buffer.size > MAX_WHOLE_WRITE_BYTES and target.field is None and not is_new else None
    )
    if patch is not None and patch[1] * 2 <= buffer.size:
        offset, size = patch
        key_writer.patch(target, offset, blob_from_buffer(buffer, offset, size), precondition=precondition, path=path)
        return None
    op = "create" if precondition.kind == "absent" else "write"
    if content is None:
        content = whole_blob(buffer)
    return key_writer.save(
        target,
        content,
        precondition=precondition,
        path=path,
        op=op,
        expiry=expiry,
        supersedes=supersedes,
        is_rewritten=buffer.is_rewritten,
    )


def whole_blob(buffer: WriteBuffer) -> Blob:
    """Return all bytes of a buffer as journal content.

    Raises ConflictError if the part of the value that was not overwritten can't be read any more.
    """
    try:
        if buffer.has_base and buffer.size > CHUNK_BYTES:  # else each of its uses would fetch the base again
            return Blob.from_chunks(buffer.iter_chunks(), open_spool_file())
        return blob_from_buffer(buffer, 0, buffer.size)
    except (NotFoundError, WrongTypeError) as error:
        raise ConflictError(
            f"the part of the value that was not overwritten can't be read any more: {error}"
        ) from error


def preserve_edits(
    key_writer: KeyWriter, target: KeyRef, buffer: WriteBuffer, path: bytes, error: RedisFuseError
) -> None:
    """Record edits whose commit failed in the journal, and log that.

    `error` is that of the commit, which may have recorded them already.
    """
    change_id, name = error.change_id, os.fsdecode(path)
    try:
        if change_id is None and buffer.size:
            states = _states_to_preserve(buffer, target)
            if states:
                change_id = key_writer.record_refused(target, states, path=path, error=str(error))
        if change_id is None:
            log.error("%s: not saved: %s", name, error)
        else:
            log.error("%s: %s; its bytes are kept as change %d", name, error, change_id)
    except RedisFuseError as failure:
        log.error("%s: its bytes could not be kept either: %s", name, failure)


def _states_to_preserve(buffer: WriteBuffer, target: KeyRef) -> list[State]:
    """Return the states that the journal keeps of edits that could not be saved.

    That is the whole value, or the written ranges where the rest of a string is large or can't be read any more. Raises
    what reading raises.
    """
    if target.field is not None or not buffer.has_base or buffer.size <= MAX_WHOLE_WRITE_BYTES:
        try:
            content = blob_from_buffer(buffer, 0, buffer.size)
            return [State.from_value(content, b"string" if target.field is None else b"field")]
        except RedisFuseError:
            if target.field is not None:
                raise
    return [
        State.from_slice(blob_from_buffer(buffer, offset, size), offset, buffer.size_after_patch(offset + size))
        for offset, size in buffer.written_ranges()
    ]


def blob_from_buffer(buffer: WriteBuffer, offset: int, size: int) -> Blob:
    """Return a range of a buffer as journal content.

    Over CHUNK_BYTES it is read again at each use, so that it is valid only while the file's lock is held.
    """
    if size <= CHUNK_BYTES:
        return Blob.from_bytes(buffer.read(offset, size))
    sha = hashlib.sha256()
    for chunk in buffer.iter_chunks(offset, size):
        sha.update(chunk)
    return Blob(size, sha.digest(), lambda: buffer.iter_chunks(offset, size))

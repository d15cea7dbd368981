"""The content that a commit leaves in Redis.

A program that keeps its file open continues over it. It is not read back: another client may have changed the value
since, and a later save over that must be a conflict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from redisfuse.errors import ConflictError, NotFoundError, WrongTypeError
from redisfuse.journal.content import Blob
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.block_digests import BlockDigests
from redisfuse.transactions.precondition import Precondition
from redisfuse.vfs.content import ContentLoader
from redisfuse.vfs.content_types import InlineContent
from redisfuse.vfs.observed_content import ObservedContent
from redisfuse.vfs.write_back import MAX_WHOLE_WRITE_BYTES, blob_from_buffer
from redisfuse.vfs.write_buffer import BaseContent, WriteBuffer


@dataclass(frozen=True, slots=True)
class CommittedContent:
    """The content that a commit leaves.

    That is all bytes of a small value or of a field, and the digests of a large string.
    """

    local: BaseContent | None
    saved: Blob | None = None  # as Redis has it: the newline at the end of `local` may be missing
    blocks: BlockDigests | None = None

    @classmethod
    def from_buffer(cls, buffer: WriteBuffer, target: KeyRef) -> Self:
        """Return the content that the commit of a buffer will leave.

        Raises ConflictError if the part of the value that was not overwritten can't be read any more.
        """
        if buffer.size > MAX_WHOLE_WRITE_BYTES and target.field is None:
            return cls(None, blocks=_digest_blocks(buffer))
        try:
            if buffer.size > MAX_WHOLE_WRITE_BYTES:
                copy = buffer.copy()
                return cls(copy, blob_from_buffer(copy, 0, copy.size))
            blob = blob_from_buffer(buffer, 0, buffer.size)
            return cls(InlineContent(blob.read()), blob)
        except (NotFoundError, WrongTypeError) as error:
            raise ConflictError(
                f"the part of the value that was not overwritten can't be read any more: {error}"
            ) from error

    def as_saved(self, saved: Blob | None) -> Self:
        """Return the content after its commit.

        `saved`: the bytes that were saved, if it was saved whole.
        """
        return self if saved is self.saved or saved is None or self.local is None else replace(self, saved=saved)

    @property
    def lacks_newline(self) -> bool:
        """Whether Redis has it without the newline at its end."""
        return self.local is not None and self.saved is not None and self.saved.size < self.local.size

    @property
    def version(self) -> Precondition:
        """The precondition that Redis still has it."""
        if self.blocks is not None:
            return Precondition.blocks_equal(self.blocks)
        assert self.saved is not None
        return Precondition.of_blob(self.saved)

    def open(self, loader: ContentLoader, target: KeyRef) -> tuple[BaseContent, Precondition]:
        """Return the content as the base of further edits, and their precondition."""
        if self.blocks is not None:
            return loader.open_saved(target, self.blocks)
        assert self.local is not None
        assert self.saved is not None
        return self.local, Precondition.content_equals(self.saved.size, self.saved.digest)


def _digest_blocks(buffer: WriteBuffer) -> BlockDigests:
    """Return the digests of a large string after the commit of a buffer.

    Those of blocks without edits are taken over. A block whose remaining bytes are unknown stays unknown.
    """
    base = buffer.base
    before = base.blocks if isinstance(base, ObservedContent) else None
    after = BlockDigests(buffer.size)
    for number in after.numbers_in(0, after.size):
        start, end = after.bounds(number)
        if before is not None and before.bounds(number) == (start, end) and not buffer.has_edits_in(start, end):
            after.copy_block(before, number)
        elif before is None or number in before or buffer.is_overwritten(start, end):
            try:
                after.record_saved(number, buffer.read(start, end - start))
            except (ConflictError, NotFoundError, WrongTypeError):  # the commit will find out, too
                after.has_changed = True
    return after

"""Preconditions: the state that a target must still have when it is written.

It is the state in which the target's file was opened.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

from redisfuse.config import CHUNK_BYTES
from redisfuse.journal.content import Blob
from redisfuse.journal.models import State
from redisfuse.transactions.block_digests import BlockDigests


class UnchangedCheck(Protocol):
    """Returns whether the target has certainly not changed since its file was opened."""

    def __call__(self) -> bool: ...


class RangeReader(Protocol):
    """Reads ranges (start, end) of the target, which is watched, in order."""

    def __call__(self, ranges: Sequence[tuple[int, int]], /) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Precondition:
    """The target's state when its file was opened. Construct it with a class method.

    The type is not part of it: a target with a field is a hash field, one without is a string, and that is always
    checked, in the same transaction.
    """

    kind: Literal["absent", "content", "blocks", "anything"]
    size: int = 0  # bytes
    digest: bytes = b""  # SHA-256 of the content
    blocks: BlockDigests | None = None
    is_unchanged: UnchangedCheck | None = None
    is_enforced: bool = True  # False: it only sizes the reads

    @classmethod
    def absent(cls) -> Self:
        """Require that the key or field is absent."""
        return cls("absent")

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Require these bytes."""
        return cls.content_equals(len(data), hashlib.sha256(data).digest())

    @classmethod
    def content_equals(cls, size: int, digest: bytes) -> Self:
        """Require `size` bytes with this SHA-256."""
        return cls("content", size, digest)

    @classmethod
    def blocks_equal(cls, blocks: BlockDigests, is_unchanged: UnchangedCheck | None = None) -> Self:
        """Require the size of a large string, and its known blocks.

        They are those that are known when it is checked. If `is_unchanged` returns true, they need not be read again.
        """
        return cls("blocks", blocks.size, blocks=blocks, is_unchanged=is_unchanged)

    @staticmethod
    def unconditional() -> "Precondition":
        """Accept everything (a file opened without reading, `apply --force`)."""
        return _UNCONDITIONAL

    @classmethod
    def of_blob(cls, content: Blob) -> Self:
        """Require this content."""
        return cls.content_equals(content.size, content.digest)

    @classmethod
    def unchanged(cls, is_unchanged: UnchangedCheck) -> Self:
        """Require that no change was observed, for a content that is not known."""
        return cls("anything", is_unchanged=is_unchanged)

    def without_enforcement(self) -> Self:
        """Return the same expectation as a mere hint.

        It sizes the reads, and every state satisfies it.
        """
        return replace(self, is_enforced=False)

    def requires_exactly(self, content: Blob) -> bool:
        """Whether only this content satisfies the precondition."""
        if self.size != content.size:
            return False
        if self.blocks is not None:
            return self.blocks.covers_everything and self.blocks.match(0, content.iter_chunks())
        return self.kind == "content" and self.digest == content.digest

    @property
    def expected_size(self) -> int | None:
        """The size that the value is expected to have, in bytes, 0 if absent.

        None: no expectation.
        """
        return None if self.kind == "anything" else self.size

    @property
    def required_size(self) -> int | None:
        """The only size with which a value can satisfy the precondition. None: any size."""
        return self.size if self.is_enforced and self.kind in ("content", "blocks") else None

    def holds_for(self, state: State, read: RangeReader) -> bool:
        """Whether a state satisfies the precondition.

        The state is a whole value, a slice or absent. `read` reads what a slice does not contain. Raises the errors of
        reading.
        """
        if not self.is_enforced:
            return True
        if self.kind in ("anything", "absent"):
            is_as_required = self.kind == "anything" or state.kind == "absent"
            return is_as_required and (self.is_unchanged is None or self.is_unchanged())
        if state.kind not in ("value", "slice") or state.content is None or state.size != self.size:
            return False
        if self.blocks is not None:
            return self._blocks_match(self.blocks, state.content if state.kind == "value" else None, read)
        if state.kind == "value":
            return state.content.digest == self.digest
        sha = hashlib.sha256()
        for chunk in read([(start, min(start + CHUNK_BYTES, self.size)) for start in range(0, self.size, CHUNK_BYTES)]):
            sha.update(chunk)
        return sha.digest() == self.digest

    def _blocks_match(self, blocks: BlockDigests, content: Blob | None, read: RangeReader) -> bool:
        if content is not None and (blocks.covers_everything or self.is_unchanged is None):
            return blocks.match(0, content.iter_chunks())
        if blocks.has_changed:
            return False
        if self.is_unchanged is not None and self.is_unchanged():
            return True
        if content is not None:
            return blocks.match(0, content.iter_chunks())
        ranges = blocks.known_ranges()
        return all(blocks.match(start, [data]) for (start, _), data in zip(ranges, read(ranges), strict=True))


_UNCONDITIONAL = Precondition("anything")

"""Preconditions: the state that a target must still have when it is written.

It is the state in which the target's file was opened.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

from redisfuse.journal.models import Blob, State


class UnchangedCheck(Protocol):
    """Returns whether the target was not seen to change since its file was opened."""

    def __call__(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Precondition:
    """The target's state when its file was opened. Construct it with a class method.

    The type is not part of it: a target with a field is a hash field, one without is a string, and that is always
    checked, in the same transaction.
    """

    kind: Literal["absent", "content", "length", "anything"]
    size: int = 0  # bytes
    digest: bytes = b""  # SHA-256 of the content
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
    def size_equals(cls, size: int, is_unchanged: UnchangedCheck) -> Self:
        """Require `size` bytes and no observed change.

        For a content that was not read whole.
        """
        return cls("length", size, is_unchanged=is_unchanged)

    @classmethod
    def unconditional(cls) -> Self:
        """Accept everything (a file opened without reading, `apply --force`)."""
        return cls("anything")

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
        return self.kind == "content" and self.size == content.size and self.digest == content.digest

    @property
    def expected_size(self) -> int | None:
        """The size that the value is expected to have, in bytes, 0 if absent.

        None: no expectation.
        """
        return None if self.kind == "anything" else self.size

    @property
    def required_size(self) -> int | None:
        """The only size with which a value can satisfy the precondition. None: any size."""
        return self.size if self.is_enforced and self.kind in ("content", "length") else None

    def holds_for(self, state: State) -> bool:
        """Whether a state satisfies the precondition.

        The state is a whole value, a slice or absent.
        """
        if not self.is_enforced:
            return True
        if self.kind in ("anything", "absent"):
            is_as_required = self.kind == "anything" or state.kind == "absent"
            return is_as_required and (self.is_unchanged is None or self.is_unchanged())
        if state.kind not in ("value", "slice") or state.content is None:
            return False
        if self.kind == "content" and state.kind == "value":
            return state.content.size == self.size and state.content.digest == self.digest
        size = state.content.size if state.kind == "value" else state.total_size
        return size == self.size and (self.is_unchanged is None or self.is_unchanged())

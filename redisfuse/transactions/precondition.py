"""What a file was opened on: the ground an edit stands on, compared with what is there when it is saved."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

from redisfuse.journal.models import Blob, State


@dataclass(frozen=True, slots=True)
class Precondition:
    """What the target held when the file was opened. Make one with a class method; `holds_for` is the conflict check.

    The type needs no place here: a target with a field is a hash field, one without is a string, and that much is
    checked always, in the same transaction.
    """

    kind: Literal["absent", "content", "length", "anything"]
    size: int = 0  # bytes
    digest: bytes = b""  # SHA-256 of the content
    is_unchanged: Callable[[], bool] | None = None

    @classmethod
    def absent(cls) -> Self:
        """There was no such key or field."""
        return cls("absent")

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """It held these bytes."""
        return cls.content_equals(len(data), hashlib.sha256(data).digest())

    @classmethod
    def content_equals(cls, size: int, digest: bytes) -> Self:
        """It held `size` bytes with this SHA-256."""
        return cls("content", size, digest)

    @classmethod
    def size_equals(cls, size: int, is_unchanged: Callable[[], bool]) -> Self:
        """It held `size` bytes, not all read; `is_unchanged()` says whether no change of it was heard of since."""
        return cls("length", size, is_unchanged=is_unchanged)

    @classmethod
    def unconditional(cls) -> Self:
        """Whatever is there may be replaced (a file opened without looking, `apply --force`)."""
        return cls("anything")

    def requires_exactly(self, content: Blob) -> bool:
        """Did the target surely hold just this?"""
        return self.kind == "content" and self.size == content.size and self.digest == content.digest

    @property
    def expected_size(self) -> int | None:
        """How many bytes the value is thought to have (0: there is none), or None: nothing is known."""
        return None if self.kind == "anything" else self.size

    def holds_for(self, state: State) -> bool:
        """Is `found` (a whole value, a slice or absent) what the file was opened on?"""
        if self.kind == "anything":
            return True
        if self.kind == "absent":
            return state.kind == "absent"
        if state.kind not in ("value", "slice") or state.content is None:
            return False
        if self.kind == "content" and state.kind == "value":
            return state.content.size == self.size and state.content.digest == self.digest
        length = state.content.size if state.kind == "value" else state.total_size
        return length == self.size and (self.is_unchanged is None or self.is_unchanged())

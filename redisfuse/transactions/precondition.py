"""What a file was opened on: the ground an edit stands on, compared with what is there when it is saved."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

from redisfuse.journal.models import Content, State


@dataclass(frozen=True, slots=True)
class Basis:
    """What the target held when the file was opened. Make one with a class method; `matches` is the conflict check.

    The type needs no place here: a target with a field is a hash field, one without is a string, and that much is
    checked always, in the same transaction.
    """

    kind: Literal["absent", "content", "length", "anything"]
    length: int = 0  # bytes
    digest: bytes = b""  # SHA-256 of the content
    unchanged: Callable[[], bool] | None = None

    @classmethod
    def absent(cls) -> Self:
        """There was no such key or field."""
        return cls("absent")

    @classmethod
    def of(cls, data: bytes) -> Self:
        """It held these bytes."""
        return cls.content(len(data), hashlib.sha256(data).digest())

    @classmethod
    def content(cls, length: int, digest: bytes) -> Self:
        """It held `length` bytes with this SHA-256."""
        return cls("content", length, digest)

    @classmethod
    def big(cls, length: int, unchanged: Callable[[], bool]) -> Self:
        """It held `length` bytes, not all read; `unchanged()` says whether no change of it was heard of since."""
        return cls("length", length, unchanged=unchanged)

    @classmethod
    def anything(cls) -> Self:
        """Whatever is there may be replaced (a file opened without looking, `apply --force`)."""
        return cls("anything")

    def is_content(self, content: Content) -> bool:
        """Did the target surely hold just this?"""
        return self.kind == "content" and self.length == content.size and self.digest == content.digest

    @property
    def expected(self) -> int | None:
        """How many bytes the value is thought to have (0: there is none), or None: nothing is known."""
        return None if self.kind == "anything" else self.length

    def matches(self, found: State) -> bool:
        """Is `found` (a whole value, a slice or absent) what the file was opened on?"""
        if self.kind == "anything":
            return True
        if self.kind == "absent":
            return found.kind == "absent"
        if found.kind not in ("value", "slice") or found.content is None:
            return False
        if self.kind == "content" and found.kind == "value":
            return found.content.size == self.length and found.content.digest == self.digest
        length = found.content.size if found.kind == "value" else found.total
        return length == self.length and (self.unchanged is None or self.unchanged())

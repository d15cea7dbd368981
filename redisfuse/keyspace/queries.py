"""What is asked about one key once its type is known, and what the answers mean. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redisfuse.client.client import Command
from redisfuse.errors import RedisFuseError
from redisfuse.keyspace.metadata_cache import Attributes
from redisfuse.rendering.renderer import length_command

ABSENT = Attributes(b"none", 0)


@dataclass(slots=True)
class Question:
    """The commands about a key whose type was asked, and what their answers mean."""

    key: bytes
    type: bytes | RedisFuseError
    beginning: int  # bytes of a string to bring along
    deadline: bool  # is the TTL asked?
    commands: list[Command]

    @classmethod
    def of(cls, key: bytes, type: bytes | RedisFuseError, beginning: int, deadline: bool) -> "Question":
        commands: list[Command] = []
        if not isinstance(type, RedisFuseError) and type != b"none":
            length = length_command(type)
            if length:
                commands.append((length, key))
            if type == b"string" and beginning:
                commands.append((b"GETRANGE", key, 0, beginning - 1))
            if deadline:
                commands.append((b"PTTL", key))
        return cls(key, type, beginning, deadline, commands)

    def answer(self, replies: Sequence[Any], asked: float) -> tuple[Attributes, bytes | None]:
        """The attributes, and the whole content of a string if it came along. Raises the first error reply."""
        if len(replies) == 1 and replies[0].__class__ is int and replies[0] > 0 and not self.deadline:
            return Attributes(self.type, replies[0]), None  # type: ignore[arg-type]  # the ordinary case, quickly
        for reply in (self.type, *replies):
            if isinstance(reply, RedisFuseError):
                raise reply
        assert isinstance(self.type, bytes)
        left = list(replies)
        length = left.pop(0) if length_command(self.type) and left else -1
        beginning = left.pop(0) if self.type == b"string" and self.beginning else None
        ttl = left.pop(0) if left else -1
        if self.type == b"none" or ttl == -2 or (length == 0 and self.type not in (b"string", b"stream")):
            return ABSENT, None  # it went between the two commands; only strings and streams can be empty
        content = None
        if beginning is not None:
            # Each reply is of one moment, the two are not: where the beginning is the whole, it has the last word.
            if len(beginning) < self.beginning:
                length, content = len(beginning), beginning
            elif length <= self.beginning:
                length, content = self.beginning, beginning if length == self.beginning else None
        return Attributes(self.type, length, asked + ttl / 1000 if ttl >= 0 else None), content

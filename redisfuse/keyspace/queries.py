"""What is asked about one key once its type is known, and what the answers mean. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redisfuse.client.client import RedisCommand
from redisfuse.errors import RedisFuseError
from redisfuse.keyspace.metadata_cache import KeyMetadata
from redisfuse.rendering.renderer import length_command

ABSENT = KeyMetadata(b"none", 0)


@dataclass(slots=True)
class MetadataQuery:
    """The commands about a key whose type was asked, and what their answers mean."""

    key: bytes
    type: bytes | RedisFuseError
    head_bytes: int  # bytes of a string to bring along
    includes_ttl: bool  # is the TTL asked?
    commands: list[RedisCommand]

    @classmethod
    def for_key(cls, key: bytes, type: bytes | RedisFuseError, head_bytes: int, includes_ttl: bool) -> "MetadataQuery":
        commands: list[RedisCommand] = []
        if not isinstance(type, RedisFuseError) and type != b"none":
            length = length_command(type)
            if length:
                commands.append((length, key))
            if type == b"string" and head_bytes:
                commands.append((b"GETRANGE", key, 0, head_bytes - 1))
            if includes_ttl:
                commands.append((b"PTTL", key))
        return cls(key, type, head_bytes, includes_ttl, commands)

    def parse_replies(self, replies: Sequence[Any], sent_at: float) -> tuple[KeyMetadata, bytes | None]:
        """The attributes, and the whole content of a string if it came along. Raises the first error reply."""
        if len(replies) == 1 and replies[0].__class__ is int and replies[0] > 0 and not self.includes_ttl:
            return KeyMetadata(self.type, replies[0]), None  # type: ignore[arg-type]  # the ordinary case, quickly
        for reply in (self.type, *replies):
            if isinstance(reply, RedisFuseError):
                raise reply
        assert isinstance(self.type, bytes)
        left = list(replies)
        length = left.pop(0) if length_command(self.type) and left else -1
        beginning = left.pop(0) if self.type == b"string" and self.head_bytes else None
        ttl = left.pop(0) if left else -1
        if self.type == b"none" or ttl == -2 or (length == 0 and self.type not in (b"string", b"stream")):
            return ABSENT, None  # it went between the two commands; only strings and streams can be empty
        content = None
        if beginning is not None:
            # Each reply is of one moment, the two are not: where the beginning is the whole, it has the last word.
            if len(beginning) < self.head_bytes:
                length, content = len(beginning), beginning
            elif length <= self.head_bytes:
                length, content = self.head_bytes, beginning if length == self.head_bytes else None
        return KeyMetadata(self.type, length, sent_at + ttl / 1000 if ttl >= 0 else None), content

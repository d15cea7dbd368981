"""The commands about one key of known type, and the parsing of their replies.

Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redisfuse.client.client import RedisCommand
from redisfuse.errors import RedisFuseError
from redisfuse.keyspace.metadata_entry import KeyMetadata
from redisfuse.rendering.renderer import length_command

ABSENT = KeyMetadata(b"none", 0)


@dataclass(slots=True)
class MetadataQuery:
    """The commands about one key, given the reply to TYPE."""

    key: bytes
    type: bytes | RedisFuseError
    head_bytes: int  # number of leading bytes of a string to fetch
    includes_ttl: bool  # whether PTTL is sent
    commands: list[RedisCommand]

    @classmethod
    def for_key(cls, key: bytes, type: bytes | RedisFuseError, head_bytes: int, includes_ttl: bool) -> "MetadataQuery":
        """Build the query for a key of this type."""
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
        """Return the metadata, and the content of a string if all of it was fetched.

        Raises the first error reply.
        """
        if len(replies) == 1 and replies[0].__class__ is int and replies[0] > 0 and not self.includes_ttl:
            return KeyMetadata(self.type, replies[0]), None  # type: ignore[arg-type]  # the usual case, fast
        for reply in (self.type, *replies):
            if isinstance(reply, RedisFuseError):
                raise reply
        assert isinstance(self.type, bytes)
        remaining = list(replies)
        length = remaining.pop(0) if length_command(self.type) and remaining else -1
        head = remaining.pop(0) if self.type == b"string" and self.head_bytes else None
        ttl = remaining.pop(0) if remaining else -1
        if self.type == b"none" or ttl == -2 or (length == 0 and self.type not in (b"string", b"stream")):
            return ABSENT, None  # deleted between the two commands; only strings and streams can be empty
        content = None
        if head is not None:
            # STRLEN and GETRANGE may see different values. If the head is the whole value, its length is right.
            if len(head) < self.head_bytes:
                length, content = len(head), head
            elif length <= self.head_bytes:
                length, content = self.head_bytes, head if length == self.head_bytes else None
        return KeyMetadata(self.type, length, sent_at + ttl / 1000 if ttl >= 0 else None), content

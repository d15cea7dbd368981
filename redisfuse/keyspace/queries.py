"""The commands about one key of known type, and the parsing of their replies.

Pure functions.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from redisfuse.client.client import RedisCommand
from redisfuse.errors import AccessError, RedisFuseError, WrongTypeError
from redisfuse.keyspace.metadata_entry import KeyMetadata
from redisfuse.rendering.renderer import length_command

ABSENT = KeyMetadata(b"none", 0)
UNREADABLE = KeyMetadata(b"unreadable", -1)


def build_commands(
    key: bytes, type: bytes | RedisFuseError, head_bytes: int, *, includes_ttl: bool
) -> list[RedisCommand]:
    """Return the commands about a key, given the reply to TYPE.

    `head_bytes`: the number of leading bytes of a string to fetch. `includes_ttl`: whether PTTL is sent.
    """
    if isinstance(type, RedisFuseError) or type == b"none":
        return []
    commands: list[RedisCommand] = []
    length = length_command(type)
    if length:
        commands.append((length, key))
    if type == b"string" and head_bytes:
        commands.append((b"GETRANGE", key, 0, head_bytes - 1))
    if includes_ttl:
        commands.append((b"PTTL", key))
    return commands


class Results(NamedTuple):
    """The results of queries about several keys."""

    fetched: dict[bytes, tuple[KeyMetadata, bytes | None]]  # and the content of a string if all of it was fetched
    metadata: dict[bytes, KeyMetadata]  # the same, and UNREADABLE
    changed: list[bytes]  # keys that have another type by now


def parse_all_replies(
    types: Mapping[bytes, bytes | RedisFuseError],
    queries: Sequence[Sequence[RedisCommand]],
    replies: Sequence[Any],
    head_bytes: int,
    sent_at: float,
) -> Results:
    """Return the metadata of several keys.

    `replies` are those to the commands of all `queries`, as in `parse_replies`. Raises the first error reply, except of
    a key that the ACL hides or whose type has changed.
    """
    results, remaining = Results({}, {}, []), iter(replies)
    for (key, type), commands in zip(types.items(), queries, strict=True):
        try:
            result = parse_replies(type, list(islice(remaining, len(commands))), head_bytes, sent_at)
        except WrongTypeError:
            results.changed.append(key)
        except AccessError:
            results.metadata[key] = UNREADABLE
        else:
            results.fetched[key] = result
            results.metadata[key] = result[0]
    return results


def parse_replies(
    type: bytes | RedisFuseError, replies: Sequence[Any], head_bytes: int, sent_at: float
) -> tuple[KeyMetadata, bytes | None]:
    """Return the metadata, and the content of a string if all of it was fetched.

    `replies` are those to `build_commands`, sent at `sent_at` (time.monotonic()). Raises the first error reply.
    """
    for reply in (type, *replies):
        if isinstance(reply, RedisFuseError):
            raise reply
    assert isinstance(type, bytes)
    remaining = list(replies)
    length = remaining.pop(0) if length_command(type) and remaining else -1
    head = remaining.pop(0) if type == b"string" and head_bytes else None
    ttl = remaining.pop(0) if remaining else -1
    if type == b"none" or ttl == -2 or (length == 0 and type not in (b"string", b"stream")):
        return ABSENT, None  # deleted between the two commands; only strings and streams can be empty
    content = None
    if head is not None:
        # STRLEN and GETRANGE may see different values. If the head is the whole value, its length is right.
        if len(head) < head_bytes:
            length, content = len(head), head
        elif length <= head_bytes:
            length, content = head_bytes, head if length == head_bytes else None
    return KeyMetadata(type, length, sent_at + ttl / 1000 if ttl >= 0 else None), content

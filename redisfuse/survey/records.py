"""Records of keys and fields, and the commands for their properties. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from redisfuse.client.client import RedisCommand
from redisfuse.errors import RedisFuseError, ServerReplyError, UsageError, WrongTypeError
from redisfuse.paths.grammar import KeyRef
from redisfuse.rendering.renderer import length_command

Property = Literal["type", "ttl", "idle", "encoding", "length", "memory"]

PROPERTIES: tuple[Property, ...] = ("type", "ttl", "idle", "encoding", "length", "memory")
"""In the order in which they are fetched. Idle times precede lengths, which older servers count as an access."""

NO_EXPIRY = -1
_MISSING_KEY = -2  # PTTL of a key that does not exist

FIELD_TYPE = b"field"
"""The type of a record of a hash field."""


@dataclass(slots=True)
class KeyRecord:
    """A key, or a field of a hash, with the properties that were fetched.

    None: not fetched, or not known.
    """

    key: bytes
    field: bytes | None = None
    type: bytes | None = None  # the reply of TYPE, or FIELD_TYPE
    length: int | None = None  # bytes of a string or field, elements of a collection; -1 for a module's type
    ttl_ms: int | None = None  # NO_EXPIRY for none; that of the key, for a field
    idle_seconds: int | None = None
    encoding: bytes | None = None
    memory: int | None = None  # bytes, as MEMORY USAGE estimates them
    exists: bool = True

    @property
    def target(self) -> KeyRef:
        """The key or field that this is the record of."""
        return KeyRef(self.key, self.field)

    @property
    def size(self) -> int | None:
        """Bytes of a string or field; None for a collection."""
        return self.length if self.type in (b"string", FIELD_TYPE) else None

    @property
    def elements(self) -> int | None:
        """Elements of a collection; None for a string or field."""
        return None if self.size is not None or self.length == -1 else self.length


def build_command(record: KeyRecord, name: Property) -> RedisCommand | None:
    """Return the command for a property; None if there is nothing to fetch.

    The length needs the type.
    """
    if name == "type":
        return (b"TYPE", record.key) if record.type is None else None
    if name == "ttl":
        return (b"PTTL", record.key)
    if name == "idle":
        return (b"OBJECT", b"IDLETIME", record.key)
    if name == "encoding":
        return (b"OBJECT", b"ENCODING", record.key)
    if name == "memory":
        return (b"MEMORY", b"USAGE", record.key)
    if record.field is not None:
        return (b"HSTRLEN", record.key, record.field)
    assert record.type is not None
    command = length_command(record.type)
    return None if command is None else (command, record.key)


def store_reply(record: KeyRecord, name: Property, reply: Any) -> None:
    """Store the reply to the command of a property.

    Raises an error reply; UsageError for idle times that the server does not have.
    """
    if isinstance(reply, WrongTypeError):  # the key has another type now
        record.exists = False
    elif isinstance(reply, ServerReplyError) and name == "idle" and "LFU" in str(reply):
        raise UsageError("this server has no idle times: its maxmemory-policy is an LFU one, which counts accesses")
    elif isinstance(reply, ServerReplyError) and "no such key" in str(reply):
        record.exists = False
    elif isinstance(reply, RedisFuseError):
        raise reply
    elif reply is None or reply == b"none" or (name == "ttl" and reply == _MISSING_KEY):
        record.exists = False
    elif name == "type":
        record.type = reply
    elif name == "ttl":
        record.ttl_ms = reply
    elif name == "idle":
        record.idle_seconds = reply
    elif name == "encoding":
        record.encoding = reply
    elif name == "memory":
        record.memory = reply
    else:
        record.length = reply
        if not reply and record.type not in (b"string", b"stream", FIELD_TYPE):
            record.exists = False  # only strings and streams can be empty


def store_unknown_length(record: KeyRecord) -> None:
    """Record that the type of a key has no length command."""
    if record.length is None:
        record.length = -1

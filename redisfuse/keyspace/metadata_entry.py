"""The cache entry of one key.

It has the metadata, a small content, fields and the extended metadata.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from redisfuse.keyspace.prefetch import AccessPattern

ENTRY_OVERHEAD_BYTES = 400  # memory of an entry besides its key and its contents
EXPIRY_OVERHEAD_BYTES = 120  # memory of a field's expiry besides its name
CONTENT_OVERHEAD_BYTES = 100  # memory of a content besides its bytes
FIELD_OVERHEAD_BYTES = 160  # memory of a field besides its name and its value

FieldValue = bytes | int | None
"""A field's content, or its length in bytes (-1: it exists, its length is unknown); None: there is no such field."""


class UnknownField:
    """The type of `UNKNOWN_FIELD`: nothing is cached about a field."""


UNKNOWN_FIELD = UnknownField()


class KeyMetadata(NamedTuple):
    """The metadata of a key that stat needs."""

    type: bytes  # as TYPE returns it; b"none": there is no such key; b"unreadable": the ACL denies TYPE
    length: int  # bytes of a string, elements of a collection; -1 for types without a length command
    expires_at: float | None = None  # time.monotonic() at which it expires, if known


class ExtendedEntry(NamedTuple):
    """The metadata of a key that only extended attributes show."""

    encoding: bytes | None  # as OBJECT ENCODING returns it; empty if the ACL denies it; None: unknown
    is_expiry_known: bool
    expires_at: float | None  # time.monotonic(); None: never, if known


@dataclass(slots=True)
class MetadataCacheEntry:
    """The entry of one key. Changed only under the cache's lock."""

    metadata: KeyMetadata
    fetched_at: float  # time.monotonic()
    max_age: float  # seconds, as of when it was fetched
    size_bytes: int
    content: bytes | None = None  # of a string, complete
    fields: dict[bytes, FieldValue] | None = None
    fields_complete: bool = False  # `fields` holds all fields of the hash
    compact: bool | None = None  # for a hash: whether its encoding implies small values
    access_pattern: AccessPattern | None = None  # of the keys that were listed together
    is_prefetched: bool = False  # its content is or was prefetched, and was not requested yet
    is_read_once: bool = False  # its content was prefetched: after its first read, it is dropped first
    is_expiry_known: bool = False  # `metadata.expires_at` was fetched: None means never
    encoding: bytes | None = None  # as OBJECT ENCODING returns it; empty if the ACL denies it; None: unknown
    field_expiries: dict[bytes, float | None] | None = None  # of fields (time.monotonic()); None: never

    def limit_age(self, token: FetchToken) -> None:
        """Let the entry be valid no longer than what was fetched with `token`."""
        self.fetched_at = min(self.fetched_at, token.started_at)
        self.max_age = min(self.max_age, token.max_age)

    def keep_extended(self, old: MetadataCacheEntry) -> None:
        """Take over the extended metadata of an entry that this one replaces.

        Only if both are valid until a change is announced, since it is older.
        """
        if self.max_age == old.max_age == math.inf and self.metadata.type == old.metadata.type:
            self.encoding = old.encoding
            self.is_expiry_known = self.is_expiry_known or (
                old.is_expiry_known and self.metadata.expires_at == old.metadata.expires_at
            )


@dataclass(slots=True, eq=False)
class FetchToken:
    """A running fetch, which ends with the body of `with`."""

    started_at: float
    max_age: float
    active_fetches: list[FetchToken]  # of the cache, guarded by its lock
    lock: threading.Lock
    invalidated_keys: set[bytes] = field(default_factory=set)
    all_invalidated: bool = False

    def __enter__(self) -> FetchToken:
        with self.lock:
            self.active_fetches.append(self)
        return self

    def __exit__(self, *_error: object) -> None:
        with self.lock:
            self.active_fetches.remove(self)


def prefetched_size(key: bytes, length: int) -> int:
    """Return the memory that an entry with a content takes, in bytes, estimated."""
    return ENTRY_OVERHEAD_BYTES + CONTENT_OVERHEAD_BYTES + len(key) + length


def field_size(item: tuple[bytes, FieldValue]) -> int:
    """Return the memory that a cached field takes, in bytes, estimated."""
    name, value = item
    return FIELD_OVERHEAD_BYTES + len(name) + (len(value) if isinstance(value, bytes) else 0)

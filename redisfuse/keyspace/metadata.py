"""What keys and fields are, how long they are, and their small contents: asked in pipelined batches, and cached.

At most two commands a key (TYPE, then the length command of that type), and a third, PTTL, only where keys that
expire are known or suspected: nobody tells of an expiry in time, so the deadline bounds how long an entry is
believed. Each command costs the same however large the value: nothing here asks for more than 1 MiB or 1000 elements.

Threads: any. No lock is held while the server is asked, nor while `on_deadline` is called.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from redisfuse.batching import CHUNK_BYTES, batched
from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.errors import AccessError, BusyError, NotFoundError, RedisFuseError, WrongTypeError
from redisfuse.keyspace.hash_fields import COMPACT_ENCODINGS, HashFields
from redisfuse.keyspace.listener import Freshness
from redisfuse.keyspace.metadata_cache import UNKNOWN_FIELD, FetchToken, KeyMetadata, MetadataCache, UnknownField
from redisfuse.keyspace.prefetch import MAX_PREFETCH_VALUE_BYTES, SortKey
from redisfuse.keyspace.queries import ABSENT, MetadataQuery
from redisfuse.paths.grammar import KeyRef
from redisfuse.rendering.renderer import length_command

__all__ = ["ABSENT", "UNREADABLE", "ExtendedMetadata", "KeyMetadata", "MetadataStore"]

HEAD_BYTES = 16 << 10  # bytes of a string that a look brings along

UNREADABLE = KeyMetadata(b"unreadable", -1)

_MAX_KEYS_PER_BATCH = 1000  # keys, so that a fetch is short
_MAX_FETCH_ATTEMPTS = 4  # at keys that become another type between two commands


@dataclass(frozen=True, slots=True)
class ExtendedMetadata:
    """What the extended attributes tell of a key."""

    type: bytes
    ttl_ms: int  # milliseconds; -1: none
    encoding: bytes  # empty if the server doesn't say
    length: int  # as in Attributes


class MetadataStore:
    """Attributes and small contents of keys and fields.

    `max_cache_bytes` bounds the cache. `freshness` says how long an entry is valid. `sort_key`: an order in which
    programs may read keys one after the other, beside that of their names (prefetch.py).
    """

    def __init__(
        self,
        client: RedisClient,
        *,
        max_cache_bytes: int = 64 << 20,
        freshness: Freshness,
        sort_key: SortKey = len,
    ) -> None:
        self._client = client
        self._freshness = freshness
        self.cache = MetadataCache(max_cache_bytes, freshness, sort_key)
        self._hash_fields = HashFields(client, self.cache)

    @property
    def hits(self) -> int:
        """Questions about attributes and contents that cost the server nothing."""
        return self.cache.hits

    @property
    def misses(self) -> int:
        """Those that had to be asked."""
        return self.cache.misses

    # -- keys ---------------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> KeyMetadata:
        """As `get_many`, of one key."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[bytes]) -> list[KeyMetadata]:
        """The attributes of keys, in their order: two round trips a batch of 1000, none for what is cached.

        ABSENT for a key that doesn't exist, UNREADABLE for one that the ACL hides. Raises UnavailableError and the
        like.
        """
        known = self.cache.get_many(keys)
        missing = list(dict.fromkeys([key for key, found in zip(keys, known, strict=True) if found is None]))
        if not missing:
            return [found for found in known if found is not None]
        fetched: dict[bytes, KeyMetadata] = {}
        for batch in batched(missing, _MAX_KEYS_PER_BATCH):
            fetched |= self._fetch_metadata(batch)
        return [found or fetched[key] for key, found in zip(keys, known, strict=True)]

    def get_with_content(self, key: bytes) -> KeyMetadata:
        """As `get`, for a key that is likely to be opened: its first 16 KiB come in the same two round trips."""
        return self.cache.get(key) or self._fetch_metadata([key], head_bytes=HEAD_BYTES)[key]

    def get_cached(self, key: bytes) -> KeyMetadata | None:
        """The attributes if they are cached; the server is not asked."""
        return self.cache.get(key)

    def get_cached_content(self, key: bytes) -> bytes | None:
        """A string's whole content if it is cached; the server is not asked."""
        return self.cache.peek_content(key)

    def _fetch_metadata(self, keys: Sequence[bytes], *, head_bytes: int = 0) -> dict[bytes, KeyMetadata]:
        found: dict[bytes, KeyMetadata] = {}
        left = list(keys)
        for _ in range(_MAX_FETCH_ATTEMPTS):
            with self.cache.begin_fetch() as fetch:
                types = self._client.execute_many([(b"TYPE", key) for key in left])
                left = self._fetch_details(fetch, dict(zip(left, types, strict=True)), found, head_bytes)
            if not left:
                return found
        raise BusyError(f"key {left[0]!r} keeps changing its type")

    def _fetch_details(
        self, token: FetchToken, types: dict[bytes, Any], results: dict[bytes, KeyMetadata], head_bytes: int
    ) -> list[bytes]:
        """Ask for the rest about keys of these types, and keep it; returns those that had changed their type."""
        timed = self._choose_ttl_queries(list(types), head_bytes)
        questions = [MetadataQuery.for_key(key, type, head_bytes, timed[key]) for key, type in types.items()]
        asked = time.monotonic()
        replies = iter(self._client.execute_many([command for question in questions for command in question.commands]))
        changed = []
        fresh: dict[bytes, tuple[KeyMetadata, bytes | None]] = {}
        for question in questions:
            try:
                fresh[question.key] = question.parse_replies([next(replies) for _ in question.commands], asked)
            except WrongTypeError:
                changed.append(question.key)
            except AccessError:
                results[question.key] = UNREADABLE
        self._cache_results(token, fresh, listed_together=True)
        results.update({key: attributes for key, (attributes, _) in fresh.items()})
        return changed

    def _choose_ttl_queries(self, keys: Sequence[bytes], head_bytes: int) -> dict[bytes, bool]:
        """Of which keys the TTL is to be asked: those looked at, all if any expires, those changed lately."""
        if head_bytes or self._freshness.may_expire():
            return dict.fromkeys(keys, True)
        return dict(zip(keys, self.cache.changed_recently(keys), strict=True))

    def _cache_results(
        self,
        token: FetchToken,
        results: dict[bytes, tuple[KeyMetadata, bytes | None]],
        *,
        listed_together: bool = False,
    ) -> None:
        self.cache.store(token, results, listed_together=listed_together)
        for key, (attributes, _) in results.items():
            if attributes.expires_at is not None:
                self._freshness.expires_at(key, attributes.expires_at)

    # -- contents -----------------------------------------------------------------------------------------------------

    def get_content(self, target: KeyRef) -> bytes | None:
        """The whole content of a string or field of up to 1 MiB, else None; at most one round trip if it was seen.

        Raises NotFoundError; WrongTypeError if the key is of another type (and then forgets what it was thought to be).
        """
        if target.field is not None:
            return self._get_field_content(target.key, target.field)
        content = self.cache.get_content(target.key)
        if content is not None:
            return content
        attributes = self.get_with_content(target.key)
        self._require_type(target.key, attributes, b"string")
        if attributes.length > CHUNK_BYTES:
            return None
        content = self.cache.get_content(target.key)
        return self._fetch_string(target.key, attributes) if content is None else content

    def _fetch_string(self, key: bytes, cached: KeyMetadata) -> bytes | None:
        """A string's content in one command, believing what is known of it; looked at anew if that is no longer so."""
        try:
            with self.cache.begin_fetch() as fetch:
                ahead = self.cache.select_prefetch(key)
                commands: list[RedisCommand] = [(b"GETRANGE", other, 0, MAX_PREFETCH_VALUE_BYTES) for other in ahead]
                content, *contents = self._client.execute_many([(b"GETRANGE", key, 0, CHUNK_BYTES), *commands])
                self._cache_prefetched(fetch, ahead, contents)
                if isinstance(content, RedisFuseError):
                    raise content
                if len(content) <= CHUNK_BYTES and (content or not cached.length):
                    self.cache.store(fetch, {key: (KeyMetadata(b"string", len(content), cached.expires_at), content)})
                    return bytes(content)
        except WrongTypeError:
            self.cache.invalidate([key])
            raise
        self.cache.invalidate([key])  # it is gone, was emptied, or is larger than it was
        attributes = self.get_with_content(key)
        self._require_type(key, attributes, b"string")
        return self.cache.get_content(key) if attributes.length <= CHUNK_BYTES else None

    def _cache_prefetched(self, token: FetchToken, expected: dict[bytes, KeyMetadata], contents: Sequence[Any]) -> None:
        """Keep what came along, where it is what it was thought to be; others are looked into when asked for."""
        fresh: dict[bytes, tuple[KeyMetadata, bytes | None]] = {}
        for (key, attributes), content in zip(expected.items(), contents, strict=True):
            if (
                isinstance(content, bytes)
                and len(content) <= MAX_PREFETCH_VALUE_BYTES
                and (content or not attributes.length)
            ):
                fresh[key] = KeyMetadata(b"string", len(content), attributes.expires_at), content
        self.cache.store(token, fresh)

    def _get_field_content(self, key: bytes, field: bytes) -> bytes | None:
        known = self.cache.get_fields([(key, field)])[0]
        if isinstance(known, bytes):
            return known
        if known is None or isinstance(known, UnknownField):
            self._require_type(key, self.get(key), b"hash")
        try:
            if known == -1 or (isinstance(known, UnknownField) and not self.cache.is_compact(key)):
                known = self._hash_fields.get_lengths([(key, field)])[0]
            if known is None:
                raise NotFoundError(f"hash {key!r} has no field {field!r}")
            return None if isinstance(known, int) and known > CHUNK_BYTES else self._hash_fields.fetch_value(key, field)
        except WrongTypeError:
            self.cache.invalidate([key])
            raise

    @staticmethod
    def _require_type(key: bytes, metadata: KeyMetadata, required_type: bytes) -> None:
        if metadata.type == b"none":
            raise NotFoundError(f"key {key!r} does not exist")
        if metadata.type == b"unreadable":
            raise AccessError(f"the server's ACL does not let this user read {key!r}")
        if metadata.type != required_type:
            raise WrongTypeError(
                f"key {key!r} is a {metadata.type.decode(errors='replace')}, not a {required_type.decode()}"
            )

    def get_range(self, key: bytes, offset: int, size: int) -> bytes:
        """A part of a string, not cached; cut at its end, empty if there is no such key. Raises WrongTypeError."""
        ends = range(offset, offset + size, CHUNK_BYTES)
        replies = self._client.execute_many(
            [(b"GETRANGE", key, n, min(n + CHUNK_BYTES, offset + size) - 1) for n in ends]
        )
        for reply in replies:
            if isinstance(reply, RedisFuseError):
                raise reply
        return b"".join(replies)

    def fetch_extended(self, key: bytes) -> ExtendedMetadata:
        """The extended attributes, fresh: one round trip if the key was seen. Raises NotFoundError, AccessError."""
        for _ in range(_MAX_FETCH_ATTEMPTS):
            attributes = self.get(key)
            if attributes.type == b"none":
                break
            command = length_command(attributes.type)
            commands: list[RedisCommand] = [(b"TYPE", key), (b"PTTL", key), (b"OBJECT", b"ENCODING", key)]
            type, ttl, encoding, *length = self._client.execute_many(
                [*commands, *([(command, key)] if command else [])]
            )
            if isinstance(type, RedisFuseError):
                raise type
            if type == attributes.type:
                return ExtendedMetadata(
                    type,
                    ttl if isinstance(ttl, int) else -1,
                    encoding if isinstance(encoding, bytes) else b"",
                    length[0] if length and isinstance(length[0], int) else -1,
                )
            self.cache.invalidate([key])
        raise NotFoundError(f"key {key!r} does not exist")

    # -- fields -------------------------------------------------------------------------------------------------------

    def resolve_field_or_key(
        self, hash_key: bytes, field: bytes, key: bytes
    ) -> tuple[KeyMetadata, int | None, KeyMetadata]:
        """What a name could be that reads as a field of `hash_key` and as a key, in two round trips.

        Returns the attributes of `hash_key`, the field's length in bytes (None: there is no such field), the
        attributes of `key`. Small contents of either come along into the cache, so that opening it asks nothing more.
        """
        for _ in range(_MAX_FETCH_ATTEMPTS):
            try:
                with self.cache.begin_fetch() as fetch:
                    return self._fetch_field_or_key(fetch, hash_key, field, key)
            except WrongTypeError:
                self.cache.invalidate([hash_key, key])
        raise BusyError(f"key {hash_key!r} or {key!r} keeps changing its type")

    def _fetch_field_or_key(
        self, token: FetchToken, hash_key: bytes, field: bytes, key: bytes
    ) -> tuple[KeyMetadata, int | None, KeyMetadata]:
        known = self.cache.get_many([hash_key, key])
        unknown = [name for name, attributes in zip((hash_key, key), known, strict=True) if attributes is None]
        compact = self.cache.is_compact(hash_key)
        types: dict[bytes, Any] = {}
        if unknown:
            commands: list[RedisCommand] = [(b"TYPE", name) for name in unknown]
            *replies, encoding = self._client.execute_many([*commands, (b"OBJECT", b"ENCODING", hash_key)])
            types = dict(zip(unknown, replies, strict=True))
            compact = encoding in COMPACT_ENCODINGS
        owner_type = types[hash_key] if known[0] is None else known[0].type
        value = self.cache.get_fields([(hash_key, field)])[0] if known[0] else UNKNOWN_FIELD
        probe: list[RedisCommand] = []
        if owner_type == b"hash" and (isinstance(value, UnknownField) or value == -1):
            probe = self._hash_fields.probe_commands(hash_key, field, compact=bool(compact))
        questions = [MetadataQuery.for_key(name, type, HEAD_BYTES, True) for name, type in types.items()]
        asked = time.monotonic()
        answers = self._client.execute_many(
            [*probe, *[command for question in questions for command in question.commands]]
        )
        replies, answers = answers[: len(probe)], answers[len(probe) :]
        fresh: dict[bytes, tuple[KeyMetadata, bytes | None]] = {}
        found = {name: attributes for name, attributes in zip((hash_key, key), known, strict=True) if attributes}
        for question in questions:
            count = len(question.commands)
            try:
                fresh[question.key] = question.parse_replies(answers[:count], asked)
                found[question.key] = fresh[question.key][0]
            except AccessError:
                found[question.key] = UNREADABLE
            answers = answers[count:]
        self._cache_results(token, fresh)
        if probe:
            value = self._hash_fields.parse_probe(replies)
            self.cache.store_fields(token, hash_key, {field: value}, compact=compact)
        if isinstance(value, bytes):
            return found[hash_key], len(value), found[key]
        return found[hash_key], value if isinstance(value, int) else None, found[key]

    def get_field_lengths(self, key: bytes, fields: Sequence[bytes]) -> list[int | None]:
        """The lengths of fields of one hash in bytes; None for one that doesn't exist."""
        return self._hash_fields.get_lengths([(key, field) for field in fields])

    def get_field_lengths_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[int | None]:
        """As `get_field_lengths`, of any (key, field) pairs: one round trip a batch of 1000."""
        return self._hash_fields.get_lengths(pairs)

    def list_fields(self, key: bytes, max_fields: int) -> list[bytes] | None:
        """As `list_fields_many`, of one key."""
        return self.list_fields_many([key], max_fields)[0]

    def list_fields_many(self, keys: Sequence[bytes], max_fields: int) -> list[list[bytes] | None]:
        """The fields of hashes, in no order; None for one with more than `limit`, and for what is no hash."""
        hashes = {
            key: attributes.length
            for key, attributes in zip(keys, self.get_many(keys), strict=True)
            if attributes.type == b"hash" and attributes.length <= max_fields
        }
        found = self._hash_fields.list_names(hashes, max_fields)
        return [found.get(key) for key in keys]

    def fields_exist(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Which of these (key, field) pairs exist; any type of key may be asked about."""
        keys = list(dict.fromkeys([key for key, _ in pairs]))
        hashes = {key for key, found in zip(keys, self.get_many(keys), strict=True) if found.type == b"hash"}
        existing = iter(self._hash_fields.exists_many([pair for pair in pairs if pair[0] in hashes]))
        return [key in hashes and next(existing) for key, _ in pairs]

    # -- what is no longer true ---------------------------------------------------------------------------------------

    def invalidate(self, keys: Collection[bytes]) -> None:
        """These keys changed: nothing that was known of them, or is being fetched now, is believed any more."""
        self.cache.invalidate(keys)

    def clear_recent_changes(self) -> None:
        """No key that was dropped by now has a time to live."""
        self.cache.clear_recent_changes()

    def invalidate_all(self) -> None:
        """Anything may have changed."""
        self.cache.invalidate_all()

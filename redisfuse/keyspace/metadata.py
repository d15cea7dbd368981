"""The metadata and small contents of keys and fields.

They are fetched in pipelines, and cached. At most two commands a key (TYPE, then the length command of that type), and
a third, PTTL, only if the database has keys that expire or the key changed recently: the server announces an expiry
late, so the deadline bounds how long an entry is valid. No command's cost depends on the size of the value: none
requests more than 1 MiB or 1000 elements.

Threads: any. No lock is held while waiting for the server, nor while `Freshness` is called.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, compress
from typing import Any

from more_itertools import chunked

from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import AccessError, BusyError, NotFoundError, WrongTypeError
from redisfuse.keyspace.extended import ExtendedMetadata, ExtendedMetadataReader
from redisfuse.keyspace.hash_fields import COMPACT_ENCODINGS, HashFields
from redisfuse.keyspace.listener import Freshness
from redisfuse.keyspace.metadata_cache import MetadataCache
from redisfuse.keyspace.metadata_entry import UNKNOWN_FIELD, FetchToken, KeyMetadata, UnknownField
from redisfuse.keyspace.prefetch import MIN_SEQUENTIAL_READS, Listing, SortKey
from redisfuse.keyspace.queries import ABSENT, UNREADABLE, build_commands, parse_all_replies
from redisfuse.keyspace.small_strings import SmallStrings
from redisfuse.paths.grammar import KeyRef

__all__ = ["ABSENT", "UNREADABLE", "ExtendedMetadata", "KeyMetadata", "MetadataStore"]

HEAD_BYTES = 16 << 10  # first bytes of a string that are fetched with its metadata, if it is likely to be opened

_MAX_KEYS_PER_BATCH = 1000  # so that a fetch is short
_MIN_STRINGS_IN_SUCCESSION = 8  # after which the next key is expected to be a string: an error reply if it is not
_MAX_FETCH_ATTEMPTS = 4  # for keys that change their type between two commands


class MetadataStore:
    """The metadata and small contents of keys and fields.

    `max_cache_bytes` bounds the cache. `freshness` says how long an entry is valid. `sort_key`: an order in which
    programs may read keys, besides that of their names (prefetch.py).
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
        self._strings = SmallStrings(client, self.cache)
        self._hash_fields = HashFields(client, self.cache)
        self._extended = ExtendedMetadataReader(client, self.cache, freshness)
        self._strings_in_succession = 0  # keys fetched one by one; a hint without a lock

    @property
    def hits(self) -> int:
        """The number of look-ups that the cache answered."""
        return self.cache.hits

    @property
    def misses(self) -> int:
        """The number of look-ups that the server had to answer."""
        return self.cache.misses

    # -- keys ---------------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> KeyMetadata:
        """Return the metadata of one key, as `get_many`."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[bytes], listing: Listing | None = None) -> list[KeyMetadata]:
        """Return the metadata of keys, in order.

        Two round trips for each 1000 keys that are not cached. ABSENT for a key that does not exist, UNREADABLE for one
        that the ACL hides. `listing`: the one that `keys` continue; without it, many keys are one. Raises
        UnavailableError and the like.
        """
        cached = self.cache.get_many(keys)
        missing = list(dict.fromkeys([key for key, metadata in zip(keys, cached, strict=True) if metadata is None]))
        if not missing:
            return [metadata for metadata in cached if metadata is not None]
        if listing is None and len(missing) > MIN_SEQUENTIAL_READS:
            listing = Listing()
        fetched: dict[bytes, KeyMetadata] = {}
        for batch in chunked(missing, _MAX_KEYS_PER_BATCH):
            fetched |= self._fetch_metadata(batch, listing=listing)
        return [metadata or fetched[key] for key, metadata in zip(keys, cached, strict=True)]

    def get_with_content(self, key: bytes) -> KeyMetadata:
        """Return the metadata of a key that is likely to be opened.

        Fetches its first 16 KiB in the same round trips: two, or one if the last keys that were fetched so are strings.
        """
        metadata = self.cache.get(key)
        if metadata is None and self._strings_in_succession >= _MIN_STRINGS_IN_SUCCESSION:
            metadata = self._fetch_expected_string(key)
        if metadata is None:
            metadata = self._fetch_metadata([key], head_bytes=HEAD_BYTES)[key]
        if metadata.type == b"string":
            self._strings_in_succession += 1
        else:
            self._strings_in_succession = 0
        return metadata

    def _fetch_expected_string(self, key: bytes) -> KeyMetadata | None:
        """Return the metadata of a key that is probably a string, in one round trip.

        Returns None if the key has another type, or its value more than HEAD_BYTES.
        """
        with self.cache.begin_fetch() as token:
            sent_at = time.monotonic()
            commands: list[RedisCommand] = [(b"TYPE", key), (b"GETRANGE", key, 0, HEAD_BYTES - 1), (b"PTTL", key)]
            type, content, ttl = self._client.execute_many(commands)
            if type != b"string" or not isinstance(content, bytes) or not isinstance(ttl, int):
                return None
            if ttl == -2 or len(content) == HEAD_BYTES:
                return None
            metadata = KeyMetadata(b"string", len(content), sent_at + ttl / 1000 if ttl >= 0 else None)
            self._cache_results(token, {key: (metadata, content)}, with_expiry=(key,))
        return metadata

    def get_cached(self, key: bytes) -> KeyMetadata | None:
        """Return the metadata if it is cached; sends no command."""
        return self.cache.get(key)

    def _fetch_metadata(
        self, keys: Sequence[bytes], *, head_bytes: int = 0, listing: Listing | None = None
    ) -> dict[bytes, KeyMetadata]:
        results: dict[bytes, KeyMetadata] = {}
        remaining = list(keys)
        for _ in range(_MAX_FETCH_ATTEMPTS):
            with self.cache.begin_fetch() as token:
                types = self._client.execute_many([(b"TYPE", key) for key in remaining])
                type_by_key = dict(zip(remaining, types, strict=True))
                remaining = self._fetch_details(token, type_by_key, results, head_bytes, listing)
            if not remaining:
                return results
        raise BusyError(f"key {remaining[0]!r} keeps changing its type; try again later")

    def _fetch_details(
        self,
        token: FetchToken,
        types: dict[bytes, Any],
        results: dict[bytes, KeyMetadata],
        head_bytes: int,
        listing: Listing | None,
    ) -> list[bytes]:
        """Fetch and cache the metadata of keys of these types.

        Returns the keys that have changed their type.
        """
        with_ttl = self._choose_ttl_queries(types, head_bytes)
        queries = [
            build_commands(key, type, head_bytes, includes_ttl=includes_ttl)
            for (key, type), includes_ttl in zip(types.items(), with_ttl, strict=True)
        ]
        sent_at = time.monotonic()
        replies = self._client.execute_many(list(chain.from_iterable(queries)))
        parsed = parse_all_replies(types, queries, replies, head_bytes, sent_at)
        results |= parsed.metadata
        self._cache_results(token, parsed.fetched, listing=listing, with_expiry=set(compress(types, with_ttl)))
        return parsed.changed

    def _choose_ttl_queries(self, keys: Collection[bytes], head_bytes: int) -> list[bool]:
        """Return of which keys to fetch the TTL.

        All if any key expires or the keys are likely to be opened, else those that changed recently.
        """
        if head_bytes or self._freshness.may_expire():
            return [True] * len(keys)
        return self.cache.changed_recently(keys)

    def _cache_results(
        self,
        token: FetchToken,
        results: dict[bytes, tuple[KeyMetadata, bytes | None]],
        *,
        listing: Listing | None = None,
        with_expiry: Collection[bytes] = (),
    ) -> None:
        self.cache.store(token, results, listing=listing, with_expiry=with_expiry)
        for key, (metadata, _) in results.items():
            if metadata.expires_at is not None:
                self._freshness.expires_at(key, metadata.expires_at)

    # -- contents -----------------------------------------------------------------------------------------------------

    def get_content(self, target: KeyRef) -> bytes | None:
        """Return the content of a string or field of up to 1 MiB, else None.

        At most one round trip if the metadata is cached. Raises NotFoundError, and WrongTypeError if the key is of
        another type, whose cached metadata is then dropped.
        """
        if target.field is not None:
            return self._get_field_content(target.key, target.field)
        content = self.cache.get_content(target.key)
        if content is not None:
            return content
        metadata = self.get_with_content(target.key)
        self._require_type(target.key, metadata, b"string")
        if metadata.length > CHUNK_BYTES:
            return None
        content = self.cache.get_content(target.key)
        return self._fetch_string(target.key, metadata) if content is None else content

    def _fetch_string(self, key: bytes, cached: KeyMetadata) -> bytes | None:
        """Fetch a string's content; if its metadata is outdated, fetch that again."""
        try:
            content = self._strings.fetch(key, cached)
        except WrongTypeError:
            self.cache.invalidate([key])
            raise
        if content is not None:
            return content
        self.cache.invalidate([key])  # the string was deleted, emptied, or has grown
        metadata = self.get_with_content(key)
        self._require_type(key, metadata, b"string")
        return self.cache.get_content(key) if metadata.length <= CHUNK_BYTES else None

    def _get_field_content(self, key: bytes, field: bytes) -> bytes | None:
        value = self.cache.get_fields([(key, field)])[0]
        if isinstance(value, bytes):
            return value
        if value is None or isinstance(value, UnknownField):
            self._require_type(key, self.get(key), b"hash")
        try:
            if value == -1 or (isinstance(value, UnknownField) and not self.cache.is_compact(key)):
                value = self._hash_fields.get_lengths([(key, field)])[0]
            if value is None:
                raise NotFoundError(f"hash {key!r} has no field {field!r}")
            return None if isinstance(value, int) and value > CHUNK_BYTES else self._hash_fields.fetch_value(key, field)
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

    def get_extended(self, key: bytes) -> ExtendedMetadata:
        """Return the metadata that the extended attributes of a key show.

        One round trip for several keys, if their metadata is cached. Raises NotFoundError, AccessError.
        """
        for _ in range(_MAX_FETCH_ATTEMPTS):
            metadata = self.get(key)
            if metadata.type == b"none":
                break
            if metadata.type == UNREADABLE.type:
                raise AccessError(f"the server's ACL does not let this user read {key!r}")
            extended = self._extended.get(key, metadata)
            if extended is not None:
                return extended
            self.cache.invalidate([key])
        raise NotFoundError(f"key {key!r} does not exist")

    def get_field_expiry(self, key: bytes, field: bytes) -> float | None:
        """Return a hash field's own expiry (time.monotonic()); None if it has none.

        Raises NotFoundError.
        """
        return self._extended.get_field_expiry(key, field, self.cache.get_field_names(key) or ())

    # -- fields -------------------------------------------------------------------------------------------------------

    def resolve_field_or_key(
        self, hash_key: bytes, field: bytes, key: bytes
    ) -> tuple[KeyMetadata, int | None, KeyMetadata]:
        """Resolve a name that may mean a field of `hash_key`, or a key.

        Takes two round trips. Returns the metadata of `hash_key`, the field's length in bytes (None: there is no such
        field), and the metadata of `key`. Small contents of either are cached, so that opening it sends no further
        commands.
        """
        for _ in range(_MAX_FETCH_ATTEMPTS):
            try:
                with self.cache.begin_fetch() as token:
                    return self._fetch_field_or_key(token, hash_key, field, key)
            except WrongTypeError:
                self.cache.invalidate([hash_key, key])
        raise BusyError(f"key {hash_key!r} or {key!r} keeps changing its type; try again later")

    def _fetch_field_or_key(
        self, token: FetchToken, hash_key: bytes, field: bytes, key: bytes
    ) -> tuple[KeyMetadata, int | None, KeyMetadata]:
        cached = self.cache.get_many([hash_key, key])
        unknown = [name for name, metadata in zip((hash_key, key), cached, strict=True) if metadata is None]
        compact = self.cache.is_compact(hash_key)
        types: dict[bytes, Any] = {}
        if unknown:
            commands: list[RedisCommand] = [(b"TYPE", name) for name in unknown]
            if compact is None and (cached[0] or not cached[1] or cached[1].type == b"none"):
                commands.append((b"OBJECT", b"ENCODING", hash_key))  # unless the other key exists, it may be a hash
            replies = self._client.execute_many(commands)
            types = dict(zip(unknown, replies, strict=False))
            if len(replies) > len(unknown):
                compact = replies[-1] in COMPACT_ENCODINGS
        hash_key_type = types[hash_key] if cached[0] is None else cached[0].type
        value = self.cache.get_fields([(hash_key, field)])[0] if cached[0] else UNKNOWN_FIELD
        probe: list[RedisCommand] = []
        if hash_key_type == b"hash" and (isinstance(value, UnknownField) or value == -1):
            probe = self._hash_fields.probe_commands(hash_key, field, compact=bool(compact))
        queries = [build_commands(name, type, HEAD_BYTES, includes_ttl=True) for name, type in types.items()]
        sent_at = time.monotonic()
        replies = self._client.execute_many([*probe, *chain.from_iterable(queries)])
        parsed = parse_all_replies(types, queries, replies[len(probe) :], HEAD_BYTES, sent_at)
        if parsed.changed:
            raise WrongTypeError(f"the type of {parsed.changed[0]!r} has changed")
        results = {name: metadata for name, metadata in zip((hash_key, key), cached, strict=True) if metadata}
        results |= parsed.metadata
        self._cache_results(token, parsed.fetched, with_expiry=parsed.fetched)
        if probe:
            value = self._hash_fields.parse_probe(replies[: len(probe)])
            self.cache.store_fields(token, hash_key, {field: value}, compact=compact)
        length = len(value) if isinstance(value, bytes) else value if isinstance(value, int) else None
        return results[hash_key], length, results[key]

    def get_field_lengths(self, key: bytes, fields: Sequence[bytes]) -> list[int | None]:
        """Return the lengths of fields of one hash, in bytes.

        None for a field that does not exist.
        """
        return self._hash_fields.get_lengths([(key, field) for field in fields])

    def get_field_lengths_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[int | None]:
        """Return the lengths of any (key, field) pairs.

        As `get_field_lengths`; one round trip for each 1000.
        """
        return self._hash_fields.get_lengths(pairs)

    def list_fields(self, key: bytes, max_fields: int) -> list[bytes] | None:
        """Return the fields of one hash, as `list_fields_many`."""
        return self.list_fields_many([key], max_fields)[0]

    def list_fields_many(self, keys: Sequence[bytes], max_fields: int) -> list[list[bytes] | None]:
        """Return the fields of hashes, unordered.

        None for a hash with more than `max_fields`, and for other types.
        """
        field_counts = {
            key: metadata.length
            for key, metadata in zip(keys, self.get_many(keys), strict=True)
            if metadata.type == b"hash" and metadata.length <= max_fields
        }
        names_by_key = self._hash_fields.list_names(field_counts, max_fields)
        return [names_by_key.get(key) for key in keys]

    def iter_field_lengths(self, key: bytes) -> Iterator[dict[bytes, int]]:
        """Yield the fields of one hash, of any size, with their lengths in bytes.

        They are yielded in pieces, each field once. Ends if the key is no hash any more.
        """
        metadata = self.get_with_content(key)
        if metadata.type == b"hash":
            yield from self._hash_fields.iter_lengths(key, metadata.length)

    def fields_exist(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Return whether each of these (key, field) pairs exists.

        The keys may be of any type.
        """
        keys = list(dict.fromkeys([key for key, _ in pairs]))
        hashes = {key for key, metadata in zip(keys, self.get_many(keys), strict=True) if metadata.type == b"hash"}
        existing = iter(self._hash_fields.exists_many([pair for pair in pairs if pair[0] in hashes]))
        return [key in hashes and next(existing) for key, _ in pairs]

    # -- invalidation -------------------------------------------------------------------------------------------------

    def invalidate(self, keys: Collection[bytes]) -> None:
        """Drop what is cached of changed keys.

        What running fetches return about them is ignored.
        """
        self.cache.invalidate(keys)

    def clear_recent_changes(self) -> None:
        """Forget the recently changed keys: none of them has a time to live."""
        self.cache.clear_recent_changes()

    def invalidate_all(self) -> None:
        """Drop everything: any key may have changed."""
        self.cache.invalidate_all()

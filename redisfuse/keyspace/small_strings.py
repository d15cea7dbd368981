"""The contents of small strings.

Part of metadata.py, whose cache it shares. Small strings that a program is likely to request next are fetched in the
same round trip.
"""

from collections.abc import Sequence
from typing import Any

from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import RedisFuseError
from redisfuse.keyspace.metadata_cache import MetadataCache
from redisfuse.keyspace.metadata_entry import FetchToken, KeyMetadata
from redisfuse.keyspace.prefetch import MAX_PREFETCH_VALUE_BYTES


class SmallStrings:
    """Fetches strings of up to 1 MiB. Threads: any; no lock of its own."""

    def __init__(self, client: RedisClient, cache: MetadataCache) -> None:
        self._client = client
        self._cache = cache

    def fetch(self, key: bytes, expected: KeyMetadata) -> bytes | None:
        """Fetch and cache a string's content with one command.

        None if it differs from its expected metadata: it was deleted or emptied, or has grown beyond 1 MiB. Raises
        WrongTypeError.
        """
        with self._cache.begin_fetch() as token:
            prefetched = self._cache.select_prefetch(key)
            commands: list[RedisCommand] = [(b"GETRANGE", other, 0, MAX_PREFETCH_VALUE_BYTES) for other in prefetched]
            content, *contents = self._client.execute_many([(b"GETRANGE", key, 0, CHUNK_BYTES), *commands])
            self._cache_prefetched(token, prefetched, contents)
            if isinstance(content, RedisFuseError):
                raise content
            if len(content) > CHUNK_BYTES or (not content and expected.length):
                return None
            self._cache.store(token, {key: (KeyMetadata(b"string", len(content), expected.expires_at), content)})
            return bytes(content)

    def _cache_prefetched(self, token: FetchToken, expected: dict[bytes, KeyMetadata], contents: Sequence[Any]) -> None:
        """Cache prefetched contents that match their metadata.

        Others are fetched when they are requested.
        """
        results: dict[bytes, tuple[KeyMetadata, bytes | None]] = {}
        for (key, metadata), content in zip(expected.items(), contents, strict=True):
            if (
                isinstance(content, bytes)
                and len(content) <= MAX_PREFETCH_VALUE_BYTES
                and (content or not metadata.length)
            ):
                results[key] = KeyMetadata(b"string", len(content), metadata.expires_at), content
        self._cache.store(token, results)

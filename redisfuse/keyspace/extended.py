"""The metadata that only extended attributes show: encodings and expiries.

They are fetched for several keys together while a program requests them in the order of a listing, and cached with the
other metadata. An absolute expiry is as valid as any of it: the server announces a new one.

Threads: any; no lock of its own.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.errors import NotFoundError, RedisFuseError, UnavailableError
from redisfuse.keyspace.listener import Freshness
from redisfuse.keyspace.metadata_cache import MetadataCache
from redisfuse.keyspace.metadata_entry import ExtendedEntry, KeyMetadata, UnknownField

_MAX_FIELDS_PER_COMMAND = 1000


@dataclass(frozen=True, slots=True)
class ExtendedMetadata:
    """The metadata that a key's extended attributes show."""

    type: bytes
    expires_at: float | None  # time.monotonic(); None: never
    encoding: bytes  # as OBJECT ENCODING returns it; empty if unknown
    length: int  # as in KeyMetadata

    @property
    def ttl_ms(self) -> int:
        """The milliseconds until it expires; -1: never."""
        return remaining_ms(self.expires_at)


def remaining_ms(expires_at: float | None) -> int:
    """Return the milliseconds until a time; -1 for None."""
    return -1 if expires_at is None else max(0, round((expires_at - time.monotonic()) * 1000))


class ExtendedMetadataReader:
    """Fetches extended metadata of keys whose metadata is known."""

    def __init__(self, client: RedisClient, cache: MetadataCache, freshness: Freshness) -> None:
        self._client = client
        self._cache = cache
        self._freshness = freshness

    def get(self, key: bytes, metadata: KeyMetadata) -> ExtendedMetadata | None:
        """Return the extended metadata of a key; None if the key is gone."""
        extended = self._get_cached([key])[0]
        if extended.encoding is None or not extended.is_expiry_known:
            extended = self._fetch(key)
        if extended.encoding is None:
            return None
        return ExtendedMetadata(metadata.type, extended.expires_at, extended.encoding, metadata.length)

    def _get_cached(self, keys: Sequence[bytes]) -> list[ExtendedEntry]:
        """Return what is known: of keys that can't expire, the expiry is."""
        cached = self._cache.get_extended(keys)
        if self._freshness.may_expire():
            return cached
        recent = self._cache.changed_recently(keys)
        return [
            entry if is_recent else entry._replace(is_expiry_known=True)
            for entry, is_recent in zip(cached, recent, strict=True)
        ]

    def _fetch(self, key: bytes) -> ExtendedEntry:
        """Fetch the extended metadata of a key and of those that follow it.

        The encoding is None if the key is gone.
        """
        with self._cache.begin_fetch() as token:
            keys = self._cache.select_extended(key)
            cached = self._get_cached(keys)
            queries = [
                [
                    *([(b"OBJECT", b"ENCODING", each)] if entry.encoding is None else []),
                    *([] if entry.is_expiry_known else [(b"PTTL", each)]),
                ]
                for each, entry in zip(keys, cached, strict=True)
            ]
            sent_at = time.monotonic()
            commands: list[RedisCommand] = [command for query in queries for command in query]
            replies = iter(self._client.execute_many(commands))
            results: dict[bytes, ExtendedEntry] = {}
            for each, entry, query in zip(keys, cached, queries, strict=True):
                results[each] = _merge(entry, {command[0]: next(replies) for command in query}, sent_at)
            gone = [each for each, entry in results.items() if entry.encoding is None]
            self._cache.invalidate(gone)
            self._cache.store_extended(token, {each: entry for each, entry in results.items() if each not in gone})
        for each, entry in results.items():
            if entry.expires_at is not None:
                self._freshness.expires_at(each, entry.expires_at)
        return results[key]

    def get_field_expiry(self, key: bytes, field: bytes, listed: Sequence[bytes]) -> float | None:
        """Return a hash field's own expiry (time.monotonic()); None if it has none.

        `listed`: the fields of the hash, if they are known; those that follow are fetched too, then
        those that precede. Raises NotFoundError; WrongTypeError if the key is not a hash.
        """
        cached = self._cache.get_field_expiry(key, field)
        if not isinstance(cached, UnknownField):
            return cached
        position = listed.index(field) if field in listed else len(listed)
        fields = [field, *listed[position + 1 :], *listed[:position]][:_MAX_FIELDS_PER_COMMAND]
        with self._cache.begin_fetch() as token:
            sent_at = time.monotonic()
            ttls = self._client.execute(b"HPTTL", key, b"FIELDS", len(fields), *fields)
            if not ttls or ttls[0] == -2:
                raise NotFoundError(f"hash {key!r} has no field {field!r}")
            expiries = {
                name: sent_at + ttl / 1000 if ttl >= 0 else None
                for name, ttl in zip(fields, ttls, strict=False)
                if ttl != -2
            }
            self._cache.store_field_expiries(token, key, expiries)
        return expiries[field]


def _merge(cached: ExtendedEntry, replies: dict[bytes, Any], sent_at: float) -> ExtendedEntry:
    """Complete what is cached of a key with replies by command.

    What the ACL denies counts as unknown: an empty encoding, no expiry. The encoding is None if the key is gone. Raises
    UnavailableError.
    """
    for reply in replies.values():
        if isinstance(reply, UnavailableError):
            raise reply
    encoding, ttl = replies.get(b"OBJECT", cached.encoding), replies.get(b"PTTL")
    if encoding is None or ttl == -2:
        return ExtendedEntry(None, False, None)
    expires_at = cached.expires_at
    if b"PTTL" in replies:
        expires_at = sent_at + ttl / 1000 if isinstance(ttl, int) and ttl >= 0 else None
    is_expiry_known = cached.is_expiry_known or b"PTTL" in replies
    return ExtendedEntry(b"" if isinstance(encoding, RedisFuseError) else encoding, is_expiry_known, expires_at)

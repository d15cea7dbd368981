"""What keys and fields are, how long they are, and their small contents: asked in pipelined batches, and cached.

At most two commands a key (TYPE, then the length command of that type), and a third, PTTL, only where keys that
expire are known or suspected: nobody tells of an expiry in time, so the deadline bounds how long an entry is
believed. Each command costs the same however large the value: nothing here asks for more than 1 MiB or 1000 elements.

Threads: any. No lock is held while the server is asked, nor while `on_deadline` is called.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from redisfuse.batching import CHUNK_BYTES, batched
from redisfuse.client.client import Command, Server
from redisfuse.errors import AccessError, BusyError, NotFoundError, RedisFuseError, WrongTypeError
from redisfuse.keyspace.hash_fields import COMPACT, Fields
from redisfuse.keyspace.metadata_cache import UNKNOWN, Attributes, Cache, Fetch, Unknown
from redisfuse.keyspace.prefetch import LONGEST, Order
from redisfuse.keyspace.queries import ABSENT, Question
from redisfuse.paths.grammar import Target
from redisfuse.rendering.renderer import length_command

__all__ = ["ABSENT", "UNREADABLE", "AttributeStore", "Attributes", "Extended"]

BEGINNING = 16 << 10  # bytes of a string that a look brings along

UNREADABLE = Attributes(b"unreadable", -1)

_BATCH = 1000  # keys, so that a fetch is short
_ATTEMPTS = 4  # at keys that become another type between two commands


@dataclass(frozen=True, slots=True)
class Extended:
    """What the extended attributes tell of a key."""

    type: bytes
    ttl: int  # milliseconds; -1: none
    encoding: bytes  # empty if the server doesn't say
    length: int  # as in Attributes


class AttributeStore:
    """Attributes and small contents of keys and fields.

    `memory` bounds the cache, in bytes. `trust()` says how many seconds an entry may be believed: math.inf while the
    server tells of every change (through `drop`), little otherwise. `volatile()` says whether the database has keys
    that expire; `on_deadline(key, when)` is told (time.monotonic()) when one of those that were looked at will.
    `order`: what keys may be sorted by when they are read one after the other, beside their names (ahead.py).
    """

    def __init__(
        self,
        server: Server,
        *,
        memory: int = 64 << 20,
        trust: Callable[[], float],
        volatile: Callable[[], bool] = lambda: True,
        on_deadline: Callable[[bytes, float], None] | None = None,
        order: Order = len,
    ) -> None:
        self._server = server
        self._volatile = volatile
        self._on_deadline = on_deadline
        self.cache = Cache(memory, trust, order)
        self._fields = Fields(server, self.cache)

    @property
    def hits(self) -> int:
        """Questions about attributes and contents that cost the server nothing."""
        return self.cache.hits

    @property
    def misses(self) -> int:
        """Those that had to be asked."""
        return self.cache.misses

    # -- keys ---------------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> Attributes:
        """As `get_many`, of one key."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[bytes]) -> list[Attributes]:
        """The attributes of keys, in their order: two round trips a batch of 1000, none for what is cached.

        ABSENT for a key that doesn't exist, UNREADABLE for one that the ACL hides. Raises UnavailableError and the
        like.
        """
        known = self.cache.attributes(keys)
        missing = list(dict.fromkeys([key for key, found in zip(keys, known, strict=True) if found is None]))
        if not missing:
            return [found for found in known if found is not None]
        fetched: dict[bytes, Attributes] = {}
        for batch in batched(missing, _BATCH):
            fetched |= self._fetch(batch)
        return [found or fetched[key] for key, found in zip(keys, known, strict=True)]

    def look(self, key: bytes) -> Attributes:
        """As `get`, for a key that is likely to be opened: its first 16 KiB come in the same two round trips."""
        return self.cache.attribute(key) or self._fetch([key], beginning=BEGINNING)[key]

    def known(self, key: bytes) -> Attributes | None:
        """The attributes if they are cached; the server is not asked."""
        return self.cache.attribute(key)

    def present(self, key: bytes) -> bytes | None:
        """A string's whole content if it is cached; the server is not asked."""
        return self.cache.present(key)

    def _fetch(self, keys: Sequence[bytes], *, beginning: int = 0) -> dict[bytes, Attributes]:
        found: dict[bytes, Attributes] = {}
        left = list(keys)
        for _ in range(_ATTEMPTS):
            with self.cache.fetching() as fetch:
                types = self._server.ask_many([(b"TYPE", key) for key in left])
                left = self._detail(fetch, dict(zip(left, types, strict=True)), found, beginning)
            if not left:
                return found
        raise BusyError(f"key {left[0]!r} keeps changing its type")

    def _detail(
        self, fetch: Fetch, types: dict[bytes, Any], found: dict[bytes, Attributes], beginning: int
    ) -> list[bytes]:
        """Ask for the rest about keys of these types, and keep it; returns those that had changed their type."""
        timed = self._timed(list(types), beginning)
        questions = [Question.of(key, type, beginning, timed[key]) for key, type in types.items()]
        asked = time.monotonic()
        replies = iter(self._server.ask_many([command for question in questions for command in question.commands]))
        changed = []
        fresh: dict[bytes, tuple[Attributes, bytes | None]] = {}
        for question in questions:
            try:
                fresh[question.key] = question.answer([next(replies) for _ in question.commands], asked)
            except WrongTypeError:
                changed.append(question.key)
            except AccessError:
                found[question.key] = UNREADABLE
        self._keep(fetch, fresh, together=True)
        found.update({key: attributes for key, (attributes, _) in fresh.items()})
        return changed

    def _timed(self, keys: Sequence[bytes], beginning: int) -> dict[bytes, bool]:
        """Of which keys the TTL is to be asked: those looked at, all if any expires, those changed lately."""
        if beginning or self._volatile():
            return dict.fromkeys(keys, True)
        return dict(zip(keys, self.cache.changed_lately(keys), strict=True))

    def _keep(
        self, fetch: Fetch, fresh: dict[bytes, tuple[Attributes, bytes | None]], *, together: bool = False
    ) -> None:
        self.cache.store(fetch, fresh, together=together)
        if self._on_deadline is not None:
            for key, (attributes, _) in fresh.items():
                if attributes.expires is not None:
                    self._on_deadline(key, attributes.expires)

    # -- contents -----------------------------------------------------------------------------------------------------

    def content(self, target: Target) -> bytes | None:
        """The whole content of a string or field of up to 1 MiB, else None; at most one round trip if it was seen.

        Raises NotFoundError; WrongTypeError if the key is of another type (and then forgets what it was thought to be).
        """
        if target.field is not None:
            return self._field_content(target.key, target.field)
        content = self.cache.content(target.key)
        if content is not None:
            return content
        attributes = self.look(target.key)
        self._require(target.key, attributes, b"string")
        if attributes.length > CHUNK_BYTES:
            return None
        content = self.cache.content(target.key)
        return self._string(target.key, attributes) if content is None else content

    def _string(self, key: bytes, known: Attributes) -> bytes | None:
        """A string's content in one command, believing what is known of it; looked at anew if that is no longer so."""
        try:
            with self.cache.fetching() as fetch:
                ahead = self.cache.ahead(key)
                commands: list[Command] = [(b"GETRANGE", other, 0, LONGEST) for other in ahead]
                content, *contents = self._server.ask_many([(b"GETRANGE", key, 0, CHUNK_BYTES), *commands])
                self._keep_ahead(fetch, ahead, contents)
                if isinstance(content, RedisFuseError):
                    raise content
                if len(content) <= CHUNK_BYTES and (content or not known.length):
                    self.cache.store(fetch, {key: (Attributes(b"string", len(content), known.expires), content)})
                    return bytes(content)
        except WrongTypeError:
            self.cache.drop([key])
            raise
        self.cache.drop([key])  # it is gone, was emptied, or is larger than it was
        attributes = self.look(key)
        self._require(key, attributes, b"string")
        return self.cache.content(key) if attributes.length <= CHUNK_BYTES else None

    def _keep_ahead(self, fetch: Fetch, known: dict[bytes, Attributes], contents: Sequence[Any]) -> None:
        """Keep what came along, where it is what it was thought to be; others are looked into when asked for."""
        fresh: dict[bytes, tuple[Attributes, bytes | None]] = {}
        for (key, attributes), content in zip(known.items(), contents, strict=True):
            if isinstance(content, bytes) and len(content) <= LONGEST and (content or not attributes.length):
                fresh[key] = Attributes(b"string", len(content), attributes.expires), content
        self.cache.store(fetch, fresh)

    def _field_content(self, key: bytes, field: bytes) -> bytes | None:
        known = self.cache.fields([(key, field)])[0]
        if isinstance(known, bytes):
            return known
        if known is None or isinstance(known, Unknown):
            self._require(key, self.get(key), b"hash")
        try:
            if known == -1 or (isinstance(known, Unknown) and not self.cache.compact(key)):
                known = self._fields.lengths([(key, field)])[0]
            if known is None:
                raise NotFoundError(f"hash {key!r} has no field {field!r}")
            return None if isinstance(known, int) and known > CHUNK_BYTES else self._fields.value(key, field)
        except WrongTypeError:
            self.cache.drop([key])
            raise

    @staticmethod
    def _require(key: bytes, attributes: Attributes, type: bytes) -> None:
        if attributes.type == b"none":
            raise NotFoundError(f"key {key!r} does not exist")
        if attributes.type == b"unreadable":
            raise AccessError(f"the server's ACL does not let this user read {key!r}")
        if attributes.type != type:
            raise WrongTypeError(f"key {key!r} is a {attributes.type.decode(errors='replace')}, not a {type.decode()}")

    def piece(self, key: bytes, offset: int, size: int) -> bytes:
        """A part of a string, not cached; cut at its end, empty if there is no such key. Raises WrongTypeError."""
        ends = range(offset, offset + size, CHUNK_BYTES)
        replies = self._server.ask_many([(b"GETRANGE", key, n, min(n + CHUNK_BYTES, offset + size) - 1) for n in ends])
        for reply in replies:
            if isinstance(reply, RedisFuseError):
                raise reply
        return b"".join(replies)

    def extended(self, key: bytes) -> Extended:
        """The extended attributes, fresh: one round trip if the key was seen. Raises NotFoundError, AccessError."""
        for _ in range(_ATTEMPTS):
            attributes = self.get(key)
            if attributes.type == b"none":
                break
            command = length_command(attributes.type)
            commands: list[Command] = [(b"TYPE", key), (b"PTTL", key), (b"OBJECT", b"ENCODING", key)]
            type, ttl, encoding, *length = self._server.ask_many([*commands, *([(command, key)] if command else [])])
            if isinstance(type, RedisFuseError):
                raise type
            if type == attributes.type:
                return Extended(
                    type,
                    ttl if isinstance(ttl, int) else -1,
                    encoding if isinstance(encoding, bytes) else b"",
                    length[0] if length and isinstance(length[0], int) else -1,
                )
            self.cache.drop([key])
        raise NotFoundError(f"key {key!r} does not exist")

    # -- fields -------------------------------------------------------------------------------------------------------

    def look_field(self, hash_key: bytes, field: bytes, key: bytes) -> tuple[Attributes, int | None, Attributes]:
        """What a name could be that reads as a field of `hash_key` and as a key, in two round trips.

        Returns the attributes of `hash_key`, the field's length in bytes (None: there is no such field), the
        attributes of `key`. Small contents of either come along into the cache, so that opening it asks nothing more.
        """
        for _ in range(_ATTEMPTS):
            try:
                with self.cache.fetching() as fetch:
                    return self._look_field(fetch, hash_key, field, key)
            except WrongTypeError:
                self.cache.drop([hash_key, key])
        raise BusyError(f"key {hash_key!r} or {key!r} keeps changing its type")

    def _look_field(
        self, fetch: Fetch, hash_key: bytes, field: bytes, key: bytes
    ) -> tuple[Attributes, int | None, Attributes]:
        known = self.cache.attributes([hash_key, key])
        unknown = [name for name, attributes in zip((hash_key, key), known, strict=True) if attributes is None]
        compact = self.cache.compact(hash_key)
        types: dict[bytes, Any] = {}
        if unknown:
            commands: list[Command] = [(b"TYPE", name) for name in unknown]
            *replies, encoding = self._server.ask_many([*commands, (b"OBJECT", b"ENCODING", hash_key)])
            types = dict(zip(unknown, replies, strict=True))
            compact = encoding in COMPACT
        owner_type = types[hash_key] if known[0] is None else known[0].type
        value = self.cache.fields([(hash_key, field)])[0] if known[0] else UNKNOWN
        probe: list[Command] = []
        if owner_type == b"hash" and (isinstance(value, Unknown) or value == -1):
            probe = self._fields.probe(hash_key, field, compact=bool(compact))
        questions = [Question.of(name, type, BEGINNING, True) for name, type in types.items()]
        asked = time.monotonic()
        answers = self._server.ask_many([*probe, *[command for question in questions for command in question.commands]])
        replies, answers = answers[: len(probe)], answers[len(probe) :]
        fresh: dict[bytes, tuple[Attributes, bytes | None]] = {}
        found = {name: attributes for name, attributes in zip((hash_key, key), known, strict=True) if attributes}
        for question in questions:
            count = len(question.commands)
            try:
                fresh[question.key] = question.answer(answers[:count], asked)
                found[question.key] = fresh[question.key][0]
            except AccessError:
                found[question.key] = UNREADABLE
            answers = answers[count:]
        self._keep(fetch, fresh)
        if probe:
            value = self._fields.probed(replies)
            self.cache.store_fields(fetch, hash_key, {field: value}, compact=compact)
        if isinstance(value, bytes):
            return found[hash_key], len(value), found[key]
        return found[hash_key], value if isinstance(value, int) else None, found[key]

    def field_lengths(self, key: bytes, fields: Sequence[bytes]) -> list[int | None]:
        """The lengths of fields of one hash in bytes; None for one that doesn't exist."""
        return self._fields.lengths([(key, field) for field in fields])

    def field_lengths_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[int | None]:
        """As `field_lengths`, of any (key, field) pairs: one round trip a batch of 1000."""
        return self._fields.lengths(pairs)

    def fields(self, key: bytes, limit: int) -> list[bytes] | None:
        """As `fields_many`, of one key."""
        return self.fields_many([key], limit)[0]

    def fields_many(self, keys: Sequence[bytes], limit: int) -> list[list[bytes] | None]:
        """The fields of hashes, in no order; None for one with more than `limit`, and for what is no hash."""
        hashes = {
            key: attributes.length
            for key, attributes in zip(keys, self.get_many(keys), strict=True)
            if attributes.type == b"hash" and attributes.length <= limit
        }
        found = self._fields.names(hashes, limit)
        return [found.get(key) for key in keys]

    def exists_fields(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Which of these (key, field) pairs exist; any type of key may be asked about."""
        keys = list(dict.fromkeys([key for key, _ in pairs]))
        hashes = {key for key, found in zip(keys, self.get_many(keys), strict=True) if found.type == b"hash"}
        existing = iter(self._fields.exist([pair for pair in pairs if pair[0] in hashes]))
        return [key in hashes and next(existing) for key, _ in pairs]

    # -- what is no longer true ---------------------------------------------------------------------------------------

    def drop(self, keys: Collection[bytes]) -> None:
        """These keys changed: nothing that was known of them, or is being fetched now, is believed any more."""
        self.cache.drop(keys)

    def none_expiring(self) -> None:
        """No key that was dropped by now has a time to live."""
        self.cache.none_expiring()

    def drop_all(self) -> None:
        """Anything may have changed."""
        self.cache.drop_all()

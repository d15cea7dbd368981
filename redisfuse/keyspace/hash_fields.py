"""The fields of hashes: which there are, how long, and small values. Used by attributes.py, whose cache it shares.

HKEYS is not bounded, so names are listed in other ways. Where all values are small (a compact encoding: by the server's
default none is longer than 64 bytes) by HSCAN: the values come along and are cached, so that `ls -l` and `cat` of the
fields ask nothing more. Elsewhere, up to 1000 fields, by HRANDFIELD with a larger count, which gives them all, without
values, as of one moment. Beyond that, or before Redis 6.2, by HSCAN: with NOVALUES if the server has it (Redis 7.4,
Valkey 8), else in small pieces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redisfuse.batching import CHUNK_BYTES, batched
from redisfuse.client.client import Command, Server
from redisfuse.errors import AccessError, NotFoundError, RedisFuseError, WrongTypeError
from redisfuse.keyspace.metadata_cache import Cache, Fetch, FieldValue, Unknown

COMPACT = (b"listpack", b"ziplist", b"listpackex")  # what OBJECT ENCODING says of hashes with small values

_MOST = 1000  # fields that one command gives
_KEPT = 16 << 10  # bytes of a value that a listing puts into the cache
_AT_ONCE = 10_000  # fields that one round trip may bring
_WITH_VALUES = _AT_ONCE // 8  # how many fields a hash counts for whose values are large and come along


class Fields:
    """Questions about fields."""

    def __init__(self, server: Server, cache: Cache) -> None:
        self._server = server
        self._cache = cache

    # -- one field ----------------------------------------------------------------------------------------------------

    @staticmethod
    def probe(key: bytes, name: bytes, *, compact: bool) -> list[Command]:
        """What to ask of a field: its value where it is surely small, else its length, and whether it exists."""
        return [(b"HGET", key, name)] if compact else [(b"HSTRLEN", key, name), (b"HEXISTS", key, name)]

    @staticmethod
    def probed(replies: Sequence[Any]) -> FieldValue:
        """What the answers to a probe say. Raises the first error reply."""
        for reply in replies:
            if isinstance(reply, RedisFuseError):
                raise reply
        value: FieldValue = replies[0] if len(replies) == 1 or replies[1] else None
        return value

    def value(self, key: bytes, name: bytes) -> bytes:
        """The content of a field that is known to be small. Raises NotFoundError, WrongTypeError."""
        with self._cache.fetching() as fetch:
            value = self._server.ask(b"HGET", key, name)
            self._cache.store_fields(fetch, key, {name: value})
        if value is None:
            raise NotFoundError(f"hash {key!r} has no field {name!r}")
        assert isinstance(value, bytes)
        return value

    # -- many fields --------------------------------------------------------------------------------------------------

    def lengths(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[int | None]:
        """The length of each (key, field) in bytes; None if there is none, the key being no hash included."""
        known = self._cache.fields(pairs)
        unknown = [pair for pair, value in zip(pairs, known, strict=True) if isinstance(value, Unknown) or value == -1]
        found: dict[tuple[bytes, bytes], int | None] = {}
        if unknown:
            with self._cache.fetching() as fetch:
                found = self._ask_lengths(unknown)
                self._store(fetch, found)
        lengths: list[int | None] = []
        for pair, value in zip(pairs, known, strict=True):
            if pair in found:
                lengths.append(found[pair])
            else:
                assert not isinstance(value, Unknown)
                lengths.append(len(value) if isinstance(value, bytes) else value)
        return lengths

    def _ask_lengths(self, pairs: Sequence[tuple[bytes, bytes]]) -> dict[tuple[bytes, bytes], int | None]:
        if len(pairs) == 1:
            length, there = self._answers([*pairs, *pairs], self.probe(*pairs[0], compact=False))
            return {pairs[0]: length if there else None}
        lengths = self._answers(pairs, [(b"HSTRLEN", *pair) for pair in pairs])
        found: dict[tuple[bytes, bytes], int | None] = dict(zip(pairs, lengths, strict=True))
        empty = [pair for pair, length in found.items() if length == 0]  # or not there
        for pair, there in zip(empty, self._answers(empty, [(b"HEXISTS", *pair) for pair in empty]), strict=True):
            if not there:
                found[pair] = None
        return found

    def exist(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Which of these (key, field) pairs exist."""
        known = self._cache.fields(pairs)
        unknown = [pair for pair, value in zip(pairs, known, strict=True) if isinstance(value, Unknown)]
        found: dict[tuple[bytes, bytes], int | None] = {}
        if unknown:
            with self._cache.fetching() as fetch:
                replies = self._answers(unknown, [(b"HEXISTS", *pair) for pair in unknown])
                found = {pair: -1 if there else None for pair, there in zip(unknown, replies, strict=True)}
                self._store(fetch, found)
        return [found.get(pair, value) is not None for pair, value in zip(pairs, known, strict=True)]

    def _answers(self, pairs: Sequence[tuple[bytes, bytes]], commands: Sequence[Command]) -> list[int | None]:
        """Integer replies to commands about these pairs; None where the key is no hash, which is then forgotten."""
        answers: list[int | None] = []
        for (key, _), reply in zip(pairs, self._server.ask_many(commands), strict=True):
            if isinstance(reply, WrongTypeError):
                self._cache.drop([key])
            elif isinstance(reply, RedisFuseError):
                raise reply
            answers.append(reply if isinstance(reply, int) else None)
        return answers

    def _store(self, fetch: Fetch, found: Mapping[tuple[bytes, bytes], FieldValue]) -> None:
        by_key: dict[bytes, dict[bytes, FieldValue]] = {}
        for (key, name), value in found.items():
            by_key.setdefault(key, {})[name] = value
        for key, values in by_key.items():
            self._cache.store_fields(fetch, key, values)

    # -- which there are ----------------------------------------------------------------------------------------------

    def names(self, hashes: Mapping[bytes, int], limit: int) -> dict[bytes, list[bytes] | None]:
        """The fields of hashes, given with their lengths; None for one that is no hash any more, or outgrew `limit`."""
        found: dict[bytes, list[bytes] | None] = {key: self._cache.listing(key) for key in hashes}
        unknown = [key for key, names in found.items() if names is None]
        if unknown:
            walks = [_Walk(key, hashes[key], limit) for key in unknown]
            with self._cache.fetching() as fetch:
                self._choose(walks)
                for group in batched(walks, len(walks), max_weight=_AT_ONCE, weigh=lambda walk: walk.weight):
                    self._walk(group)
                for walk in walks:
                    found[walk.key] = self._finish(fetch, walk)
        return found

    def _choose(self, walks: "list[_Walk]") -> None:
        """Decide for each hash whether its values come along."""
        compact = {walk.key: self._cache.compact(walk.key) for walk in walks}
        asked = [key for key, known in compact.items() if known is None]
        encodings = self._server.ask_many([(b"OBJECT", b"ENCODING", key) for key in asked])
        compact.update({key: encoding in COMPACT for key, encoding in zip(asked, encodings, strict=True)})
        facts = self._server.facts
        for walk in walks:
            walk.compact = bool(compact[walk.key])
            walk.at_once = not walk.compact and walk.length <= _MOST and facts.at_least((6, 2))
            walk.names_only = not walk.compact and facts.has_hscan_novalues
            walk.count = _MOST if walk.compact or walk.names_only else 16

    def _walk(self, walks: "list[_Walk]") -> None:
        while walks:
            replies = self._server.ask_many([walk.command() for walk in walks])
            for walk, reply in zip(walks, replies, strict=True):
                walk.take(reply)
            walks = [walk for walk in walks if not walk.finished]

    def _finish(self, fetch: Fetch, walk: "_Walk") -> list[bytes] | None:
        if walk.failed:
            return None
        self._cache.store_fields(fetch, walk.key, walk.values, complete=True, compact=walk.compact)
        return list(walk.values)


@dataclass(slots=True)
class _Walk:
    """The walk over one hash's fields."""

    key: bytes
    length: int  # fields, by HLEN
    limit: int
    compact: bool = False
    at_once: bool = False  # HRANDFIELD
    names_only: bool = False  # NOVALUES
    count: int = 16
    cursor: bytes = b"0"
    values: dict[bytes, FieldValue] = field(default_factory=dict)
    finished: bool = False
    failed: bool = False

    @property
    def weight(self) -> int:
        """How much of a round trip's share it takes."""
        return self.length if self.compact or self.at_once or self.names_only else max(self.length, _WITH_VALUES)

    def command(self) -> Command:
        """The next piece."""
        if self.at_once:
            return (b"HRANDFIELD", self.key, _MOST + 1)
        more = (b"NOVALUES",) if self.names_only else ()
        return (b"HSCAN", self.key, self.cursor, b"COUNT", self.count, *more)

    def take(self, reply: Any) -> None:
        """The answer to `command`."""
        if isinstance(reply, WrongTypeError | AccessError):
            self.finished = self.failed = True
            return
        if isinstance(reply, RedisFuseError):
            raise reply
        if self.at_once and len(reply) > _MOST:  # it has grown
            self.at_once = False
            return
        flat = reply
        if not self.at_once:
            self.cursor, flat = reply
        if self.at_once or self.names_only:
            self.values.update(dict.fromkeys(flat, -1))
        else:
            size = sum(map(len, flat))
            if flat and not self.compact:
                self.count = max(1, min(_MOST, self.count * 8, CHUNK_BYTES * len(flat) // (2 * max(1, size))))
            for name, value in zip(flat[::2], flat[1::2], strict=True):
                self.values[name] = value if len(value) <= _KEPT else len(value)
        self.failed = len(self.values) > self.limit
        self.finished = self.failed or self.cursor == b"0"

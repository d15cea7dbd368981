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
from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.errors import AccessError, NotFoundError, RedisFuseError, WrongTypeError
from redisfuse.keyspace.metadata_cache import FetchToken, FieldValue, MetadataCache, UnknownField

COMPACT_ENCODINGS = (b"listpack", b"ziplist", b"listpackex")  # what OBJECT ENCODING says of hashes with small values

_MAX_FIELDS_PER_COMMAND = 1000  # fields that one command gives
_MAX_CACHED_VALUE_BYTES = 16 << 10  # bytes of a value that a listing puts into the cache
_MAX_FIELDS_PER_ROUND_TRIP = 10_000  # fields that one round trip may bring
_LARGE_VALUES_WEIGHT = (
    _MAX_FIELDS_PER_ROUND_TRIP // 8
)  # how many fields a hash counts for whose values are large and come along


class HashFields:
    """Questions about fields."""

    def __init__(self, client: RedisClient, cache: MetadataCache) -> None:
        self._client = client
        self._cache = cache

    # -- one field ----------------------------------------------------------------------------------------------------

    @staticmethod
    def probe_commands(key: bytes, name: bytes, *, compact: bool) -> list[RedisCommand]:
        """What to ask of a field: its value where it is surely small, else its length, and whether it exists."""
        return [(b"HGET", key, name)] if compact else [(b"HSTRLEN", key, name), (b"HEXISTS", key, name)]

    @staticmethod
    def parse_probe(replies: Sequence[Any]) -> FieldValue:
        """What the answers to a probe say. Raises the first error reply."""
        for reply in replies:
            if isinstance(reply, RedisFuseError):
                raise reply
        value: FieldValue = replies[0] if len(replies) == 1 or replies[1] else None
        return value

    def fetch_value(self, key: bytes, name: bytes) -> bytes:
        """The content of a field that is known to be small. Raises NotFoundError, WrongTypeError."""
        with self._cache.begin_fetch() as fetch:
            value = self._client.execute(b"HGET", key, name)
            self._cache.store_fields(fetch, key, {name: value})
        if value is None:
            raise NotFoundError(f"hash {key!r} has no field {name!r}")
        assert isinstance(value, bytes)
        return value

    # -- many fields --------------------------------------------------------------------------------------------------

    def get_lengths(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[int | None]:
        """The length of each (key, field) in bytes; None if there is none, the key being no hash included."""
        known = self._cache.get_fields(pairs)
        unknown = [
            pair for pair, value in zip(pairs, known, strict=True) if isinstance(value, UnknownField) or value == -1
        ]
        found: dict[tuple[bytes, bytes], int | None] = {}
        if unknown:
            with self._cache.begin_fetch() as fetch:
                found = self._fetch_lengths(unknown)
                self._cache_values(fetch, found)
        lengths: list[int | None] = []
        for pair, value in zip(pairs, known, strict=True):
            if pair in found:
                lengths.append(found[pair])
            else:
                assert not isinstance(value, UnknownField)
                lengths.append(len(value) if isinstance(value, bytes) else value)
        return lengths

    def _fetch_lengths(self, pairs: Sequence[tuple[bytes, bytes]]) -> dict[tuple[bytes, bytes], int | None]:
        if len(pairs) == 1:
            length, there = self._fetch_integers([*pairs, *pairs], self.probe_commands(*pairs[0], compact=False))
            return {pairs[0]: length if there else None}
        lengths = self._fetch_integers(pairs, [(b"HSTRLEN", *pair) for pair in pairs])
        found: dict[tuple[bytes, bytes], int | None] = dict(zip(pairs, lengths, strict=True))
        empty = [pair for pair, length in found.items() if length == 0]  # or not there
        for pair, there in zip(
            empty, self._fetch_integers(empty, [(b"HEXISTS", *pair) for pair in empty]), strict=True
        ):
            if not there:
                found[pair] = None
        return found

    def exists_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Which of these (key, field) pairs exist."""
        known = self._cache.get_fields(pairs)
        unknown = [pair for pair, value in zip(pairs, known, strict=True) if isinstance(value, UnknownField)]
        found: dict[tuple[bytes, bytes], int | None] = {}
        if unknown:
            with self._cache.begin_fetch() as fetch:
                replies = self._fetch_integers(unknown, [(b"HEXISTS", *pair) for pair in unknown])
                found = {pair: -1 if there else None for pair, there in zip(unknown, replies, strict=True)}
                self._cache_values(fetch, found)
        return [found.get(pair, value) is not None for pair, value in zip(pairs, known, strict=True)]

    def _fetch_integers(
        self, pairs: Sequence[tuple[bytes, bytes]], commands: Sequence[RedisCommand]
    ) -> list[int | None]:
        """Integer replies to commands about these pairs; None where the key is no hash, which is then forgotten."""
        answers: list[int | None] = []
        for (key, _), reply in zip(pairs, self._client.execute_many(commands), strict=True):
            if isinstance(reply, WrongTypeError):
                self._cache.invalidate([key])
            elif isinstance(reply, RedisFuseError):
                raise reply
            answers.append(reply if isinstance(reply, int) else None)
        return answers

    def _cache_values(self, token: FetchToken, results: Mapping[tuple[bytes, bytes], FieldValue]) -> None:
        by_key: dict[bytes, dict[bytes, FieldValue]] = {}
        for (key, name), value in results.items():
            by_key.setdefault(key, {})[name] = value
        for key, values in by_key.items():
            self._cache.store_fields(token, key, values)

    # -- which there are ----------------------------------------------------------------------------------------------

    def list_names(self, field_counts: Mapping[bytes, int], max_fields: int) -> dict[bytes, list[bytes] | None]:
        """The fields of hashes, given with their lengths; None for one that is no hash any more, or outgrew `max_fields`."""
        found: dict[bytes, list[bytes] | None] = {key: self._cache.get_field_names(key) for key in field_counts}
        unknown = [key for key, names in found.items() if names is None]
        if unknown:
            walks = [_FieldScan(key, field_counts[key], max_fields) for key in unknown]
            with self._cache.begin_fetch() as fetch:
                self._choose_commands(walks)
                for group in batched(
                    walks, len(walks), max_weight=_MAX_FIELDS_PER_ROUND_TRIP, weigh=lambda walk: walk.round_trip_weight
                ):
                    self._run_scans(group)
                for walk in walks:
                    found[walk.key] = self._cache_scan(fetch, walk)
        return found

    def _choose_commands(self, scans: "list[_FieldScan]") -> None:
        """Decide for each hash whether its values come along."""
        compact = {walk.key: self._cache.is_compact(walk.key) for walk in scans}
        asked = [key for key, known in compact.items() if known is None]
        encodings = self._client.execute_many([(b"OBJECT", b"ENCODING", key) for key in asked])
        compact.update({key: encoding in COMPACT_ENCODINGS for key, encoding in zip(asked, encodings, strict=True)})
        facts = self._client.server_info
        for walk in scans:
            walk.compact = bool(compact[walk.key])
            walk.use_hrandfield = (
                not walk.compact and walk.field_count <= _MAX_FIELDS_PER_COMMAND and facts.version_at_least((6, 2))
            )
            walk.use_novalues = not walk.compact and facts.has_hscan_novalues
            walk.scan_count = _MAX_FIELDS_PER_COMMAND if walk.compact or walk.use_novalues else 16

    def _run_scans(self, scans: "list[_FieldScan]") -> None:
        while scans:
            replies = self._client.execute_many([walk.next_command() for walk in scans])
            for walk, reply in zip(scans, replies, strict=True):
                walk.add_reply(reply)
            scans = [walk for walk in scans if not walk.finished]

    def _cache_scan(self, token: FetchToken, scan: "_FieldScan") -> list[bytes] | None:
        if scan.failed:
            return None
        self._cache.store_fields(token, scan.key, scan.values, complete=True, compact=scan.compact)
        return list(scan.values)


@dataclass(slots=True)
class _FieldScan:
    """The walk over one hash's fields."""

    key: bytes
    field_count: int  # fields, by HLEN
    max_fields: int
    compact: bool = False
    use_hrandfield: bool = False  # HRANDFIELD
    use_novalues: bool = False  # NOVALUES
    scan_count: int = 16
    cursor: bytes = b"0"
    values: dict[bytes, FieldValue] = field(default_factory=dict)
    finished: bool = False
    failed: bool = False

    @property
    def round_trip_weight(self) -> int:
        """How much of a round trip's share it takes."""
        return (
            self.field_count
            if self.compact or self.use_hrandfield or self.use_novalues
            else max(self.field_count, _LARGE_VALUES_WEIGHT)
        )

    def next_command(self) -> RedisCommand:
        """The next piece."""
        if self.use_hrandfield:
            return (b"HRANDFIELD", self.key, _MAX_FIELDS_PER_COMMAND + 1)
        more = (b"NOVALUES",) if self.use_novalues else ()
        return (b"HSCAN", self.key, self.cursor, b"COUNT", self.scan_count, *more)

    def add_reply(self, reply: Any) -> None:
        """The answer to `next_command`."""
        if isinstance(reply, WrongTypeError | AccessError):
            self.finished = self.failed = True
            return
        if isinstance(reply, RedisFuseError):
            raise reply
        if self.use_hrandfield and len(reply) > _MAX_FIELDS_PER_COMMAND:  # it has grown
            self.use_hrandfield = False
            return
        flat = reply
        if not self.use_hrandfield:
            self.cursor, flat = reply
        if self.use_hrandfield or self.use_novalues:
            self.values.update(dict.fromkeys(flat, -1))
        else:
            size = sum(map(len, flat))
            if flat and not self.compact:
                self.scan_count = max(
                    1, min(_MAX_FIELDS_PER_COMMAND, self.scan_count * 8, CHUNK_BYTES * len(flat) // (2 * max(1, size)))
                )
            for name, value in zip(flat[::2], flat[1::2], strict=True):
                self.values[name] = value if len(value) <= _MAX_CACHED_VALUE_BYTES else len(value)
        self.failed = len(self.values) > self.max_fields
        self.finished = self.failed or self.cursor == b"0"

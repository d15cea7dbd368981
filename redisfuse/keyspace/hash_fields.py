"""The fields of hashes: their names, lengths and small values.

Part of metadata.py, whose cache it shares. HKEYS is unbounded, so names are listed in other ways:

- Where all values are small (a compact encoding: with the server's defaults none exceeds 64 bytes), with HSCAN. The
  values are returned, too, and are cached, so that `ls -l` and `cat` of the fields send no further commands.
- Elsewhere, up to 1000 fields, with HRANDFIELD and a larger count, which returns all names, without values, as of one
  moment.
- Beyond that, or before Redis 6.2, with HSCAN: NOVALUES if the server has it (Redis 7.4, Valkey 8), else a small COUNT.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from more_itertools import constrained_batches

from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.client.scan_guard import ScanGuard
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import AccessError, NotFoundError, RedisFuseError, WrongTypeError
from redisfuse.keyspace.metadata_cache import MetadataCache
from redisfuse.keyspace.metadata_entry import FetchToken, FieldValue, UnknownField

COMPACT_ENCODINGS = (b"listpack", b"ziplist", b"listpackex")  # replies of OBJECT ENCODING for hashes with small values

_MAX_FIELDS_PER_COMMAND = 1000  # fields that one command returns
_MAX_CACHED_VALUE_BYTES = 16 << 10  # of a value that a listing caches
_MAX_FIELDS_PER_ROUND_TRIP = 10_000
_LARGE_VALUES_WEIGHT = _MAX_FIELDS_PER_ROUND_TRIP // 8  # of a hash whose large values are returned, too, in fields


class HashFields:
    """Queries about fields. Threads: any; no lock of its own."""

    def __init__(self, client: RedisClient, cache: MetadataCache) -> None:
        self._client = client
        self._cache = cache

    # -- one field ----------------------------------------------------------------------------------------------------

    @staticmethod
    def probe_commands(key: bytes, name: bytes, *, compact: bool) -> list[RedisCommand]:
        """Return the commands about a field.

        HGET if its value is certainly small, else HSTRLEN and HEXISTS.
        """
        return [(b"HGET", key, name)] if compact else [(b"HSTRLEN", key, name), (b"HEXISTS", key, name)]

    @staticmethod
    def parse_probe(replies: Sequence[Any]) -> FieldValue:
        """Parse the replies to `probe_commands`. Raises the first error reply."""
        for reply in replies:
            if isinstance(reply, RedisFuseError):
                raise reply
        value: FieldValue = replies[0] if len(replies) == 1 or replies[1] else None
        return value

    def fetch_value(self, key: bytes, name: bytes) -> bytes:
        """Fetch and cache the content of a small field.

        Raises NotFoundError, WrongTypeError.
        """
        with self._cache.begin_fetch() as token:
            value = self._client.execute(b"HGET", key, name)
            self._cache.store_fields(token, key, {name: value})
        if value is None:
            raise NotFoundError(f"hash {key!r} has no field {name!r}")
        assert isinstance(value, bytes)
        return value

    # -- many fields --------------------------------------------------------------------------------------------------

    def get_lengths(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[int | None]:
        """Return the length of each (key, field) in bytes.

        None if there is no such field, or the key is no hash.
        """
        cached = self._cache.get_fields(pairs)
        unknown = [
            pair for pair, value in zip(pairs, cached, strict=True) if isinstance(value, UnknownField) or value == -1
        ]
        fetched: dict[tuple[bytes, bytes], int | None] = {}
        if unknown:
            with self._cache.begin_fetch() as token:
                fetched = self._fetch_lengths(unknown)
                self._cache_values(token, fetched)
        lengths: list[int | None] = []
        for pair, value in zip(pairs, cached, strict=True):
            if pair in fetched:
                lengths.append(fetched[pair])
            else:
                assert not isinstance(value, UnknownField)
                lengths.append(len(value) if isinstance(value, bytes) else value)
        return lengths

    def _fetch_lengths(self, pairs: Sequence[tuple[bytes, bytes]]) -> dict[tuple[bytes, bytes], int | None]:
        if len(pairs) == 1:
            length, exists = self._fetch_integers([*pairs, *pairs], self.probe_commands(*pairs[0], compact=False))
            return {pairs[0]: length if exists else None}
        replies = self._fetch_integers(pairs, [(b"HSTRLEN", *pair) for pair in pairs])
        lengths: dict[tuple[bytes, bytes], int | None] = dict(zip(pairs, replies, strict=True))
        empty = [pair for pair, length in lengths.items() if length == 0]  # empty, or missing
        for pair, exists in zip(
            empty, self._fetch_integers(empty, [(b"HEXISTS", *pair) for pair in empty]), strict=True
        ):
            if not exists:
                lengths[pair] = None
        return lengths

    def exists_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Return whether each of these (key, field) pairs exists."""
        cached = self._cache.get_fields(pairs)
        unknown = [pair for pair, value in zip(pairs, cached, strict=True) if isinstance(value, UnknownField)]
        fetched: dict[tuple[bytes, bytes], int | None] = {}
        if unknown:
            with self._cache.begin_fetch() as token:
                replies = self._fetch_integers(unknown, [(b"HEXISTS", *pair) for pair in unknown])
                fetched = {pair: -1 if exists else None for pair, exists in zip(unknown, replies, strict=True)}
                self._cache_values(token, fetched)
        return [fetched.get(pair, value) is not None for pair, value in zip(pairs, cached, strict=True)]

    def _fetch_integers(
        self, pairs: Sequence[tuple[bytes, bytes]], commands: Sequence[RedisCommand]
    ) -> list[int | None]:
        """Return integer replies; None where the key is not a hash.

        The metadata of such a key is then invalidated.
        """
        integers: list[int | None] = []
        for (key, _), reply in zip(pairs, self._client.execute_many(commands), strict=True):
            if isinstance(reply, WrongTypeError):
                self._cache.invalidate([key])
            elif isinstance(reply, RedisFuseError):
                raise reply
            integers.append(reply if isinstance(reply, int) else None)
        return integers

    def _cache_values(self, token: FetchToken, results: Mapping[tuple[bytes, bytes], FieldValue]) -> None:
        by_key: dict[bytes, dict[bytes, FieldValue]] = {}
        for (key, name), value in results.items():
            by_key.setdefault(key, {})[name] = value
        for key, values in by_key.items():
            self._cache.store_fields(token, key, values)

    # -- names --------------------------------------------------------------------------------------------------------

    def list_names(self, field_counts: Mapping[bytes, int], max_fields: int) -> dict[bytes, list[bytes] | None]:
        """Return the field names of hashes, which are given with their HLEN.

        None for a key that is no longer a hash, or has more than `max_fields` now.
        """
        names_by_key: dict[bytes, list[bytes] | None] = {key: self._cache.get_field_names(key) for key in field_counts}
        unknown = [key for key, names in names_by_key.items() if names is None]
        if unknown:
            timeout = self._client.limits.timeout
            scans = [_FieldScan(key, field_counts[key], max_fields, ScanGuard("HSCAN", timeout)) for key in unknown]
            with self._cache.begin_fetch() as token:
                self._choose_commands(scans)
                for group in constrained_batches(
                    scans, _MAX_FIELDS_PER_ROUND_TRIP, None, lambda scan: scan.round_trip_weight, strict=False
                ):
                    self._run_scans(list(group))
                for scan in scans:
                    names_by_key[scan.key] = self._cache_scan(token, scan)
        return names_by_key

    def iter_lengths(self, key: bytes, field_count: int) -> Iterator[dict[bytes, int]]:
        """Yield the fields of one hash with their lengths in bytes, in pieces.

        Each field is yielded once, so the names are held in memory until the end. Ends if the key is no longer a hash.
        """
        scan = _FieldScan(key, field_count, sys.maxsize, ScanGuard("HSCAN", self._client.limits.timeout))
        self._choose_commands([scan])
        while not scan.finished:
            with self._cache.begin_fetch() as token:
                scan.add_reply(self._client.execute_many([scan.next_command()])[0])
                piece = scan.take_piece()
                self._cache.store_fields(token, key, piece)
            names = list(piece)
            lengths = self.get_lengths([(key, name) for name in names])
            yield {name: length for name, length in zip(names, lengths, strict=True) if length is not None}

    def _choose_commands(self, scans: "list[_FieldScan]") -> None:
        """Choose each hash's commands by its encoding and length."""
        compact = {scan.key: self._cache.is_compact(scan.key) for scan in scans}
        unknown = [key for key, is_compact in compact.items() if is_compact is None]
        encodings = self._client.execute_many([(b"OBJECT", b"ENCODING", key) for key in unknown])
        encoding_by_key = dict(zip(unknown, encodings, strict=True))
        compact.update({key: encoding in COMPACT_ENCODINGS for key, encoding in encoding_by_key.items()})
        server_info = self._client.server_info
        has_hrandfield = server_info.version_at_least((6, 2))
        for scan in scans:
            encoding = encoding_by_key.get(scan.key)
            scan.encoding = encoding if isinstance(encoding, bytes) else None
            scan.compact = bool(compact[scan.key])
            scan.use_hrandfield = not scan.compact and scan.field_count <= _MAX_FIELDS_PER_COMMAND and has_hrandfield
            scan.use_novalues = not scan.compact and server_info.has_hscan_novalues
            scan.scan_count = _MAX_FIELDS_PER_COMMAND if scan.compact or scan.use_novalues else 16

    def _run_scans(self, scans: "list[_FieldScan]") -> None:
        while scans:
            replies = self._client.execute_many([scan.next_command() for scan in scans])
            for scan, reply in zip(scans, replies, strict=True):
                scan.add_reply(reply)
            scans = [scan for scan in scans if not scan.finished]

    def _cache_scan(self, token: FetchToken, scan: "_FieldScan") -> list[bytes] | None:
        if scan.failed:
            return None
        self._cache.store_fields(
            token, scan.key, scan.values, complete=True, compact=scan.compact, encoding=scan.encoding
        )
        return list(scan.values)


@dataclass(slots=True)
class _FieldScan:
    """The iteration over one hash's fields."""

    key: bytes
    field_count: int  # by HLEN
    max_fields: int
    guard: ScanGuard
    encoding: bytes | None = None  # if it was fetched
    compact: bool = False
    use_hrandfield: bool = False
    use_novalues: bool = False
    scan_count: int = 16
    cursor: bytes = b"0"
    values: dict[bytes, FieldValue] = field(default_factory=dict)
    taken: set[bytes] = field(default_factory=set)  # names that `take_piece` returned
    finished: bool = False
    failed: bool = False

    @property
    def round_trip_weight(self) -> int:
        """Its share of one round trip, in fields."""
        return (
            self.field_count
            if self.compact or self.use_hrandfield or self.use_novalues
            else max(self.field_count, _LARGE_VALUES_WEIGHT)
        )

    def next_command(self) -> RedisCommand:
        """Return the next command."""
        if self.use_hrandfield:
            return (b"HRANDFIELD", self.key, _MAX_FIELDS_PER_COMMAND + 1)
        more = (b"NOVALUES",) if self.use_novalues else ()
        return (b"HSCAN", self.key, self.cursor, b"COUNT", self.scan_count, *more)

    def take_piece(self) -> dict[bytes, FieldValue]:
        """Return the fields that were received since the last call."""
        piece, self.values = self.values, {}
        self.taken.update(piece)
        return piece

    def add_reply(self, reply: Any) -> None:
        """Add the reply to `next_command`."""
        if isinstance(reply, WrongTypeError | AccessError):
            self.finished = self.failed = True
            return
        if isinstance(reply, RedisFuseError):
            raise reply
        if self.use_hrandfield and len(reply) > _MAX_FIELDS_PER_COMMAND:  # the hash has grown
            self.use_hrandfield = False
            return
        items = reply
        if not self.use_hrandfield:
            sent, (self.cursor, items) = self.cursor, reply
            self.guard.check(sent, self.cursor)
        old_count = len(self.values)
        if self.use_hrandfield or self.use_novalues:
            self.values.update(dict.fromkeys((name for name in items if name not in self.taken), -1))
        else:
            size = max(1, sum(map(len, items)))
            if items and not self.compact:
                per_chunk = CHUNK_BYTES * len(items) // (2 * size)
                self.scan_count = max(1, min(_MAX_FIELDS_PER_COMMAND, self.scan_count * 8, per_chunk))
            for name, value in zip(items[::2], items[1::2], strict=False):
                if name in self.taken:
                    continue
                self.values[name] = value if len(value) <= _MAX_CACHED_VALUE_BYTES else len(value)
        if len(self.values) > old_count:
            self.guard.record_progress()
        self.failed = len(self.values) > self.max_fields
        self.finished = self.failed or self.cursor == b"0"

"""The fields of hashes whose names match a glob, in pipelines of HSCAN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from more_itertools import chunked

from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.client.scan_guard import ScanGuard
from redisfuse.errors import AccessError, RedisFuseError, WrongTypeError
from redisfuse.rendering.iterate import Deduplicator
from redisfuse.survey.records import FIELD_TYPE, KeyRecord
from redisfuse.survey.scan import UnreadableKeys

_HASHES_PER_PIPELINE = 100
_FIELDS_PER_COMMAND = 1000  # with NOVALUES, or of a compact hash
_VALUES_PER_COMMAND = 100  # fields that one command returns together with their values


class _FieldSearch:
    """The HSCANs of one hash."""

    def __init__(self, record: KeyRecord, timeout: float) -> None:
        self.record = record
        self.cursor = b"0"
        self.finished = False
        self.deduplicator = Deduplicator()
        self.guard = ScanGuard("HSCAN", timeout)


def iter_fields(
    client: RedisClient, hashes: Sequence[KeyRecord], glob: bytes, unreadable: UnreadableKeys
) -> Iterator[KeyRecord]:
    """Yield a record for each field that matches a Redis glob.

    It has the TTL of its key. One command for each 1000 fields; for each 100 where the server can't omit the values.
    """
    has_novalues = client.server_info.has_hscan_novalues
    options: list[bytes | int] = [
        b"MATCH",
        glob,
        b"COUNT",
        _FIELDS_PER_COMMAND if has_novalues else _VALUES_PER_COMMAND,
    ]
    options += [b"NOVALUES"] if has_novalues else []
    for group in chunked(hashes, _HASHES_PER_PIPELINE):
        searches = [_FieldSearch(record, client.limits.timeout) for record in group]
        while searches:
            commands: list[RedisCommand] = [
                (b"HSCAN", search.record.key, search.cursor, *options) for search in searches
            ]
            for search, reply in zip(searches, client.execute_many(commands), strict=True):
                yield from _parse_reply(search, reply, 1 if has_novalues else 2, unreadable)
            searches = [search for search in searches if not search.finished]


def _parse_reply(
    search: _FieldSearch, reply: object, parts_per_field: int, unreadable: UnreadableKeys
) -> Iterator[KeyRecord]:
    if isinstance(reply, AccessError):
        unreadable.add(reply)
    elif isinstance(reply, RedisFuseError) and not isinstance(reply, WrongTypeError):
        raise reply
    if isinstance(reply, RedisFuseError):
        search.finished = True
        return
    assert isinstance(reply, list)
    sent, (search.cursor, parts) = search.cursor, reply
    search.guard.check(sent, search.cursor)
    search.finished = search.cursor == b"0"
    key, ttl = search.record.key, search.record.ttl_ms
    for (name,) in search.deduplicator.filter_new([(name,) for name in parts[::parts_per_field]]):
        yield KeyRecord(key, name, FIELD_TYPE, ttl_ms=ttl)

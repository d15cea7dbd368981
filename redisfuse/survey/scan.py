"""Scans keys in pipelines and fetches the properties that are needed.

A scan sends one SCAN for each 1000 keys. Each condition costs one command for each key that satisfied those before it,
plus TYPE if the length is needed: a key that passes two conditions costs at most three commands. Where only one or two
types can satisfy the conditions, the server selects by type, in a scan for each, and no TYPE is sent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

from redisfuse.client.client import RedisClient
from redisfuse.errors import AccessError
from redisfuse.keyspace.scanner import ScanObserver, scan_keys
from redisfuse.paths.grammar import KeyRef
from redisfuse.rendering.iterate import Deduplicator
from redisfuse.survey.conditions import Condition, NameFilter, TypeCondition, admitted_types
from redisfuse.survey.naming import DirectorySet, FoundRecord
from redisfuse.survey.records import (
    FIELD_TYPE,
    PROPERTIES,
    KeyRecord,
    Property,
    build_command,
    store_reply,
    store_unknown_length,
)

_KEYS_PER_BATCH = 1000

_MAX_TYPE_SCANS = 2
"""Scans by type that cost a server less than one scan and TYPE for each key: 2.8 µs a key beside 3.1 µs (7.0.15)."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The keys that a survey is about: those with a prefix, or one key or field."""

    prefix: bytes = b""
    target: KeyRef | None = None


class SurveyProgress(ScanObserver):
    """An observer of a survey that ignores everything, to be overridden."""

    def advance(self, key_count: int) -> None:
        """Count about `key_count` keys as visited."""


@dataclass(slots=True)
class UnreadableKeys:
    """The keys that the server's ACL denied."""

    count: int = 0
    reason: str = ""  # of the first one

    def add(self, error: AccessError) -> None:
        """Count a key."""
        self.count += 1
        self.reason = self.reason or str(error)


@dataclass(slots=True)
class KeySurvey:
    """One pass over the keys of a scope, on all nodes."""

    clients: Sequence[RedisClient]
    scope: Scope
    names: NameFilter
    progress: SurveyProgress = field(default_factory=SurveyProgress)
    directories: DirectorySet | None = None  # receives the directories of all keys of the scope
    types: tuple[bytes, ...] | None = None  # only keys of these types are scanned, as TYPE replies them; None: all keys
    unreadable: UnreadableKeys = field(default_factory=UnreadableKeys)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def iter_keys(self) -> Iterator[tuple[RedisClient, list[bytes]]]:
        """Yield the keys that pass the filter of names, in batches, each key once."""
        for client, _, keys in self._iter_scans():
            yield client, keys

    def _iter_scans(self) -> Iterator[tuple[RedisClient, bytes | None, list[bytes]]]:
        """Yield the batches of `iter_keys`, with the type that the server selected."""
        if self.scope.target is not None:
            yield self.clients[0], None, [self.scope.target.key]  # a node of a cluster reads other nodes' keys there
            return
        types: Sequence[bytes | None] = (None,) if self.types is None else self.types
        for client, type in product(self.clients, types):
            deduplicator = Deduplicator()
            batch: list[bytes] = []
            for keys in scan_keys(client, prefix=self._scan_prefix, type=type, observer=self.progress):
                self.progress.advance(client.limits.scan_count)
                if self.directories is not None:
                    self.directories.add_keys(keys)
                batch += deduplicator.filter_new_names(self.names.select(keys))
                if len(batch) >= _KEYS_PER_BATCH:
                    yield client, type, batch
                    batch = []
            if batch:
                yield client, type, batch
        if self.directories is not None and self.types is None and self._scan_prefix == self.scope.prefix:
            self.directories.is_complete = True

    @property
    def _scan_prefix(self) -> bytes:
        narrower = self.names.scan_prefix
        return narrower if narrower.startswith(self.scope.prefix) else self.scope.prefix

    def iter_all_keys(self) -> Iterator[Collection[bytes]]:
        """Yield all keys of the scope in batches, of any name and type.

        Some may be yielded twice.
        """
        for client in self.clients:
            yield from scan_keys(client, prefix=self.scope.prefix)

    # -- records ------------------------------------------------------------------------------------------------------

    def scan_only(self, conditions: Sequence[Condition]) -> list[Condition]:
        """Let the server select by type if at most two types can satisfy all conditions.

        Returns the other conditions.
        """
        types = admitted_types(conditions)
        can_select = self.scope.target is None and all(client.server_info.has_scan_type for client in self.clients)
        if types is None or len(types) > _MAX_TYPE_SCANS or not can_select:
            return list(conditions)
        self.types = tuple(sorted(types))
        return [one for one in conditions if not isinstance(one, TypeCondition)]

    def iter_batches(
        self, conditions: Collection[Condition] = (), properties: Collection[Property] = ()
    ) -> Iterator[tuple[RedisClient, list[KeyRecord]]]:
        """Yield, in batches, the records that satisfy all conditions."""
        target = self.scope.target
        if target is not None:
            properties = {*properties, "type"}  # shows whether the key exists
        for client, type, keys in self._iter_scans():
            records = [KeyRecord(key, type=type) for key in keys]
            if target is not None and target.field is not None:
                records = [KeyRecord(target.key, target.field, FIELD_TYPE)]
            yield client, self.select(client, records, conditions, properties)

    def iter_records(
        self, conditions: Collection[Condition] = (), properties: Collection[Property] = ()
    ) -> Iterator[FoundRecord]:
        """Yield the records of `iter_batches` one by one, with their clients."""
        for client, records in self.iter_batches(conditions, properties):
            for record in records:
                yield client, record

    def select(
        self,
        client: RedisClient,
        records: Iterable[KeyRecord],
        conditions: Collection[Condition],
        properties: Collection[Property] = (),
    ) -> list[KeyRecord]:
        """Return the records that satisfy all conditions, with these properties."""
        selected = list(records)
        fetched: set[Property] = set()
        for condition in sorted(conditions, key=lambda one: PROPERTIES.index(one.needs)):
            selected = self._fetch_missing(client, selected, condition.needs, fetched)
            selected = [record for record in selected if condition.matches(record)]
        for name in PROPERTIES:
            if name in properties:
                selected = self._fetch_missing(client, selected, name, fetched)
        return selected

    def _fetch_missing(
        self, client: RedisClient, records: list[KeyRecord], name: Property, fetched: set[Property]
    ) -> list[KeyRecord]:
        """Fetch a property, unless it is among `fetched`.

        Returns the records of keys that exist.
        """
        if name in fetched:
            return records
        if name == "length":
            records = self._fetch_missing(client, records, "type", fetched)
        fetched.add(name)
        commands = [build_command(record, name) for record in records]
        replies = iter(client.execute_many([command for command in commands if command is not None]))
        for record, command in zip(records, commands, strict=True):
            if command is None:
                if name == "length":
                    store_unknown_length(record)
                continue
            try:
                store_reply(record, name, next(replies))
            except AccessError as error:
                self.unreadable.add(error)
                record.exists = False
        return [record for record in records if record.exists]

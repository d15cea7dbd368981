"""The memory, bytes, elements and expiries of keys, by folder.

They are exact, or estimated from a sample. SCAN returns keys in the order of their hashes, which is random: the first
N keys of a scan are a random sample. Sums of a sample are scaled to the whole database, and have a standard error. At
most three commands a key.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from redisfuse.client.client import RedisClient
from redisfuse.keyspace.scanner import scan_keys
from redisfuse.survey.records import NO_EXPIRY, KeyRecord, Property
from redisfuse.survey.scan import KeySurvey

Measure = Literal["memory", "bytes", "elements", "keys"]

MEASURE_PROPERTIES: dict[Measure, tuple[Property, ...]] = {
    "memory": ("memory",),
    "bytes": ("length",),
    "elements": ("length",),
    "keys": (),
}
"""The properties that are fetched of each key, besides its expiry: 1 command, 2, 2, and none."""

MAX_FOLDERS = 100_000
"""Folders whose sums are kept; keys of further ones are counted in the folders above them only."""

EXPIRY_BOUNDS_MS = (60_000, 3_600_000, 86_400_000, 2_592_000_000)
EXPIRY_NAMES = ("1m", "1h", "1d", "30d", "later", "never")
"""The buckets of the histogram of expiries: sooner than each bound, later, never."""

CONFIDENCE_FACTOR = 1.96
"""Standard errors to each side of an estimate between which 95 % of the true values are."""


@dataclass(slots=True)
class FolderUsage:
    """Sums over the keys in and below a folder."""

    keys: float = 0
    amount: float = 0  # of the measure
    variance: float = 0  # of the amount, as an estimate; 0 if it is exact
    expiries: list[float] = field(default_factory=lambda: [0.0] * len(EXPIRY_NAMES))
    _squares: float = 0  # of the amounts of single keys

    def add(self, amount: int, bucket: int | None) -> None:
        """Add one key; its bucket is None if expiries are not counted."""
        self.keys += 1
        self.amount += amount
        self._squares += amount * amount
        if bucket is not None:
            self.expiries[bucket] += 1

    def add_scaled(self, other: FolderUsage, sampled: int, total: int) -> None:
        """Add the sums of a sample of `sampled` keys of a node that has `total`."""
        scale = total / sampled if sampled else 1.0
        self.keys += other.keys * scale
        self.amount += other.amount * scale
        self.expiries = [mine + theirs * scale for mine, theirs in zip(self.expiries, other.expiries, strict=True)]
        if 1 < sampled < total:
            deviation = (other._squares - other.amount * other.amount / sampled) / (sampled - 1)
            self.variance += total * total * max(0.0, deviation) / sampled * (1 - sampled / total)

    @property
    def error(self) -> float:
        """Half the width of the interval that has the true amount with 95 % confidence."""
        return CONFIDENCE_FACTOR * math.sqrt(self.variance)


@dataclass(slots=True)
class UsageReport:
    """The usage of a scope."""

    measure: Measure
    folders: dict[bytes, FolderUsage]  # by the prefix of their keys; the scope's own is the total
    biggest: list[tuple[RedisClient, KeyRecord]]
    sampled_keys: int | None = None  # visited, on all nodes; None: all keys were
    total_keys: int = 0  # on all nodes, for a sample
    has_expiries: bool = True  # whether the expiries of keys were counted


class UsageCollector:
    """Collects the usage of the keys of a survey."""

    def __init__(
        self, survey: KeySurvey, measure: Measure, *, separator: bytes, depth: int, biggest: int, expiries: bool = True
    ) -> None:
        self._survey = survey
        self._measure = measure
        self._properties: list[Property] = [*MEASURE_PROPERTIES[measure]]
        if expiries:
            self._properties.append("ttl")
        self._separator = separator
        self._depth = depth
        self._biggest_count = biggest
        self._biggest: list[tuple[int, bytes, tuple[RedisClient, KeyRecord]]] = []  # a heap
        # Folders are counted from that which has the scope: of the prefix `app:x`, from `app:`.
        prefix = survey.scope.prefix
        self._root = prefix[: prefix.rfind(separator) + len(separator)] if separator in prefix else b""

    @property
    def root(self) -> bytes:
        """The prefix of the folder from which depths are counted."""
        return self._root

    def collect(self, sample: int | None) -> UsageReport:
        """Scan the keys, or about `sample` of them, and return their usage."""
        report = UsageReport(self._measure, {}, [], has_expiries="ttl" in self._properties)
        if sample is None:
            for client, records in self._survey.iter_batches((), self._properties):
                self._add_records(report.folders, client, records)
        else:
            report.sampled_keys = 0
            for client in self._survey.clients:
                self._add_sample(report, client, max(1, sample // len(self._survey.clients)))
        report.folders.setdefault(self._root, FolderUsage())
        report.biggest = [pair for _, _, pair in sorted(self._biggest, key=lambda one: (-one[0], one[1]))]
        for client, record in report.biggest:
            self._survey.select(client, [record], (), ("type", "length", "ttl"))
        return report

    def _add_sample(self, report: UsageReport, client: RedisClient, count: int) -> None:
        """Add the estimate for one node."""
        folders: dict[bytes, FolderUsage] = {}
        sampled = 0
        for keys in scan_keys(client, observer=self._survey.progress):
            keys = keys[: count - sampled]
            sampled += len(keys)
            self._survey.progress.advance(len(keys))
            selected = [key for key in self._survey.names.select(keys) if key.startswith(self._survey.scope.prefix)]
            records = self._survey.select(client, [KeyRecord(key) for key in selected], (), self._properties)
            self._add_records(folders, client, records)
            if sampled >= count:
                break
        total = max(sampled, client.execute(b"DBSIZE"))
        assert report.sampled_keys is not None
        report.sampled_keys += sampled
        report.total_keys += total
        for prefix, usage in folders.items():
            report.folders.setdefault(prefix, FolderUsage()).add_scaled(usage, sampled, total)

    def _add_records(
        self, folders: dict[bytes, FolderUsage], client: RedisClient, records: Sequence[KeyRecord]
    ) -> None:
        for record in records:
            amount = self._measure_record(record)
            bucket = None if record.ttl_ms is None else _find_bucket(record.ttl_ms)
            for prefix in self._iter_folders(record.key):
                usage = folders.get(prefix)
                if usage is None:
                    if len(folders) >= MAX_FOLDERS:
                        continue
                    usage = folders[prefix] = FolderUsage()
                usage.add(amount, bucket)
            if self._measure != "keys" and amount:
                entry = (amount, record.key, (client, record))
                if len(self._biggest) < self._biggest_count:
                    heapq.heappush(self._biggest, entry)
                elif self._biggest and entry[:2] > self._biggest[0][:2]:
                    heapq.heapreplace(self._biggest, entry)

    def _measure_record(self, record: KeyRecord) -> int:
        amounts = {"memory": record.memory, "bytes": record.size, "elements": record.elements, "keys": 1}
        return amounts[self._measure] or 0

    def _iter_folders(self, key: bytes) -> Iterator[bytes]:
        """Yield the prefixes of the folders above a key, down to the depth."""
        yield self._root
        position = len(self._root)
        for _ in range(self._depth):
            position = key.find(self._separator, position) + len(self._separator)
            if position < len(self._separator):
                return
            yield key[:position]


def _find_bucket(ttl_ms: int) -> int:
    if ttl_ms == NO_EXPIRY:
        return len(EXPIRY_NAMES) - 1
    return next((number for number, bound in enumerate(EXPIRY_BOUNDS_MS) if ttl_ms < bound), len(EXPIRY_BOUNDS_MS))

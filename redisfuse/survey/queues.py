"""Lists and streams as queues: length, age of the oldest entry, consumers.

The age of an entry of a stream is in its ID. Of a list it is known where a library records when a job was enqueued: in
the entry (Sidekiq, and any JSON with such a name), or in a hash of the job (RQ, BullMQ). Beside its length, a list
costs two commands and at most two for the jobs at its ends, a stream two.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.survey.records import KeyRecord

TIME_NAMES = ("enqueued_at", "created_at", "timestamp", "ts", "time")
"""The names under which an entry in JSON has the time at which it was enqueued, in this order."""

_JOB_HASHES = (
    (re.compile(rb"rq:queue:.*"), b"rq:job:", (b"enqueued_at", b"created_at")),
    (re.compile(rb"(.*:)(?:wait|paused|active)"), b"", (b"timestamp",)),  # BullMQ and Bull
)
_JOB_ID = re.compile(rb"[\w:.-]{1,100}")
_MIN_TIME = 1_000_000_000  # seconds; a smaller number is not a time
_MAX_FUTURE_SECONDS = 86_400


@dataclass(slots=True)
class Queue:
    """A list or stream."""

    record: KeyRecord
    oldest_age: float | None = None  # seconds; None: unknown
    groups: int | None = None  # of a stream
    consumers: int | None = None  # in all groups
    pending: int | None = None  # delivered, but not acknowledged, in all groups
    lag: int | None = None  # not yet delivered, of the group that has the most


def fetch_queues(client: RedisClient, records: Sequence[KeyRecord]) -> Iterator[Queue]:
    """Yield a queue for each record of a list or stream whose length is known."""
    now = time.time()
    lists = [record for record in records if record.type == b"list"]
    streams = [record for record in records if record.type == b"stream"]
    yield from _fetch_lists(client, lists, now)
    yield from _fetch_streams(client, streams, now)


def _fetch_lists(client: RedisClient, records: Sequence[KeyRecord], now: float) -> Iterator[Queue]:
    commands: list[RedisCommand] = []
    for record in records:
        commands += [(b"LRANGE", record.key, 0, 0), (b"LRANGE", record.key, -1, -1)]
    replies = client.execute_many(commands)
    ends = [
        [entry for reply in pair if isinstance(reply, list) for entry in reply]
        for pair in zip(replies[::2], replies[1::2], strict=True)
    ]
    job_times = _fetch_job_times(client, records, ends)
    for record, entries, times in zip(records, ends, job_times, strict=True):
        known = [moment for moment in (*map(parse_entry_time, entries), *times) if moment is not None]
        yield Queue(record, _age(min(known, default=None), now))


def _fetch_job_times(
    client: RedisClient, records: Sequence[KeyRecord], ends: Sequence[Sequence[bytes]]
) -> list[list[float | None]]:
    """Return the times in the hashes of the jobs at the ends of each list."""
    commands: list[RedisCommand] = []
    owners: list[int] = []
    for number, (record, entries) in enumerate(zip(records, ends, strict=True)):
        for pattern, prefix, fields in _JOB_HASHES:
            match = pattern.fullmatch(record.key)
            if match is None:
                continue
            for entry in {*entries}:
                if _JOB_ID.fullmatch(entry):
                    commands.append((b"HMGET", (prefix or match[1]) + entry, *fields))
                    owners.append(number)
            break
    times: list[list[float | None]] = [[] for _ in records]
    for owner, reply in zip(owners, client.execute_many(commands), strict=True):
        if isinstance(reply, list):
            times[owner].append(next((parse_time(text) for text in reply if text is not None), None))
    return times


def _fetch_streams(client: RedisClient, records: Sequence[KeyRecord], now: float) -> Iterator[Queue]:
    commands: list[RedisCommand] = []
    for record in records:
        commands += [(b"XRANGE", record.key, b"-", b"+", b"COUNT", 1), (b"XINFO", b"GROUPS", record.key)]
    replies = client.execute_many(commands)
    for record, entries, groups in zip(records, replies[::2], replies[1::2], strict=True):
        queue = Queue(record)
        if isinstance(entries, list) and entries:
            queue.oldest_age = _age(_check_time(int(entries[0][0].partition(b"-")[0]) / 1000), now)
        if isinstance(groups, list):
            _add_groups(queue, [dict(zip(group[::2], group[1::2], strict=True)) for group in groups])
        yield queue


def _add_groups(queue: Queue, groups: Sequence[dict[bytes, Any]]) -> None:
    queue.groups = len(groups)
    queue.consumers = sum(group.get(b"consumers", 0) for group in groups)
    queue.pending = sum(group.get(b"pending", 0) for group in groups)
    lags = [group[b"lag"] for group in groups if isinstance(group.get(b"lag"), int)]  # Redis 7; None: unknown
    queue.lag = max(lags, default=None)


def parse_entry_time(entry: bytes) -> float | None:
    """Return the Unix time at which an entry in JSON was enqueued.

    None if it has none.
    """
    if not entry.startswith(b"{"):
        return None
    try:
        document = json.loads(entry)
    except (ValueError, RecursionError):
        return None
    names = [name for name in TIME_NAMES if isinstance(document, dict) and name in document]
    return next((moment for name in names if (moment := parse_time(document[name])) is not None), None)


def parse_time(value: Any) -> float | None:
    """Return a Unix time in seconds from seconds, milliseconds or ISO 8601.

    None for anything else.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, bool):
        return None
    try:
        return _check_time(float(value))
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return _check_time((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _check_time(seconds: float) -> float | None:
    """Return seconds, from seconds or milliseconds; None if it is not a time."""
    latest = time.time() + _MAX_FUTURE_SECONDS
    for candidate in (seconds, seconds / 1000):
        if _MIN_TIME <= candidate <= latest:
            return candidate
    return None


def _age(moment: float | None, now: float) -> float | None:
    return None if moment is None else max(0.0, now - moment)

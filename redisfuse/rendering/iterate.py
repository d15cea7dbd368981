"""Iterating over a collection in batches.

A batch has at most 1000 elements and, as far as can be predicted, about 1 MiB. None of these iterations is a snapshot:
no Redis command gives one at a bounded cost. An element that exists throughout is yielded; one that is added, removed
or moved meanwhile may be yielded or not. A key that vanishes on the way, or changes its type, is an error and never
just the end: NotFoundError, WrongTypeError.
"""

import hashlib
from collections.abc import Iterator

from more_itertools import chunked

from redisfuse.client.client import RedisClient
from redisfuse.client.scan_guard import ScanGuard
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import NotFoundError, ReplyTooLargeError, WrongTypeError
from redisfuse.rendering.renderer import Element

MAX_BATCH_ELEMENTS = 1000
MAX_EMPTY_READS = 3  # of a collection that seems empty: none is, except a hash whose fields are all expiring just now
MAX_SORTED_BYTES = 4 << 20  # of elements that are collected to be sorted
DEDUP_WINDOW_ELEMENTS = 1 << 16  # elements among which a repetition is recognized
_MAX_STORED_NAME_BYTES = 32  # of a name that is remembered as it is


class BatchSizer:
    """The number of elements to request next.

    It is small at first, then follows the size of the previous ones.
    """

    def __init__(self) -> None:
        self.count = 16

    def record_batch(self, batch: list[Element]) -> None:
        """Adapt `count` to the size of the last batch."""
        if batch:
            self.count = max(
                1, min(MAX_BATCH_ELEMENTS, self.count * 8, CHUNK_BYTES * len(batch) // max(1, count_bytes(batch)))
            )

    def request_less(self, error: ReplyTooLargeError) -> None:
        """Request a single element next, because the last batch was too large.

        Raises its error if it was a single element.
        """
        if self.count == 1:
            raise error
        self.count = 1


def key_vanished_error(key: bytes) -> NotFoundError:
    """Return the error for a key that no longer exists."""
    return NotFoundError(f"key {key!r} no longer exists")


def require_key_type(client: RedisClient, key: bytes, type: bytes) -> None:
    """Check that the key still exists with its type.

    Then an empty reply is the end of the collection.

    Raises NotFoundError, WrongTypeError.
    """
    current_type = client.execute(b"TYPE", key)
    if current_type == b"none":
        raise key_vanished_error(key)
    if current_type != type:
        raise WrongTypeError(
            f"key {key!r} changed its type from {type.decode()} to {current_type.decode(errors='replace')}"
        )


class Deduplicator:
    """Recognises elements that *SCAN returns twice.

    Remembers at least the last 65 536 elements, in at most about 15 MB.

    That is enough in practice: *SCAN repeats an element only when the table shrinks on the way, and then only elements
    of the current bucket, whose old buckets came just before. A longer distance would need a table that shrinks to a
    65 536th between two batches.
    """

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._previous: set[bytes] = set()

    def filter_new(self, batch: list[Element]) -> list[Element]:
        """Return the elements of `batch` that did not occur before.

        Elements are identified by their first parts.
        """
        if self._add_if_new([element[0] for element in batch]):
            return batch
        new_elements = []
        for element in batch:
            name = element[0]
            if len(name) > _MAX_STORED_NAME_BYTES:  # a digest; the suffix makes it the longest
                name = hashlib.blake2b(name, digest_size=32).digest() + b"#"
            if name not in self._recent and name not in self._previous:
                self._recent.add(name)
                new_elements.append(element)
        self._limit_window()
        return new_elements

    def filter_new_names(self, names: list[bytes]) -> list[bytes]:
        """Return the names that did not occur before."""
        return names if self._add_if_new(names) else [name for (name,) in self.filter_new([(one,) for one in names])]

    def _add_if_new(self, names: list[bytes]) -> bool:
        """Add names if all are new and short, as usual; return whether they were."""
        new = set(names)
        if len(new) < len(names) or max(map(len, names), default=0) > _MAX_STORED_NAME_BYTES:
            return False
        if not (self._recent.isdisjoint(new) and self._previous.isdisjoint(new)):
            return False
        self._recent |= new
        self._limit_window()
        return True

    def _limit_window(self) -> None:
        if len(self._recent) >= DEDUP_WINDOW_ELEMENTS:
            self._previous, self._recent = self._recent, set()


def count_bytes(batch: list[Element]) -> int:
    """Return the number of bytes in all parts of all elements."""
    return sum([len(part) for element in batch for part in element])


def iter_scan(
    client: RedisClient, key: bytes, type: bytes, command: bytes, parts_per_element: int
) -> Iterator[list[Element]]:
    """Yield the elements that SSCAN or HSCAN returns, without repetitions.

    An element has 1 part with SSCAN, 2 parts with HSCAN.
    """
    sizer = BatchSizer()
    deduplicator = Deduplicator()
    guard = ScanGuard(command.decode(), client.limits.timeout)
    cursor = b"0"
    empty_scans = 0
    has_elements = False
    while True:
        sent = cursor
        try:
            cursor, parts = client.execute(command, key, cursor, b"COUNT", sizer.count)
        except ReplyTooLargeError as error:
            sizer.request_less(error)
            continue
        guard.check(sent, cursor)
        batch: list[Element] = list(zip(*[iter(parts)] * parts_per_element, strict=False))
        sizer.record_batch(batch)
        if batch:
            has_elements = True
            new_elements = deduplicator.filter_new(batch)
            if new_elements:
                guard.record_progress()
            yield new_elements
        if cursor == b"0":
            if not batch:  # *SCAN replies so for a key that doesn't exist, too
                require_key_type(client, key, type)
            empty_scans += 1
            if has_elements or empty_scans == MAX_EMPTY_READS:
                return


def sort_batches(batches: Iterator[list[Element]], max_elements: int) -> Iterator[list[Element]]:
    """Yield the elements sorted by their bytes, if they are few.

    That is at most `max_elements` of 4 MiB in total; otherwise they are in the order of `batches`.
    """
    collected: list[Element] = []
    size = 0
    for batch in batches:
        collected += batch
        size += count_bytes(batch)
        if len(collected) > max_elements or size > MAX_SORTED_BYTES:
            yield collected
            yield from batches
            return
    yield from chunked(sorted(collected), MAX_BATCH_ELEMENTS)


def iter_range(
    client: RedisClient, key: bytes, type: bytes, command: bytes, *extra_args: bytes
) -> Iterator[list[Element]]:
    """Yield the elements of LRANGE, or the pairs of ZRANGE, by rank.

    A pair is (member, score), from ZRANGE … WITHSCORES.
    """
    sizer = BatchSizer()
    deduplicator = Deduplicator() if extra_args else None  # a member whose score grows meanwhile would be repeated
    start = empty_reads = 0
    while True:
        count = sizer.count
        try:
            parts = client.execute(command, key, start, start + count - 1, *extra_args)
        except ReplyTooLargeError as error:
            sizer.request_less(error)
            continue
        batch: list[Element] = list(zip(*[iter(parts)] * (2 if extra_args else 1), strict=False))
        sizer.record_batch(batch)
        if batch:
            yield deduplicator.filter_new(batch) if deduplicator else batch
        else:
            require_key_type(client, key, type)
            empty_reads += 1
            if not start and empty_reads < MAX_EMPTY_READS:
                continue  # the key vanished and exists again
        if len(batch) < count:
            return
        start += count

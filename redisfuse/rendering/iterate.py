"""Walking a collection in pieces: at most 1000 elements and, as far as can be known before asking, about 1 MiB each.

None of these walks is a snapshot (no Redis command gives one at a bounded cost): an element that is there throughout is
given; one that comes, goes or moves meanwhile may be given or not. A key that vanishes on the way, or becomes another
type, is an error and never just the end: NotFoundError, WrongTypeError.
"""

import hashlib
from collections.abc import Iterator

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import RedisClient
from redisfuse.errors import NotFoundError, WrongTypeError
from redisfuse.rendering.renderer import Element

MAX_BATCH_ELEMENTS = 1000  # elements a piece
MAX_EMPTY_READS = 3  # at a collection that seems to be empty, which none is, but for a hash whose fields all expire now
DEDUP_WINDOW_ELEMENTS = 1 << 16  # elements among which a repetition is noticed


class BatchSizer:
    """How many elements to ask for next: a few first, then by the size of those before."""

    def __init__(self) -> None:
        self.count = 16

    def record_batch(self, batch: list[Element]) -> None:
        """This was the last piece."""
        if batch:
            self.count = max(
                1, min(MAX_BATCH_ELEMENTS, self.count * 8, CHUNK_BYTES * len(batch) // max(1, count_bytes(batch)))
            )


def key_vanished_error(key: bytes) -> NotFoundError:
    """The error for a key that is not there (any more)."""
    return NotFoundError(f"key {key!r} does not exist any more")


def require_key_type(client: RedisClient, key: bytes, type: bytes) -> None:
    """Raise NotFoundError or WrongTypeError unless the key is still there, and of its type: then it is the end."""
    found = client.execute(b"TYPE", key)
    if found == b"none":
        raise key_vanished_error(key)
    if found != type:
        raise WrongTypeError(f"key {key!r} was a {type.decode()} and is a {found.decode(errors='replace')} now")


class Deduplicator:
    """Recognises what *SCAN gives twice, among the last 65 536 elements at least, in at most about 15 MB.

    That is enough in practice: *SCAN repeats only when the table shrinks on the way, and then only elements of the
    bucket that it is at, whose old buckets came just before; a table would have to shrink to a 65 536th between two
    pieces.
    """

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._previous: set[bytes] = set()

    def filter_new(self, batch: list[Element], part_index: int = 0) -> list[Element]:
        """The elements of `piece` that were not given before, told apart by their part number `part`."""
        fresh = []
        for element in batch:
            name = element[part_index]
            if len(name) > 32:  # a digest, made longer than any name that is kept as it is
                name = hashlib.blake2b(name, digest_size=32).digest() + b"#"
            if name not in self._recent and name not in self._previous:
                self._recent.add(name)
                fresh.append(element)
        if len(self._recent) >= DEDUP_WINDOW_ELEMENTS:
            self._previous, self._recent = self._recent, set()
        return fresh


def count_bytes(batch: list[Element]) -> int:
    """Bytes of all parts of all elements."""
    return sum([len(part) for element in batch for part in element])


def iter_scan(
    client: RedisClient, key: bytes, type: bytes, command: bytes, parts_per_element: int
) -> Iterator[list[Element]]:
    """The elements that SSCAN (width 1) or HSCAN (width 2) gives, without repetitions."""
    pace = BatchSizer()
    repetitions = Deduplicator()
    cursor = b"0"
    empty = 0
    found = False
    while True:
        cursor, flat = client.execute(command, key, cursor, b"COUNT", pace.count)
        piece: list[Element] = list(zip(*[iter(flat)] * parts_per_element, strict=True))
        pace.record_batch(piece)
        if piece:
            found = True
            yield repetitions.filter_new(piece)
        if cursor == b"0":
            if not piece:  # what HSCAN says of a key that is gone
                require_key_type(client, key, type)
            empty += 1
            if found or empty == MAX_EMPTY_READS:
                return


def iter_range(
    client: RedisClient, key: bytes, type: bytes, command: bytes, *extra_args: bytes
) -> Iterator[list[Element]]:
    """The elements that LRANGE or ZRANGE … WITHSCORES gives (member and score then), by rank."""
    pace = BatchSizer()
    repetitions = Deduplicator() if extra_args else None  # a member whose score grows meanwhile would come again
    start = empty = 0
    while True:
        asked = pace.count
        flat = client.execute(command, key, start, start + asked - 1, *extra_args)
        piece: list[Element] = list(zip(*[iter(flat)] * (2 if extra_args else 1), strict=True))
        pace.record_batch(piece)
        if piece:
            yield repetitions.filter_new(piece) if repetitions else piece
        else:
            require_key_type(client, key, type)
            empty += 1
            if not start and empty < MAX_EMPTY_READS:
                continue  # it was gone, and is there again
        if len(piece) < asked:
            return
        start += asked

"""Walking a collection in pieces: at most 1000 elements and, as far as can be known before asking, about 1 MiB each.

None of these walks is a snapshot (no Redis command gives one at a bounded cost): an element that is there throughout is
given; one that comes, goes or moves meanwhile may be given or not. A key that vanishes on the way, or becomes another
type, is an error and never just the end: NotFoundError, WrongTypeError.
"""

import hashlib
from collections.abc import Iterator

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import Server
from redisfuse.errors import NotFoundError, WrongTypeError
from redisfuse.rendering.renderer import Element

MOST = 1000  # elements a piece
ATTEMPTS = 3  # at a collection that seems to be empty, which none is, but for a hash whose fields all expire now
REMEMBERED = 1 << 16  # elements among which a repetition is noticed


class Pace:
    """How many elements to ask for next: a few first, then by the size of those before."""

    def __init__(self) -> None:
        self.count = 16

    def saw(self, piece: list[Element]) -> None:
        """This was the last piece."""
        if piece:
            self.count = max(1, min(MOST, self.count * 8, CHUNK_BYTES * len(piece) // max(1, size_of(piece))))


def vanished(key: bytes) -> NotFoundError:
    """The error for a key that is not there (any more)."""
    return NotFoundError(f"key {key!r} does not exist any more")


def check_end(server: Server, key: bytes, type: bytes) -> None:
    """Raise NotFoundError or WrongTypeError unless the key is still there, and of its type: then it is the end."""
    found = server.ask(b"TYPE", key)
    if found == b"none":
        raise vanished(key)
    if found != type:
        raise WrongTypeError(f"key {key!r} was a {type.decode()} and is a {found.decode(errors='replace')} now")


class Repetitions:
    """Recognises what *SCAN gives twice, among the last 65 536 elements at least, in at most about 15 MB.

    That is enough in practice: *SCAN repeats only when the table shrinks on the way, and then only elements of the
    bucket that it is at, whose old buckets came just before; a table would have to shrink to a 65 536th between two
    pieces.
    """

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._older: set[bytes] = set()

    def fresh(self, piece: list[Element], part: int = 0) -> list[Element]:
        """The elements of `piece` that were not given before, told apart by their part number `part`."""
        fresh = []
        for element in piece:
            name = element[part]
            if len(name) > 32:  # a digest, made longer than any name that is kept as it is
                name = hashlib.blake2b(name, digest_size=32).digest() + b"#"
            if name not in self._recent and name not in self._older:
                self._recent.add(name)
                fresh.append(element)
        if len(self._recent) >= REMEMBERED:
            self._older, self._recent = self._recent, set()
        return fresh


def size_of(piece: list[Element]) -> int:
    """Bytes of all parts of all elements."""
    return sum([len(part) for element in piece for part in element])


def walk_scan(server: Server, key: bytes, type: bytes, command: bytes, width: int) -> Iterator[list[Element]]:
    """The elements that SSCAN (width 1) or HSCAN (width 2) gives, without repetitions."""
    pace = Pace()
    repetitions = Repetitions()
    cursor = b"0"
    empty = 0
    found = False
    while True:
        cursor, flat = server.ask(command, key, cursor, b"COUNT", pace.count)
        piece: list[Element] = list(zip(*[iter(flat)] * width, strict=True))
        pace.saw(piece)
        if piece:
            found = True
            yield repetitions.fresh(piece)
        if cursor == b"0":
            if not piece:  # what HSCAN says of a key that is gone
                check_end(server, key, type)
            empty += 1
            if found or empty == ATTEMPTS:
                return


def walk_ranks(server: Server, key: bytes, type: bytes, command: bytes, *more: bytes) -> Iterator[list[Element]]:
    """The elements that LRANGE or ZRANGE … WITHSCORES gives (member and score then), by rank."""
    pace = Pace()
    repetitions = Repetitions() if more else None  # a member whose score grows meanwhile would come again
    start = empty = 0
    while True:
        asked = pace.count
        flat = server.ask(command, key, start, start + asked - 1, *more)
        piece: list[Element] = list(zip(*[iter(flat)] * (2 if more else 1), strict=True))
        pace.saw(piece)
        if piece:
            yield repetitions.fresh(piece) if repetitions else piece
        else:
            check_end(server, key, type)
            empty += 1
            if not start and empty < ATTEMPTS:
                continue  # it was gone, and is there again
        if len(piece) < asked:
            return
        start += asked

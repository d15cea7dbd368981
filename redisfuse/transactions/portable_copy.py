"""The elements of a key that is no string: read in pieces into its portable copy, and written back from it.

*SCAN may repeat elements and answers in no order; what it brings is sorted and freed of repetitions, on disk if it is
much, so that equal values give equal copies (a hash's DUMPs can differ).
"""

import heapq
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, BinaryIO

from redisfuse.batching import CHUNK_BYTES, batched
from redisfuse.client.client import Facts
from redisfuse.journal import portable
from redisfuse.journal.models import Content
from redisfuse.journal.portable import Record
from redisfuse.transactions.multi_exec import Argument, Command, command_size, value

Asked = list[tuple[Argument, ...]]
Pieces = Generator[Asked, list[Any], None]

FIRST_PIECE = 128  # elements; the next pieces are as long as 1 MiB allows
LONGEST_PIECE = 1000  # elements
RUN = 8 * CHUNK_BYTES  # bytes of lines that are sorted in memory


@dataclass(frozen=True, slots=True)
class Reader:
    """How one type is read: the command that counts its elements, and a generator that walks it in pieces."""

    count: str
    walk: Callable[["_Walk"], Pieces]
    sorted: bool = False  # its elements come in no order, perhaps twice


class _Walk:
    """One walk: where the elements go, and how many to ask for next."""

    def __init__(self, key: bytes, facts: Facts, take: Callable[[Record], int]) -> None:
        self.key = key
        self.facts = facts
        self.piece = FIRST_PIECE
        self._take = take

    def take(self, records: Iterable[Record]) -> None:
        """Put a piece away, and size the next one."""
        count = size = 0
        for record in records:
            size += self._take(record)
            count += 1
        if count:
            self.piece = max(1, min(LONGEST_PIECE, CHUNK_BYTES * count // max(size, 1)))


def _walk_list(walk: _Walk) -> Pieces:
    start = 0
    while True:
        (reply,) = yield [("LRANGE", walk.key, start, start + walk.piece - 1)]
        elements = value(reply)
        if not elements:
            return
        start += len(elements)
        walk.take((element,) for element in elements)


def _walk_set(walk: _Walk) -> Pieces:
    cursor: Any = b"0"
    while True:
        (reply,) = yield [("SSCAN", walk.key, cursor, "COUNT", walk.piece)]
        cursor, members = value(reply)
        walk.take((member,) for member in members)
        if cursor == b"0":
            return


def _walk_zset(walk: _Walk) -> Pieces:
    start = 0
    while True:
        (reply,) = yield [("ZRANGE", walk.key, start, start + walk.piece - 1, "WITHSCORES")]
        flat = value(reply)
        if not flat:
            return
        start += len(flat) // 2
        walk.take(zip(flat[::2], flat[1::2], strict=True))


def _walk_hash(walk: _Walk) -> Pieces:
    cursor: Any = b"0"
    while True:
        (reply,) = yield [("HSCAN", walk.key, cursor, "COUNT", walk.piece)]
        cursor, flat = value(reply)
        fields, values = flat[::2], flat[1::2]
        if walk.facts.has_hash_field_ttl and fields:
            (times,) = yield [("HPEXPIRETIME", walk.key, "FIELDS", len(fields), *fields)]
            triples = zip(fields, values, value(times), strict=True)
            walk.take((field, data, at) if at >= 0 else (field, data) for field, data, at in triples)
        else:
            walk.take(zip(fields, values, strict=True))
        if cursor == b"0":
            return


def _walk_stream(walk: _Walk) -> Pieces:
    start = b"-"
    while True:
        (reply,) = yield [("XRANGE", walk.key, start, "+", "COUNT", walk.piece)]
        entries = value(reply)
        if not entries:
            return
        walk.take((identity, *(fields or ())) for identity, fields in entries)
        start = _after(entries[-1][0])


def _after(identity: bytes) -> bytes:
    """The smallest stream ID above this one."""
    time, _, number = identity.partition(b"-")
    if int(number) == 2**64 - 1:
        return b"%d-0" % (int(time) + 1)
    return b"%b-%d" % (time, int(number) + 1)


def _walk_json(walk: _Walk) -> Pieces:
    (reply,) = yield [("JSON.GET", walk.key)]
    walk.take([(value(reply),)])


READERS = {
    b"list": Reader("LLEN", _walk_list),
    b"set": Reader("SCARD", _walk_set, sorted=True),
    b"zset": Reader("ZCARD", _walk_zset),
    b"hash": Reader("HLEN", _walk_hash, sorted=True),
    b"stream": Reader("XLEN", _walk_stream),
    b"ReJSON-RL": Reader("EXISTS", _walk_json),
}


def collect(
    key_type: bytes, key: bytes, count: int, facts: Facts, spool: Callable[[], BinaryIO]
) -> Generator[Asked, list[Any], tuple[Content, str | None]]:
    """Read all elements into a portable copy; beside it what that can't carry, in words."""
    reader = READERS[key_type]
    about: dict[str, Any] = {"type": key_type.decode("ascii", "replace"), "elements": count}
    note = None
    if key_type == b"stream":
        note = yield from _about_stream(key, about)
    lines = _Lines(spool, sort=reader.sorted)
    yield from reader.walk(_Walk(key, facts, lines.take))
    return lines.content(portable.header(about)), note


def _about_stream(key: bytes, about: dict[str, Any]) -> Generator[Asked, list[Any], str | None]:
    stream, groups = yield [("XINFO", "STREAM", key), ("XINFO", "GROUPS", key)]
    about["last_id"] = _pairs(value(stream))[b"last-generated-id"].decode()
    found = [_pairs(group) for group in value(groups)]
    about["groups"] = {group[b"name"].hex(): group[b"last-delivered-id"].decode() for group in found}
    pending = sum(int(group[b"pending"]) for group in found)
    if not pending:
        return None
    return f"the portable copy has the groups of this stream, but not their {pending} pending entries"


def _pairs(flat: Any) -> dict[bytes, Any]:
    return dict(flat) if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))


class _Lines:
    """Encoded elements, in memory as long as they are few, in order of arrival or sorted and each once."""

    def __init__(self, spool: Callable[[], BinaryIO], *, sort: bool) -> None:
        self._spool = spool
        self._sort = sort
        self._lines: list[bytes] = []
        self._size = 0
        self._runs: list[BinaryIO] = []

    def take(self, record: Record) -> int:
        """Add one element; returns the bytes of its line."""
        line = portable.encode(record)
        self._lines.append(line)
        self._size += len(line)
        if self._size > RUN:
            self._put_away()
        return len(line)

    def _put_away(self) -> None:
        if self._sort or not self._runs:
            self._runs.append(self._spool())
        self._runs[-1].writelines(sorted(self._lines) if self._sort else self._lines)
        self._lines, self._size = [], 0

    def content(self, header: bytes) -> Content:
        """The whole copy."""
        if not self._runs:
            lines = sorted(set(self._lines)) if self._sort else self._lines
            data = b"".join([header, *lines])
            if len(data) <= CHUNK_BYTES:
                return Content.of(data)
        self._put_away()
        for run in self._runs:
            run.seek(0)
        ordered: Iterator[bytes] = heapq.merge(*self._runs)  # of one run: as it is
        if self._sort:
            ordered = (line for line, _ in groupby(ordered))
        whole = self._spool()
        whole.write(header)
        whole.writelines(ordered)
        return Content.of_file(whole)


# -- and back ----------------------------------------------------------------------------------------------------------


def rebuild(key: bytes, copy: Content, facts: Facts) -> Iterator[Command]:
    """The commands that make the key (absent before) what its copy says, in pieces of 1 MiB or 1000 elements."""
    about, records = portable.decode(copy.chunks())
    key_type = about["type"].encode()
    if key_type == b"hash" and not facts.has_hash_field_ttl:
        records = (record[:2] for record in records)
    yield from _REBUILDERS[key_type](key, records, about)


def can_rebuild(key_type: bytes) -> bool:
    """Whether a portable copy of this type can be written back."""
    return key_type in _REBUILDERS


def _batched_commands(records: Iterable[tuple[Argument, ...]]) -> Iterator[list[Command]]:
    commands = (Command(record) for record in records)
    return batched(commands, LONGEST_PIECE, max_weight=CHUNK_BYTES, weigh=command_size)


def _in_pieces(head: tuple[Argument, ...], records: Iterable[tuple[Argument, ...]]) -> Iterator[Command]:
    """One command for as many elements as fit: its head, then the words of each element."""
    for batch in _batched_commands(records):
        yield Command((*head, *(word for element in batch for word in element.words)))


def _rebuild_list(key: bytes, records: Iterable[Record], _about: dict[str, Any]) -> Iterator[Command]:
    return _in_pieces(("RPUSH", key), records)


def _rebuild_set(key: bytes, records: Iterable[Record], _about: dict[str, Any]) -> Iterator[Command]:
    return _in_pieces(("SADD", key), records)


def _rebuild_zset(key: bytes, records: Iterable[Record], _about: dict[str, Any]) -> Iterator[Command]:
    return _in_pieces(("ZADD", key), ((score, member) for member, score in records))


def _rebuild_hash(key: bytes, records: Iterable[Record], _about: dict[str, Any]) -> Iterator[Command]:
    for batch in _batched_commands(records):
        yield Command(("HSET", key, *(word for element in batch for word in element.words[:2])))
        for element in batch:
            field, _data, *at = element.words
            if at:
                yield Command.of("HPEXPIREAT", key, at[0], "FIELDS", 1, field)


def _rebuild_stream(key: bytes, records: Iterable[Record], about: dict[str, Any]) -> Iterator[Command]:
    last_id = about["last_id"]
    empty = True
    for identity, *pairs in records:
        empty = False
        yield Command.of("XADD", key, identity, *pairs)
    if empty:  # a stream may be empty: one entry makes it, and is trimmed at once
        yield Command.of("XADD", key, "MAXLEN", 0, last_id if last_id != "0-0" else "0-1", b"f", b"v")
    yield Command.of("XSETID", key, last_id)
    for name, delivered in about["groups"].items():
        yield Command.of("XGROUP", "CREATE", key, bytes.fromhex(name), delivered)


def _rebuild_json(key: bytes, records: Iterable[Record], _about: dict[str, Any]) -> Iterator[Command]:
    for (document,) in records:
        yield Command.of("JSON.SET", key, "$", document)


_REBUILDERS: dict[bytes, Callable[[bytes, Iterable[Record], dict[str, Any]], Iterator[Command]]] = {
    b"list": _rebuild_list,
    b"set": _rebuild_set,
    b"zset": _rebuild_zset,
    b"hash": _rebuild_hash,
    b"stream": _rebuild_stream,
    b"ReJSON-RL": _rebuild_json,
}

"""How the elements of each Redis type are read, page by page, and written back.

Pure: sends nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from more_itertools import constrained_batches

from redisfuse.client.capabilities import ServerInfo
from redisfuse.client.channel import CommandArgument
from redisfuse.config import CHUNK_BYTES
from redisfuse.journal.portable import ElementRecord
from redisfuse.transactions.spool import MAX_PAGE_ELEMENTS, RecordSpool
from redisfuse.transactions.write_command import (
    PipelinedCommands,
    WriteCommand,
    estimate_command_bytes,
    unwrap_reply,
)

ScanRounds = Generator[PipelinedCommands, list[Any], None]
"""Yields the commands to run next and is sent their replies."""


@dataclass(frozen=True, slots=True)
class ElementScan:
    """A key whose elements are read, and the spool that receives them."""

    key: bytes
    server_info: ServerInfo
    spool: RecordSpool


@dataclass(frozen=True, slots=True)
class DecodedCopy:
    """A portable copy to create a key from, which is absent.

    `records` can be iterated once.
    """

    key: bytes
    header: dict[str, Any]
    records: Iterable[ElementRecord]


class PortableType(ABC):
    """One Redis type whose elements can be read and written back."""

    count_command: ClassVar[str]
    needs_sorting: ClassVar[bool] = False  # its elements arrive in no order, perhaps repeatedly

    @abstractmethod
    def scan(self, scan: ElementScan) -> ScanRounds:
        """Read all elements into the spool, page by page."""

    @abstractmethod
    def rebuild(self, copy: DecodedCopy) -> Iterator[WriteCommand]:
        """Yield the commands that create the key."""


class ListType(PortableType):
    """A list: its elements in order."""

    count_command = "LLEN"

    def scan(self, scan: ElementScan) -> ScanRounds:
        start = 0
        while True:
            (reply,) = yield [("LRANGE", scan.key, start, start + scan.spool.page_size - 1)]
            elements = unwrap_reply(reply)
            if not elements:
                return
            start += len(elements)
            scan.spool.add_page((element,) for element in elements)

    def rebuild(self, copy: DecodedCopy) -> Iterator[WriteCommand]:
        return _batch_elements(("RPUSH", copy.key), copy.records)


class SetType(PortableType):
    """A set: its members."""

    count_command = "SCARD"
    needs_sorting = True

    def scan(self, scan: ElementScan) -> ScanRounds:
        cursor: Any = b"0"
        while True:
            (reply,) = yield [("SSCAN", scan.key, cursor, "COUNT", scan.spool.page_size)]
            cursor, members = unwrap_reply(reply)
            scan.spool.add_page((member,) for member in members)
            if cursor == b"0":
                return

    def rebuild(self, copy: DecodedCopy) -> Iterator[WriteCommand]:
        return _batch_elements(("SADD", copy.key), copy.records)


class SortedSetType(PortableType):
    """A sorted set: pairs of member and score, by rank."""

    count_command = "ZCARD"

    def scan(self, scan: ElementScan) -> ScanRounds:
        start = 0
        while True:
            (reply,) = yield [("ZRANGE", scan.key, start, start + scan.spool.page_size - 1, "WITHSCORES")]
            flat = unwrap_reply(reply)
            if not flat:
                return
            start += len(flat) // 2
            scan.spool.add_page(zip(flat[::2], flat[1::2], strict=True))

    def rebuild(self, copy: DecodedCopy) -> Iterator[WriteCommand]:
        return _batch_elements(("ZADD", copy.key), ((score, member) for member, score in copy.records))


class HashType(PortableType):
    """A hash: pairs of field and value, or triples with the expiry (absolute ms)."""

    count_command = "HLEN"
    needs_sorting = True

    def scan(self, scan: ElementScan) -> ScanRounds:
        cursor: Any = b"0"
        while True:
            (reply,) = yield [("HSCAN", scan.key, cursor, "COUNT", scan.spool.page_size)]
            cursor, flat = unwrap_reply(reply)
            fields, values = flat[::2], flat[1::2]
            if scan.server_info.has_hash_field_ttl and fields:
                (expiries,) = yield [("HPEXPIRETIME", scan.key, "FIELDS", len(fields), *fields)]
                triples = zip(fields, values, unwrap_reply(expiries), strict=True)
                scan.spool.add_page((field, value, at) if at >= 0 else (field, value) for field, value, at in triples)
            else:
                scan.spool.add_page(zip(fields, values, strict=True))
            if cursor == b"0":
                return

    def rebuild(self, copy: DecodedCopy) -> Iterator[WriteCommand]:
        for batch in _batch_records(copy.records):
            yield WriteCommand(("HSET", copy.key, *(arg for element in batch for arg in element.args[:2])))
            for element in batch:
                field, _value, *expiry = element.args
                if expiry:
                    yield WriteCommand.from_args("HPEXPIREAT", copy.key, expiry[0], "FIELDS", 1, field)


class StreamType(PortableType):
    """A stream: its entries by ID.

    The header holds its last ID and its consumer groups.
    """

    count_command = "XLEN"

    def scan(self, scan: ElementScan) -> ScanRounds:
        start = b"-"
        while True:
            (reply,) = yield [("XRANGE", scan.key, start, "+", "COUNT", scan.spool.page_size)]
            entries = unwrap_reply(reply)
            if not entries:
                return
            scan.spool.add_page((entry_id, *(fields or ())) for entry_id, fields in entries)
            start = _next_stream_id(entries[-1][0])

    def rebuild(self, copy: DecodedCopy) -> Iterator[WriteCommand]:
        last_id = copy.header["last_id"]
        is_empty = True
        for entry_id, *pairs in copy.records:
            is_empty = False
            yield WriteCommand.from_args("XADD", copy.key, entry_id, *pairs)
        if is_empty:  # an empty stream exists: add one entry and trim it in the same command
            dummy_id = last_id if last_id != "0-0" else "0-1"
            yield WriteCommand.from_args("XADD", copy.key, "MAXLEN", 0, dummy_id, b"f", b"v")
        yield WriteCommand.from_args("XSETID", copy.key, last_id)
        for name, delivered_id in copy.header["groups"].items():
            yield WriteCommand.from_args("XGROUP", "CREATE", copy.key, bytes.fromhex(name), delivered_id)


class JsonType(PortableType):
    """A RedisJSON document: one element, its text."""

    count_command = "EXISTS"

    def scan(self, scan: ElementScan) -> ScanRounds:
        (reply,) = yield [("JSON.GET", scan.key)]
        scan.spool.add_page([(unwrap_reply(reply),)])

    def rebuild(self, copy: DecodedCopy) -> Iterator[WriteCommand]:
        for (document,) in copy.records:
            yield WriteCommand.from_args("JSON.SET", copy.key, "$", document)


PORTABLE_TYPES: dict[bytes, PortableType] = {
    b"list": ListType(),
    b"set": SetType(),
    b"zset": SortedSetType(),
    b"hash": HashType(),
    b"stream": StreamType(),
    b"ReJSON-RL": JsonType(),
}
"""By the name that TYPE returns."""


def _next_stream_id(stream_id: bytes) -> bytes:
    """Return the smallest stream ID above this one."""
    milliseconds, _, number = stream_id.partition(b"-")
    if int(number) == 2**64 - 1:
        return b"%d-0" % (int(milliseconds) + 1)
    return b"%b-%d" % (milliseconds, int(number) + 1)


def _batch_records(records: Iterable[tuple[CommandArgument, ...]]) -> Iterator[list[WriteCommand]]:
    commands = (WriteCommand(record) for record in records)
    return map(
        list, constrained_batches(commands, CHUNK_BYTES, MAX_PAGE_ELEMENTS, estimate_command_bytes, strict=False)
    )


def _batch_elements(
    leading_args: tuple[CommandArgument, ...], records: Iterable[tuple[CommandArgument, ...]]
) -> Iterator[WriteCommand]:
    """Generate variadic commands of as many elements as fit.

    Each has the leading arguments, then those of its elements.
    """
    for batch in _batch_records(records):
        yield WriteCommand((*leading_args, *(arg for element in batch for arg in element.args)))

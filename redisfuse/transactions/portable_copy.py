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
from redisfuse.client.client import ServerInfo
from redisfuse.journal import portable
from redisfuse.journal.models import Blob
from redisfuse.journal.portable import ElementRecord
from redisfuse.transactions.multi_exec import CommandArgument, WriteCommand, estimate_command_bytes, unwrap_reply

PipelinedCommands = list[tuple[CommandArgument, ...]]
ElementScan = Generator[PipelinedCommands, list[Any], None]

INITIAL_PAGE_ELEMENTS = 128  # elements; the next pieces are as long as 1 MiB allows
MAX_PAGE_ELEMENTS = 1000  # elements
SORT_RUN_BYTES = 8 * CHUNK_BYTES  # bytes of lines that are sorted in memory


@dataclass(frozen=True, slots=True)
class ElementReader:
    """How one type is read: the command that counts its elements, and a generator that walks it in pieces."""

    count_command: str
    scan: Callable[["_ScanState"], ElementScan]
    needs_sorting: bool = False  # its elements come in no order, perhaps twice


class _ScanState:
    """One walk: where the elements go, and how many to ask for next."""

    def __init__(self, key: bytes, server_info: ServerInfo, store_record: Callable[[ElementRecord], int]) -> None:
        self.key = key
        self.server_info = server_info
        self.page_size = INITIAL_PAGE_ELEMENTS
        self._store_record = store_record

    def store_page(self, records: Iterable[ElementRecord]) -> None:
        """Put a piece away, and size the next one."""
        count = size = 0
        for record in records:
            size += self._store_record(record)
            count += 1
        if count:
            self.page_size = max(1, min(MAX_PAGE_ELEMENTS, CHUNK_BYTES * count // max(size, 1)))


def _scan_list(scan: _ScanState) -> ElementScan:
    start = 0
    while True:
        (reply,) = yield [("LRANGE", scan.key, start, start + scan.page_size - 1)]
        elements = unwrap_reply(reply)
        if not elements:
            return
        start += len(elements)
        scan.store_page((element,) for element in elements)


def _scan_set(scan: _ScanState) -> ElementScan:
    cursor: Any = b"0"
    while True:
        (reply,) = yield [("SSCAN", scan.key, cursor, "COUNT", scan.page_size)]
        cursor, members = unwrap_reply(reply)
        scan.store_page((member,) for member in members)
        if cursor == b"0":
            return


def _scan_zset(scan: _ScanState) -> ElementScan:
    start = 0
    while True:
        (reply,) = yield [("ZRANGE", scan.key, start, start + scan.page_size - 1, "WITHSCORES")]
        flat = unwrap_reply(reply)
        if not flat:
            return
        start += len(flat) // 2
        scan.store_page(zip(flat[::2], flat[1::2], strict=True))


def _scan_hash(scan: _ScanState) -> ElementScan:
    cursor: Any = b"0"
    while True:
        (reply,) = yield [("HSCAN", scan.key, cursor, "COUNT", scan.page_size)]
        cursor, flat = unwrap_reply(reply)
        fields, values = flat[::2], flat[1::2]
        if scan.server_info.has_hash_field_ttl and fields:
            (times,) = yield [("HPEXPIRETIME", scan.key, "FIELDS", len(fields), *fields)]
            triples = zip(fields, values, unwrap_reply(times), strict=True)
            scan.store_page((field, data, at) if at >= 0 else (field, data) for field, data, at in triples)
        else:
            scan.store_page(zip(fields, values, strict=True))
        if cursor == b"0":
            return


def _scan_stream(scan: _ScanState) -> ElementScan:
    start = b"-"
    while True:
        (reply,) = yield [("XRANGE", scan.key, start, "+", "COUNT", scan.page_size)]
        entries = unwrap_reply(reply)
        if not entries:
            return
        scan.store_page((identity, *(fields or ())) for identity, fields in entries)
        start = _next_stream_id(entries[-1][0])


def _next_stream_id(stream_id: bytes) -> bytes:
    """The smallest stream ID above this one."""
    time, _, number = stream_id.partition(b"-")
    if int(number) == 2**64 - 1:
        return b"%d-0" % (int(time) + 1)
    return b"%b-%d" % (time, int(number) + 1)


def _scan_json(scan: _ScanState) -> ElementScan:
    (reply,) = yield [("JSON.GET", scan.key)]
    scan.store_page([(unwrap_reply(reply),)])


ELEMENT_READERS = {
    b"list": ElementReader("LLEN", _scan_list),
    b"set": ElementReader("SCARD", _scan_set, needs_sorting=True),
    b"zset": ElementReader("ZCARD", _scan_zset),
    b"hash": ElementReader("HLEN", _scan_hash, needs_sorting=True),
    b"stream": ElementReader("XLEN", _scan_stream),
    b"ReJSON-RL": ElementReader("EXISTS", _scan_json),
}


def read_portable_copy(
    key_type: bytes, key: bytes, element_count: int, server_info: ServerInfo, open_spool: Callable[[], BinaryIO]
) -> Generator[PipelinedCommands, list[Any], tuple[Blob, str | None]]:
    """Read all elements into a portable copy; beside it what that can't carry, in words."""
    reader = ELEMENT_READERS[key_type]
    about: dict[str, Any] = {"type": key_type.decode("ascii", "replace"), "elements": element_count}
    note = None
    if key_type == b"stream":
        note = yield from _read_stream_header(key, about)
    lines = _RecordSpool(open_spool, needs_sorting=reader.needs_sorting)
    yield from reader.scan(_ScanState(key, server_info, lines.add))
    return lines.to_blob(portable.encode_header(about)), note


def _read_stream_header(key: bytes, header: dict[str, Any]) -> Generator[PipelinedCommands, list[Any], str | None]:
    stream, groups = yield [("XINFO", "STREAM", key), ("XINFO", "GROUPS", key)]
    header["last_id"] = _pairs_to_dict(unwrap_reply(stream))[b"last-generated-id"].decode()
    found = [_pairs_to_dict(group) for group in unwrap_reply(groups)]
    header["groups"] = {group[b"name"].hex(): group[b"last-delivered-id"].decode() for group in found}
    pending = sum(int(group[b"pending"]) for group in found)
    if not pending:
        return None
    return f"the portable copy has the groups of this stream, but not their {pending} pending entries"


def _pairs_to_dict(flat: Any) -> dict[bytes, Any]:
    return dict(flat) if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))


class _RecordSpool:
    """Encoded elements, in memory as long as they are few, in order of arrival or sorted and each once."""

    def __init__(self, open_spool: Callable[[], BinaryIO], *, needs_sorting: bool) -> None:
        self._open_spool = open_spool
        self._needs_sorting = needs_sorting
        self._buffered: list[bytes] = []
        self._buffered_bytes = 0
        self._sort_runs: list[BinaryIO] = []

    def add(self, record: ElementRecord) -> int:
        """Add one element; returns the bytes of its line."""
        line = portable.encode_record(record)
        self._buffered.append(line)
        self._buffered_bytes += len(line)
        if self._buffered_bytes > SORT_RUN_BYTES:
            self._spill()
        return len(line)

    def _spill(self) -> None:
        if self._needs_sorting or not self._sort_runs:
            self._sort_runs.append(self._open_spool())
        self._sort_runs[-1].writelines(sorted(self._buffered) if self._needs_sorting else self._buffered)
        self._buffered, self._buffered_bytes = [], 0

    def to_blob(self, header: bytes) -> Blob:
        """The whole copy."""
        if not self._sort_runs:
            lines = sorted(set(self._buffered)) if self._needs_sorting else self._buffered
            data = b"".join([header, *lines])
            if len(data) <= CHUNK_BYTES:
                return Blob.from_bytes(data)
        self._spill()
        for run in self._sort_runs:
            run.seek(0)
        ordered: Iterator[bytes] = heapq.merge(*self._sort_runs)  # of one run: as it is
        if self._needs_sorting:
            ordered = (line for line, _ in groupby(ordered))
        whole = self._open_spool()
        whole.write(header)
        whole.writelines(ordered)
        return Blob.from_file(whole)


# -- and back ----------------------------------------------------------------------------------------------------------


def generate_rebuild_commands(key: bytes, portable_copy: Blob, server_info: ServerInfo) -> Iterator[WriteCommand]:
    """The commands that make the key (absent before) what its copy says, in pieces of 1 MiB or 1000 elements."""
    about, records = portable.decode_copy(portable_copy.iter_chunks())
    key_type = about["type"].encode()
    if key_type == b"hash" and not server_info.has_hash_field_ttl:
        records = (record[:2] for record in records)
    yield from _REBUILDERS[key_type](key, records, about)


def can_rebuild(key_type: bytes) -> bool:
    """Whether a portable copy of this type can be written back."""
    return key_type in _REBUILDERS


def _batch_records(records: Iterable[tuple[CommandArgument, ...]]) -> Iterator[list[WriteCommand]]:
    commands = (WriteCommand(record) for record in records)
    return batched(commands, MAX_PAGE_ELEMENTS, max_weight=CHUNK_BYTES, weigh=estimate_command_bytes)


def _batch_elements(
    leading_args: tuple[CommandArgument, ...], records: Iterable[tuple[CommandArgument, ...]]
) -> Iterator[WriteCommand]:
    """One command for as many elements as fit: its head, then the words of each element."""
    for batch in _batch_records(records):
        yield WriteCommand((*leading_args, *(word for element in batch for word in element.args)))


def _rebuild_list(key: bytes, records: Iterable[ElementRecord], _header: dict[str, Any]) -> Iterator[WriteCommand]:
    return _batch_elements(("RPUSH", key), records)


def _rebuild_set(key: bytes, records: Iterable[ElementRecord], _header: dict[str, Any]) -> Iterator[WriteCommand]:
    return _batch_elements(("SADD", key), records)


def _rebuild_zset(key: bytes, records: Iterable[ElementRecord], _header: dict[str, Any]) -> Iterator[WriteCommand]:
    return _batch_elements(("ZADD", key), ((score, member) for member, score in records))


def _rebuild_hash(key: bytes, records: Iterable[ElementRecord], _header: dict[str, Any]) -> Iterator[WriteCommand]:
    for batch in _batch_records(records):
        yield WriteCommand(("HSET", key, *(word for element in batch for word in element.args[:2])))
        for element in batch:
            field, _data, *at = element.args
            if at:
                yield WriteCommand.from_args("HPEXPIREAT", key, at[0], "FIELDS", 1, field)


def _rebuild_stream(key: bytes, records: Iterable[ElementRecord], header: dict[str, Any]) -> Iterator[WriteCommand]:
    last_id = header["last_id"]
    empty = True
    for identity, *pairs in records:
        empty = False
        yield WriteCommand.from_args("XADD", key, identity, *pairs)
    if empty:  # a stream may be empty: one entry makes it, and is trimmed at once
        yield WriteCommand.from_args("XADD", key, "MAXLEN", 0, last_id if last_id != "0-0" else "0-1", b"f", b"v")
    yield WriteCommand.from_args("XSETID", key, last_id)
    for name, delivered in header["groups"].items():
        yield WriteCommand.from_args("XGROUP", "CREATE", key, bytes.fromhex(name), delivered)


def _rebuild_json(key: bytes, records: Iterable[ElementRecord], _header: dict[str, Any]) -> Iterator[WriteCommand]:
    for (document,) in records:
        yield WriteCommand.from_args("JSON.SET", key, "$", document)


_REBUILDERS: dict[bytes, Callable[[bytes, Iterable[ElementRecord], dict[str, Any]], Iterator[WriteCommand]]] = {
    b"list": _rebuild_list,
    b"set": _rebuild_set,
    b"zset": _rebuild_zset,
    b"hash": _rebuild_hash,
    b"stream": _rebuild_stream,
    b"ReJSON-RL": _rebuild_json,
}

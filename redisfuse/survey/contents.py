"""The contents of many keys, as their files in a mount have them.

They are read in pipelines, in bounded pieces. A key of up to 16 KiB or 100 elements costs one command. Larger ones are
read in pieces of 1 MiB or 1000 elements, while they are consumed. A pipeline requests fewer collections after large
replies. Hashes are read field by field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast

from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.client.reply_bounds import MAX_ELEMENT_BYTES
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import AccessError, NotFoundError, RedisFuseError, ReplyTooLargeError, WrongTypeError
from redisfuse.rendering import rejson
from redisfuse.rendering.decoding.decoder import decode_value, render_decoded
from redisfuse.rendering.decoding.limits import DecodeLimits
from redisfuse.rendering.iterate import count_bytes
from redisfuse.rendering.registry import RENDERERS, format_lines, iter_elements
from redisfuse.rendering.renderer import Element, TypeRenderer
from redisfuse.rendering.text_view import ElementDecoder, join_beginning
from redisfuse.rendering.unknown import describe_unknown_type
from redisfuse.survey.records import FIELD_TYPE, KeyRecord
from redisfuse.survey.scan import UnreadableKeys

HEAD_BYTES = 16 << 10  # of a string, in its first piece
HEAD_ELEMENTS = 100  # of a collection, in its first piece

MAX_DECODED_BYTES = 64 << 10
"""Of a decoded text that is kept for the search; a longer one is decoded again."""

_PIPELINE_BYTES = 8 << 20  # of replies about collections, as far as the previous ones predict them
_MIN_PIPELINE_KEYS = 16
_MAX_PIPELINE_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a key or field."""

    record: KeyRecord
    data: bytes | None  # None: it is large
    chunks: Iterable[bytes]  # all of it; of large data, fetched whenever they are iterated over


class ContentReader:
    """Reads the contents of records on one node."""

    def __init__(
        self,
        client: RedisClient,
        unreadable: UnreadableKeys,
        *,
        hashes_as_files: bool,
        max_sorted: int,
        decode_limits: DecodeLimits | None = None,
    ) -> None:
        """Create a reader.

        `hashes_as_files`: a hash is one content. `max_sorted`: elements of a set or hash that are sorted.
        `decode_limits`: the contents are those of `NAME%text`, within these limits.
        """
        self._decode_limits = decode_limits
        self._client = client
        self._unreadable = unreadable
        self._hashes_as_files = hashes_as_files
        self._max_sorted = max_sorted
        self._pipeline_keys = _MIN_PIPELINE_KEYS

    def iter_contents(self, records: Sequence[KeyRecord]) -> Iterator[list[Content]]:
        """Yield the contents of records of known types, in lists as they arrive."""
        strings = [record for record in records if record.type == b"string"]
        collections = [record for record in records if record.type in RENDERERS]
        others = [record for record in records if record.type != b"string" and record.type not in RENDERERS]
        if strings:
            yield self._fetch_strings(strings)
        position = 0
        while position < len(collections):
            group = collections[position : position + self._pipeline_keys]
            position += len(group)
            yield self._fetch_collections(group)
        if others:
            yield [self._describe_other(record) for record in others]

    # -- strings ------------------------------------------------------------------------------------------------------

    def _fetch_strings(self, records: Sequence[KeyRecord]) -> list[Content]:
        replies = self._client.execute_many([(b"GETRANGE", record.key, 0, HEAD_BYTES - 1) for record in records])
        contents = []
        for record, head in zip(records, replies, strict=True):
            if isinstance(head, RedisFuseError):
                self._check_error(head)
            elif len(head) < HEAD_BYTES:
                contents.append(self._build_value(record, head))
            else:
                contents.append(self._build_large(record, _LazyChunks(self._iter_string, record.key, head)))
        return contents

    def _iter_string(self, key: bytes, head: bytes) -> Iterator[bytes]:
        yield head
        start = len(head)
        while True:
            piece = self._client.execute(b"GETRANGE", key, start, start + CHUNK_BYTES - 1)
            yield piece
            start += len(piece)
            if len(piece) < CHUNK_BYTES:
                return

    # -- collections --------------------------------------------------------------------------------------------------

    def _fetch_collections(self, records: Sequence[KeyRecord]) -> list[Content]:
        try:
            replies = self._client.execute_many([_head_command(record) for record in records])
        except ReplyTooLargeError:  # large elements: each collection is read on its own, with fewer at once
            self._pipeline_keys = _MIN_PIPELINE_KEYS
            return [content for record in records for content in self._read_large(record)]
        contents: list[Content] = []
        total = 0
        for record, reply in zip(records, replies, strict=True):
            if isinstance(reply, RedisFuseError):
                self._check_error(reply)
                continue
            elements, is_complete = _parse_head(record, reply)
            total += count_bytes(elements)
            if is_complete:
                contents += self._build_contents(record, elements)
            else:
                contents += self._read_large(record)
        average = max(1, total // len(records))
        self._pipeline_keys = max(
            _MIN_PIPELINE_KEYS, min(_MAX_PIPELINE_KEYS, 4 * self._pipeline_keys, _PIPELINE_BYTES // average)
        )
        return contents

    def _build_contents(self, record: KeyRecord, elements: list[Element]) -> list[Content]:
        renderer = _renderer(record)
        if renderer.is_unordered and self._max_sorted:
            elements = sorted(elements)
        if record.type == b"hash" and not self._hashes_as_files:
            return [
                self._build_value(KeyRecord(record.key, name, FIELD_TYPE, ttl_ms=record.ttl_ms), value)
                for name, value in elements
            ]
        if self._decode_limits is not None:
            return [Content(record, None, _LazyChunks(self._format, record, [elements]))]
        return [_whole_content(record, b"".join(format_lines(renderer, elements)))]

    def _read_large(self, record: KeyRecord) -> Iterator[Content]:
        """Yield the content of a collection, or of each field of a hash.

        The elements are fetched as they are consumed.
        """
        if record.type == b"hash" and not self._hashes_as_files:
            for batch in self._tolerate(self._iter_batches(record)):
                yield from self._build_contents(record, batch)
        else:
            yield Content(record, None, _LazyChunks(self._render, record))

    def _iter_batches(self, record: KeyRecord) -> Iterator[list[Element]]:
        return iter_elements(self._client, record.key, _renderer(record), self._max_sorted)

    def _render(self, record: KeyRecord) -> Iterator[bytes]:
        return self._format(record, self._tolerate(self._iter_batches(record)))

    def _format(self, record: KeyRecord, batches: Iterable[list[Element]]) -> Iterator[bytes]:
        """Yield the lines of the elements of one collection, in order."""
        renderer = _renderer(record)
        decoder = None if self._decode_limits is None else ElementDecoder(renderer, self._decode_limits)
        for batch in batches:
            yield from format_lines(renderer, batch) if decoder is None else decoder.format_lines(batch)

    # -- decoding -----------------------------------------------------------------------------------------------------

    def _build_value(self, record: KeyRecord, data: bytes) -> Content:
        """Return the content of a small string or field."""
        if self._decode_limits is None:
            return _whole_content(record, data)
        text = render_decoded(decode_value(data, self._decode_limits))
        if len(text) <= MAX_DECODED_BYTES:
            return _whole_content(record, text)
        return self._build_large(record, [data])

    def _build_large(self, record: KeyRecord, chunks: Iterable[bytes]) -> Content:
        """Return the content of a value that is fetched while it is consumed."""
        return Content(record, None, chunks if self._decode_limits is None else _LazyChunks(self._decode, chunks))

    def _decode(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        assert self._decode_limits is not None
        data = join_beginning(chunks, self._decode_limits.input_bytes)
        yield render_decoded(decode_value(data, self._decode_limits))

    # -- other types --------------------------------------------------------------------------------------------------

    def _describe_other(self, record: KeyRecord) -> Content:
        if record.type == FIELD_TYPE:
            return self._build_large(record, _LazyChunks(self._download, (b"HGET", record.key, record.field)))
        if record.type == rejson.JSON_TYPE:
            return self._build_large(record, _LazyChunks(self._fetch_json, record.key))
        return _whole_content(record, describe_unknown_type(record.type or b""))

    def _fetch_json(self, key: bytes) -> Iterator[bytes]:
        return self._tolerate(rejson.fetch_json(self._client, key))

    def _download(self, command: RedisCommand) -> Iterator[bytes]:
        """Yield a bulk string through a temporary file; memory use is constant."""
        with SpooledTemporaryFile(max_size=CHUNK_BYTES) as file:
            try:
                self._client.download(cast(BinaryIO, file), *command, max_bytes=MAX_ELEMENT_BYTES)
            except RedisFuseError as error:
                self._check_error(error)
                return
            file.seek(0)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    # -- errors -------------------------------------------------------------------------------------------------------

    def _tolerate(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items until the key vanishes, changes its type or is denied."""
        try:
            yield from items
        except RedisFuseError as error:
            self._check_error(error)

    def _check_error(self, error: RedisFuseError) -> None:
        """Count a denied key, ignore one that has changed; raise any other error."""
        if isinstance(error, AccessError):
            self._unreadable.add(error)
        elif not isinstance(error, NotFoundError | WrongTypeError):
            raise error


class _LazyChunks:
    """The chunks that a function yields.

    It is called whenever they are iterated over.
    """

    def __init__(self, function: Callable[..., Iterator[bytes]], *arguments: Any) -> None:
        self._function = function
        self._arguments = arguments

    def __iter__(self) -> Iterator[bytes]:
        return self._function(*self._arguments)


def _whole_content(record: KeyRecord, data: bytes) -> Content:
    return Content(record, data, [data])


def _renderer(record: KeyRecord) -> TypeRenderer:
    assert record.type is not None
    return RENDERERS[record.type]


def _head_command(record: KeyRecord) -> RedisCommand:
    """Return the command for the first elements of a collection."""
    key, last = record.key, HEAD_ELEMENTS - 1
    commands: dict[bytes, RedisCommand] = {
        b"hash": (b"HSCAN", key, b"0", b"COUNT", HEAD_ELEMENTS),
        b"set": (b"SSCAN", key, b"0", b"COUNT", HEAD_ELEMENTS),
        b"list": (b"LRANGE", key, 0, last),
        b"zset": (b"ZRANGE", key, 0, last, b"WITHSCORES"),
        b"stream": (b"XRANGE", key, b"-", b"+", b"COUNT", HEAD_ELEMENTS),
    }
    return commands[record.type or b""]


def _parse_head(record: KeyRecord, reply: Any) -> tuple[list[Element], bool]:
    """Return the elements of the reply to `_head_command`, and whether they are all."""
    if record.type == b"stream":
        return [(entry_id, *parts) for entry_id, parts in reply], len(reply) < HEAD_ELEMENTS
    if record.type == b"list":
        return [(element,) for element in reply], len(reply) < HEAD_ELEMENTS
    if record.type == b"zset":
        elements: list[Element] = [(score, member) for member, score in zip(reply[::2], reply[1::2], strict=True)]
        return elements, len(elements) < HEAD_ELEMENTS
    cursor, parts = reply
    if record.type == b"set":
        return [(member,) for member in parts], cursor == b"0"
    return list(zip(parts[::2], parts[1::2], strict=True)), cursor == b"0"

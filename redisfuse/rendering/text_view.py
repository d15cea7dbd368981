"""`NAME%text`: the decoded value of a key or field, as docs/reading.md has it.

A string or field is decoded as a whole. A collection reads as its file does, except that each element that is encoded
is replaced by its text, under a line with its place: `# 0: JSON`, `# field body: gzip > msgpack`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from redisfuse.client.client import RedisClient
from redisfuse.client.reply_bounds import MAX_ELEMENT_BYTES
from redisfuse.config import CHUNK_BYTES
from redisfuse.paths.grammar import KeyRef
from redisfuse.rendering import rejson, strings
from redisfuse.rendering.decoding.decoder import DecodedValue, decode_value, render_decoded
from redisfuse.rendering.decoding.limits import DecodeLimits
from redisfuse.rendering.registry import RENDERERS, format_lines, iter_elements
from redisfuse.rendering.renderer import Element, TypeRenderer
from redisfuse.rendering.unknown import describe_unknown_type
from redisfuse.text import escape_line


def render_decoded_text(
    client: RedisClient, target: KeyRef, type: bytes, limits: DecodeLimits, *, max_sorted: int = 0
) -> Iterator[bytes]:
    """Yield the text of a key or field, in chunks.

    `type` is the reply of TYPE. Raises NotFoundError, WrongTypeError, ConflictError.
    """
    if target.field is not None or type == b"string":
        yield render_decoded(decode_target(client, target, limits))
    elif type == rejson.JSON_TYPE:
        document = join_beginning(rejson.fetch_json(client, target.key), limits.input_bytes)
        yield render_decoded(decode_value(document, limits))
    elif type in RENDERERS:
        renderer = RENDERERS[type]
        decoder = ElementDecoder(renderer, limits)
        for batch in iter_elements(client, target.key, renderer, max_sorted):
            yield from decoder.format_lines(batch)
    else:
        yield describe_unknown_type(type)


def decode_target(client: RedisClient, target: KeyRef, limits: DecodeLimits) -> DecodedValue:
    """Return a string or field decoded.

    Of one beyond the limit, only the beginning is fetched or kept.

    Raises NotFoundError, WrongTypeError; ConflictError if a string changes its length meanwhile.
    """
    if target.field is None:
        length = strings.fetch_length(client, target.key)
        chunks = []
        for start in range(0, min(length, limits.input_bytes), CHUNK_BYTES):
            end = min(start + CHUNK_BYTES, length, limits.input_bytes)
            chunks += strings.fetch_ranges(client, target.key, length, [(start, end)])
        return decode_value(b"".join(chunks), limits, length)
    with SpooledTemporaryFile(max_size=limits.input_bytes) as file:
        size = client.download(cast(BinaryIO, file), b"HGET", target.key, target.field, max_bytes=MAX_ELEMENT_BYTES)
        file.seek(0)
        return decode_value(file.read(limits.input_bytes), limits, size)


class ElementDecoder:
    """Formats the elements of one collection, decoded. Holds the position in a list."""

    def __init__(self, renderer: TypeRenderer, limits: DecodeLimits) -> None:
        self._renderer = renderer
        self._limits = limits
        self._position = 0

    def format_lines(self, batch: list[Element]) -> Iterator[bytes]:
        """Yield the lines of the next elements, in chunks of about 1 MiB or one element."""
        chunks: list[bytes] = []
        size = 0
        for element in batch:
            for chunk in self._format_element(element):
                chunks.append(chunk)
                size += len(chunk)
                if size > CHUNK_BYTES:
                    yield b"".join(chunks)
                    chunks, size = [], 0
        yield b"".join(chunks)

    def _format_element(self, element: Element) -> Iterator[bytes]:
        encoded = []
        for place, part in self._list_values(element):
            value = decode_value(part, self._limits)
            if not value.is_plain:
                encoded.append((place, value))
        self._position += 1
        if not encoded or self._renderer.has_pairs:  # of an entry of a stream, some fields may be plain
            yield from format_lines(self._renderer, [element])
        for place, value in encoded:
            yield b"# %b: %b" % (place, render_decoded(value).removeprefix(b"# "))

    def _list_values(self, element: Element) -> list[tuple[bytes, bytes]]:
        """Return the (place, bytes) of each value of an element that may be encoded."""
        type = self._renderer.type
        if type == b"list":
            return [(b"%d" % self._position, element[0])]
        if type == b"set":
            return [(b"member", element[0])]
        if type == b"zset":
            return [(b"score %b" % element[0], element[1])]
        if type == b"hash":
            return [(b"field %b" % escape_line(element[0]), element[1])]
        return [
            (b"%b %b" % (element[0], escape_line(element[number])), element[number + 1])
            for number in range(1, len(element), 2)
        ]


def join_beginning(chunks: Iterable[bytes], max_bytes: int) -> bytes:
    """Return the chunks joined, up to the first byte too many."""
    joined = bytearray()
    for chunk in chunks:
        joined += chunk
        if len(joined) > max_bytes:
            break
    return bytes(joined[: max_bytes + 1])

"""The registry of types, and the text of a key's file."""

import math
import time
from collections.abc import Iterable, Iterator

from redisfuse.client.client import RedisClient
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import NotFoundError
from redisfuse.rendering import rejson, strings
from redisfuse.rendering.hashes import HashRenderer
from redisfuse.rendering.iterate import count_bytes, sort_batches
from redisfuse.rendering.lists import ListRenderer
from redisfuse.rendering.renderer import Element, TypeRenderer
from redisfuse.rendering.sets import SetRenderer
from redisfuse.rendering.streams import StreamRenderer
from redisfuse.rendering.unknown import describe_unknown_type
from redisfuse.rendering.zsets import SortedSetRenderer
from redisfuse.text import PLAIN, escape_line, escape_line_chunks

RENDERERS: dict[bytes, TypeRenderer] = {
    renderer.type: renderer
    for renderer in (ListRenderer(), SetRenderer(), SortedSetRenderer(), HashRenderer(), StreamRenderer())
}

_DELIMITERS = (b"\t", b"\n", b"=")


def iter_elements(client: RedisClient, key: bytes, renderer: TypeRenderer, max_sorted: int) -> Iterator[list[Element]]:
    """Yield the elements of a collection in batches.

    Unordered ones are sorted if they are at most `max_sorted`.
    """
    batches = renderer.iter_batches(client, key)
    return sort_batches(batches, max_sorted) if renderer.is_unordered and max_sorted else batches


def render_text(client: RedisClient, key: bytes, type: bytes, *, max_sorted: int = 0) -> Iterator[bytes]:
    """Yield the text of a key's file, in chunks.

    A chunk has about 1 MiB or 1000 elements, and is fetched when it is needed.

    `type` is the reply of TYPE. Raises NotFoundError or WrongTypeError, also midway, if the key vanished or changed
    its type; ConflictError if a string changed its length.
    """
    if type in RENDERERS:
        renderer = RENDERERS[type]
        for batch in iter_elements(client, key, renderer, max_sorted):
            yield from format_lines(renderer, batch)
    elif type == b"string":
        yield from strings.iter_chunks(client, key)
    elif type == rejson.JSON_TYPE:
        yield from rejson.fetch_json(client, key)
    elif type == b"none":
        raise NotFoundError(f"key {key!r} does not exist")
    else:
        yield describe_unknown_type(type)


def join_within(chunks: Iterable[bytes], max_bytes: int, max_seconds: float | None = None) -> bytes | None:
    """Return all chunks joined, or None if they have more than `max_bytes` bytes.

    The same if producing them takes more than `max_seconds` of processor time. Stops at the first excess chunk.
    """
    deadline = math.inf if max_seconds is None else time.thread_time() + max_seconds
    joined: list[bytes] = []
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > max_bytes or time.thread_time() > deadline:
            return None
        joined.append(chunk)
    return b"".join(joined)


def format_lines(renderer: TypeRenderer, batch: list[Element]) -> Iterator[bytes]:
    """Yield the lines of these elements: in one chunk, unless the elements are large.

    Pure.
    """
    if count_bytes(batch) <= 4 * CHUNK_BYTES:
        yield _format_small_lines(renderer, batch)
        return
    for element in batch:
        if sum(map(len, element)) <= CHUNK_BYTES:
            yield _format_small_lines(renderer, [element])
        else:
            yield from _format_large_line(renderer, element)


def _format_small_lines(renderer: TypeRenderer, batch: list[Element]) -> bytes:
    raw = b"".join([renderer.get_line_format(len(element)) % element for element in batch])
    # The common case is decided for all lines at once: plain bytes only, and no delimiters but those of the formats.
    if not raw.translate(None, PLAIN + b"\t\n"):
        formats = [renderer.get_line_format(len(element)) for element in batch]
        delimiters = _DELIMITERS if renderer.has_pairs else _DELIMITERS[:2]
        if all(raw.count(byte) == sum([line_format.count(byte) for line_format in formats]) for byte in delimiters):
            return raw
    return b"".join([renderer.get_line_format(len(element)) % _escape_element(renderer, element) for element in batch])


def _escape_element(renderer: TypeRenderer, element: Element) -> Element:
    parts = [escape_line(part) for part in element]
    if renderer.has_pairs:
        parts[1::2] = [part.replace(b"=", rb"\x3d") for part in parts[1::2]]
    return tuple(parts)


def _format_large_line(renderer: TypeRenderer, element: Element) -> Iterator[bytes]:
    _, *suffixes = renderer.get_line_format(len(element)).split(b"%b")  # the bytes after each part
    for number, (part, suffix) in enumerate(zip(element, suffixes, strict=True)):
        for text in escape_line_chunks(part):
            yield text.replace(b"=", rb"\x3d") if renderer.has_pairs and number % 2 else text
        yield suffix

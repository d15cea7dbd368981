"""A key of any type as the text of its file: the registry of types, and the walk from elements to lines."""

from collections.abc import Iterator

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import RedisClient
from redisfuse.errors import NotFoundError
from redisfuse.rendering import json, strings
from redisfuse.rendering.hashes import HASH
from redisfuse.rendering.iterate import count_bytes
from redisfuse.rendering.lists import LIST
from redisfuse.rendering.renderer import Element, TypeRenderer
from redisfuse.rendering.sets import SET
from redisfuse.rendering.streams import STREAM
from redisfuse.rendering.unknown import describe_unknown_type
from redisfuse.rendering.zsets import ZSET
from redisfuse.text import PLAIN, escape_line, escape_line_chunks

RENDERERS = {kind.type: kind for kind in (LIST, SET, ZSET, HASH, STREAM)}

_DELIMITERS = (b"\t", b"\n", b"=")


def render_text(client: RedisClient, key: bytes, type: bytes) -> Iterator[bytes]:
    """What the key's file holds, in pieces of about 1 MiB or 1000 elements, each fetched when it is asked for.

    `type` is what TYPE said. Raises NotFoundError or WrongTypeError, also midway, if the key vanished or changed its
    type; ConflictError if a string changed its length.
    """
    if type in RENDERERS:
        kind = RENDERERS[type]
        for piece in kind.iter_batches(client, key):
            yield from format_lines(kind, piece)
    elif type == b"string":
        yield from strings.iter_chunks(client, key)
    elif type == json.JSON_TYPE:
        yield from json.fetch_json(client, key)
    elif type == b"none":
        raise NotFoundError(f"key {key!r} does not exist")
    else:
        yield describe_unknown_type(type)


def render_text_within(client: RedisClient, key: bytes, type: bytes, max_bytes: int) -> bytes | None:
    """The whole text, or None if it is longer than `at_most` bytes. Raises as `render_text` does."""
    pieces = []
    size = 0
    for piece in render_text(client, key, type):
        size += len(piece)
        if size > max_bytes:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def format_lines(renderer: TypeRenderer, batch: list[Element]) -> Iterator[bytes]:
    """The lines of these elements: in one go, unless they are large. Pure."""
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
    # The ordinary case is decided for all lines at once: nothing but plain bytes, and no more marks than the format's.
    if not raw.translate(None, PLAIN + b"\t\n"):
        formats = [renderer.get_line_format(len(element)) for element in batch]
        marks = _DELIMITERS if renderer.has_pairs else _DELIMITERS[:2]
        if all(raw.count(mark) == sum([form.count(mark) for form in formats]) for mark in marks):
            return raw
    return b"".join([renderer.get_line_format(len(element)) % _escape_element(renderer, element) for element in batch])


def _escape_element(renderer: TypeRenderer, element: Element) -> Element:
    parts = [escape_line(part) for part in element]
    if renderer.has_pairs:
        parts[1::2] = [part.replace(b"=", rb"\x3d") for part in parts[1::2]]
    return tuple(parts)


def _format_large_line(renderer: TypeRenderer, element: Element) -> Iterator[bytes]:
    _, *ends = renderer.get_line_format(len(element)).split(b"%b")  # what follows each part
    for number, (part, end) in enumerate(zip(element, ends, strict=True)):
        for text in escape_line_chunks(part):
            yield text.replace(b"=", rb"\x3d") if renderer.has_pairs and number % 2 else text
        yield end

"""A key of any type as the text of its file: the registry of types, and the walk from elements to lines."""

from collections.abc import Iterator

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import Server
from redisfuse.errors import NotFoundError
from redisfuse.rendering import json, strings
from redisfuse.rendering.hashes import HASH
from redisfuse.rendering.iterate import size_of
from redisfuse.rendering.lists import LIST
from redisfuse.rendering.renderer import Element, Kind
from redisfuse.rendering.sets import SET
from redisfuse.rendering.streams import STREAM
from redisfuse.rendering.unknown import notice
from redisfuse.rendering.zsets import ZSET
from redisfuse.text import PLAIN, escape_line, escape_line_chunks

KINDS = {kind.type: kind for kind in (LIST, SET, ZSET, HASH, STREAM)}

_MARKS = (b"\t", b"\n", b"=")


def render(server: Server, key: bytes, type: bytes) -> Iterator[bytes]:
    """What the key's file holds, in pieces of about 1 MiB or 1000 elements, each fetched when it is asked for.

    `type` is what TYPE said. Raises NotFoundError or WrongTypeError, also midway, if the key vanished or changed its
    type; ConflictError if a string changed its length.
    """
    if type in KINDS:
        kind = KINDS[type]
        for piece in kind.walk(server, key):
            yield from lines(kind, piece)
    elif type == b"string":
        yield from strings.pieces(server, key)
    elif type == json.TYPE:
        yield from json.render(server, key)
    elif type == b"none":
        raise NotFoundError(f"key {key!r} does not exist")
    else:
        yield notice(type)


def rendered(server: Server, key: bytes, type: bytes, at_most: int) -> bytes | None:
    """The whole text, or None if it is longer than `at_most` bytes. Raises as `render` does."""
    pieces = []
    size = 0
    for piece in render(server, key, type):
        size += len(piece)
        if size > at_most:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def lines(kind: Kind, piece: list[Element]) -> Iterator[bytes]:
    """The lines of these elements: in one go, unless they are large. Pure."""
    if size_of(piece) <= 4 * CHUNK_BYTES:
        yield _small_lines(kind, piece)
        return
    for element in piece:
        if sum(map(len, element)) <= CHUNK_BYTES:
            yield _small_lines(kind, [element])
        else:
            yield from _large_line(kind, element)


def _small_lines(kind: Kind, piece: list[Element]) -> bytes:
    raw = b"".join([kind.line(len(element)) % element for element in piece])
    # The ordinary case is decided for all lines at once: nothing but plain bytes, and no more marks than the format's.
    if not raw.translate(None, PLAIN + b"\t\n"):
        formats = [kind.line(len(element)) for element in piece]
        marks = _MARKS if kind.named else _MARKS[:2]
        if all(raw.count(mark) == sum([form.count(mark) for form in formats]) for mark in marks):
            return raw
    return b"".join([kind.line(len(element)) % _escaped(kind, element) for element in piece])


def _escaped(kind: Kind, element: Element) -> Element:
    parts = [escape_line(part) for part in element]
    if kind.named:
        parts[1::2] = [part.replace(b"=", rb"\x3d") for part in parts[1::2]]
    return tuple(parts)


def _large_line(kind: Kind, element: Element) -> Iterator[bytes]:
    _, *ends = kind.line(len(element)).split(b"%b")  # what follows each part
    for number, (part, end) in enumerate(zip(element, ends, strict=True)):
        for text in escape_line_chunks(part):
            yield text.replace(b"=", rb"\x3d") if kind.named and number % 2 else text
        yield end

"""A whole hash: `field<TAB>value` a line, in no order. In JSON, an object."""

from collections.abc import Iterator

from redisfuse.client.client import Server
from redisfuse.rendering.iterate import walk_scan
from redisfuse.rendering.json_encoding import text
from redisfuse.rendering.renderer import Element, Kind


def walk(server: Server, key: bytes) -> Iterator[list[Element]]:
    """Its fields, `(field, value)`."""
    return walk_scan(server, key, b"hash", b"HSCAN", 2)


def item(element: Element) -> Iterator[bytes]:
    """`"field": "value"`."""
    field, value = element
    yield from text(field)
    yield b": "
    yield from text(value)


HASH = Kind(b"hash", walk, item, columns=b"%b\t%b\n", brackets=(b"{", b"}"), keyed=True)

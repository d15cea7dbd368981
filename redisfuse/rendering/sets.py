"""A set: one member a line, in no order. In JSON, an array."""

from collections.abc import Iterator

from redisfuse.client.client import Server
from redisfuse.rendering.iterate import walk_scan
from redisfuse.rendering.json_encoding import text
from redisfuse.rendering.renderer import Element, Kind


def walk(server: Server, key: bytes) -> Iterator[list[Element]]:
    """Its members, `(member,)`."""
    return walk_scan(server, key, b"set", b"SSCAN", 1)


def item(element: Element) -> Iterator[bytes]:
    """`"member"`."""
    return text(element[0])


SET = Kind(b"set", walk, item, columns=b"%b\n")

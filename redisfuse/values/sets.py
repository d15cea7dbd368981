"""A set: one member a line, in no order. In JSON, an array."""

from collections.abc import Iterator

from redisfuse.server.server import Server
from redisfuse.values.json_text import text
from redisfuse.values.kinds import Element, Kind
from redisfuse.values.walk import walk_scan


def walk(server: Server, key: bytes) -> Iterator[list[Element]]:
    """Its members, `(member,)`."""
    return walk_scan(server, key, b"set", b"SSCAN", 1)


def item(element: Element) -> Iterator[bytes]:
    """`"member"`."""
    return text(element[0])


SET = Kind(b"set", walk, item, columns=b"%b\n")

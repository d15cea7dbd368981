"""A list: one element a line. In JSON, an array."""

from collections.abc import Iterator

from redisfuse.server.server import Server
from redisfuse.values.json_text import text
from redisfuse.values.kinds import Element, Kind
from redisfuse.values.walk import walk_ranks


def walk(server: Server, key: bytes) -> Iterator[list[Element]]:
    """Its elements, `(element,)`, from head to tail."""
    return walk_ranks(server, key, b"list", b"LRANGE")


def item(element: Element) -> Iterator[bytes]:
    """`"element"`."""
    return text(element[0])


LIST = Kind(b"list", walk, item, columns=b"%b\n")

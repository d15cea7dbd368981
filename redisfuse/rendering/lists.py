"""A list: one element a line. In JSON, an array."""

from collections.abc import Iterator

from redisfuse.client.client import Server
from redisfuse.rendering.iterate import walk_ranks
from redisfuse.rendering.json_encoding import text
from redisfuse.rendering.renderer import Element, Kind


def walk(server: Server, key: bytes) -> Iterator[list[Element]]:
    """Its elements, `(element,)`, from head to tail."""
    return walk_ranks(server, key, b"list", b"LRANGE")


def item(element: Element) -> Iterator[bytes]:
    """`"element"`."""
    return text(element[0])


LIST = Kind(b"list", walk, item, columns=b"%b\n")

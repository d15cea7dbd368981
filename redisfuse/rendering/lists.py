"""A list: one element a line. In JSON, an array."""

from collections.abc import Iterator

from redisfuse.client.client import RedisClient
from redisfuse.rendering.iterate import iter_range
from redisfuse.rendering.json_encoding import encode_json
from redisfuse.rendering.renderer import Element, TypeRenderer


def iter_batches(client: RedisClient, key: bytes) -> Iterator[list[Element]]:
    """Its elements, `(element,)`, from head to tail."""
    return iter_range(client, key, b"list", b"LRANGE")


def element_to_json(element: Element) -> Iterator[bytes]:
    """`"element"`."""
    return encode_json(element[0])


LIST = TypeRenderer(b"list", iter_batches, element_to_json, line_format=b"%b\n")

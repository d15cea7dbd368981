"""A set: one member a line, in no order. In JSON, an array."""

from collections.abc import Iterator

from redisfuse.client.client import RedisClient
from redisfuse.rendering.iterate import iter_scan
from redisfuse.rendering.json_encoding import encode_json
from redisfuse.rendering.renderer import Element, TypeRenderer


def iter_batches(client: RedisClient, key: bytes) -> Iterator[list[Element]]:
    """Its members, `(member,)`."""
    return iter_scan(client, key, b"set", b"SSCAN", 1)


def element_to_json(element: Element) -> Iterator[bytes]:
    """`"member"`."""
    return encode_json(element[0])


SET = TypeRenderer(b"set", iter_batches, element_to_json, line_format=b"%b\n")

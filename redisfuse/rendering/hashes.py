"""A whole hash: `field<TAB>value` a line, in no order. In JSON, an object."""

from collections.abc import Iterator

from redisfuse.client.client import RedisClient
from redisfuse.rendering.iterate import iter_scan
from redisfuse.rendering.json_encoding import encode_json
from redisfuse.rendering.renderer import Element, TypeRenderer


def iter_batches(client: RedisClient, key: bytes) -> Iterator[list[Element]]:
    """Its fields, `(field, value)`."""
    return iter_scan(client, key, b"hash", b"HSCAN", 2)


def element_to_json(element: Element) -> Iterator[bytes]:
    """`"field": "value"`."""
    field, value = element
    yield from encode_json(field)
    yield b": "
    yield from encode_json(value)


HASH = TypeRenderer(
    b"hash", iter_batches, element_to_json, line_format=b"%b\t%b\n", json_brackets=(b"{", b"}"), is_json_object=True
)

"""Whole hashes: `field<TAB>value` a line. In JSON, an object.

Sorted by field if they are few enough; otherwise in the server's order, which differs between equal hashes.
"""

from collections.abc import Iterator

from redisfuse.client.client import RedisClient
from redisfuse.rendering.iterate import iter_scan
from redisfuse.rendering.json_encoding import encode_json
from redisfuse.rendering.renderer import Element, TypeRenderer


class HashRenderer(TypeRenderer):
    """Elements are `(field, value)`."""

    type = b"hash"
    line_format = b"%b\t%b\n"
    is_unordered = True
    json_brackets = (b"{", b"}")
    is_json_object = True

    def iter_batches(self, client: RedisClient, key: bytes) -> Iterator[list[Element]]:
        """Yield the fields, in no order."""
        return iter_scan(client, key, self.type, b"HSCAN", 2)

    def element_to_json(self, element: Element) -> Iterator[bytes]:
        """Yield `"field": "value"`."""
        field, value = element
        yield from encode_json(field)
        yield b": "
        yield from encode_json(value)

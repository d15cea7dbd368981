"""Lists: one element a line, from head to tail. In JSON, an array."""

from collections.abc import Iterator

from redisfuse.client.client import RedisClient
from redisfuse.rendering.iterate import iter_range
from redisfuse.rendering.json_encoding import encode_json
from redisfuse.rendering.renderer import Element, TypeRenderer


class ListRenderer(TypeRenderer):
    """Elements are `(element,)`."""

    type = b"list"
    line_format = b"%b\n"

    def iter_batches(self, client: RedisClient, key: bytes) -> Iterator[list[Element]]:
        """Yield the elements, from head to tail."""
        return iter_range(client, key, self.type, b"LRANGE")

    def element_to_json(self, element: Element) -> Iterator[bytes]:
        """Yield `"element"`."""
        return encode_json(element[0])

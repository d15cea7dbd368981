"""Sets: one member a line, in no order. In JSON, an array."""

from collections.abc import Iterator

from redisfuse.client.client import RedisClient
from redisfuse.rendering.iterate import iter_scan
from redisfuse.rendering.json_encoding import encode_json
from redisfuse.rendering.renderer import Element, TypeRenderer


class SetRenderer(TypeRenderer):
    """Elements are `(member,)`."""

    type = b"set"
    line_format = b"%b\n"

    def iter_batches(self, client: RedisClient, key: bytes) -> Iterator[list[Element]]:
        """Yield the members, in no order."""
        return iter_scan(client, key, self.type, b"SSCAN", 1)

    def element_to_json(self, element: Element) -> Iterator[bytes]:
        """Yield `"member"`."""
        return encode_json(element[0])

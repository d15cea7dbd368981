"""A stream: `id<TAB>field=value<TAB>field=value…` a line, in the order of ids. In JSON, an array of `{"id", "fields"}`.

In a field's name `=` is written `\\x3d`, so the first `=` ends the name. Consumer groups are not shown.
"""

from collections.abc import Iterator

from redisfuse.client.client import RedisClient
from redisfuse.rendering.iterate import BatchSizer, require_key_type
from redisfuse.rendering.json_encoding import encode_json
from redisfuse.rendering.renderer import Element, TypeRenderer


def iter_batches(client: RedisClient, key: bytes) -> Iterator[list[Element]]:
    """Its entries, `(id, field, value, field, value…)`."""
    pace = BatchSizer()
    start = b"-"
    while True:
        asked = pace.count
        entries = client.execute(b"XRANGE", key, start, b"+", b"COUNT", asked)
        piece: list[Element] = [(entry, *flat) for entry, flat in entries]
        pace.record_batch(piece)
        if piece:
            yield piece
            start = next_entry_id(piece[-1][0])
        else:
            require_key_type(client, key, b"stream")  # a stream may be empty
        if len(piece) < asked:
            return


def next_entry_id(entry_id: bytes) -> bytes:
    """The smallest id greater than `entry`; what `(entry` says to servers from 6.2 on."""
    milliseconds, sequence = map(int, entry_id.split(b"-"))
    if sequence == (1 << 64) - 1:
        return b"%d-0" % (milliseconds + 1)
    return b"%d-%d" % (milliseconds, sequence + 1)


def element_to_json(element: Element) -> Iterator[bytes]:
    """`{"id": "1-0", "fields": [["field", "value"]]}`; pairs, since an entry may have a field twice."""
    yield b'{"id": "%b", "fields": [' % element[0]
    for number in range(1, len(element), 2):
        yield b"[" if number == 1 else b", ["
        yield from encode_json(element[number])
        yield b", "
        yield from encode_json(element[number + 1])
        yield b"]"
    yield b"]}"


STREAM = TypeRenderer(b"stream", iter_batches, element_to_json, line_format=b"%b\t", has_pairs=True)

"""A stream: `id<TAB>field=value<TAB>field=value…` a line, in the order of ids. In JSON, an array of `{"id", "fields"}`.

In a field's name `=` is written `\\x3d`, so the first `=` ends the name. Consumer groups are not shown.
"""

from collections.abc import Iterator

from redisfuse.client.client import Server
from redisfuse.rendering.iterate import Pace, check_end
from redisfuse.rendering.json_encoding import text
from redisfuse.rendering.renderer import Element, Kind


def walk(server: Server, key: bytes) -> Iterator[list[Element]]:
    """Its entries, `(id, field, value, field, value…)`."""
    pace = Pace()
    start = b"-"
    while True:
        asked = pace.count
        entries = server.ask(b"XRANGE", key, start, b"+", b"COUNT", asked)
        piece: list[Element] = [(entry, *flat) for entry, flat in entries]
        pace.saw(piece)
        if piece:
            yield piece
            start = after(piece[-1][0])
        else:
            check_end(server, key, b"stream")  # a stream may be empty
        if len(piece) < asked:
            return


def after(entry: bytes) -> bytes:
    """The smallest id greater than `entry`; what `(entry` says to servers from 6.2 on."""
    milliseconds, sequence = map(int, entry.split(b"-"))
    if sequence == (1 << 64) - 1:
        return b"%d-0" % (milliseconds + 1)
    return b"%d-%d" % (milliseconds, sequence + 1)


def item(element: Element) -> Iterator[bytes]:
    """`{"id": "1-0", "fields": [["field", "value"]]}`; pairs, since an entry may have a field twice."""
    yield b'{"id": "%b", "fields": [' % element[0]
    for number in range(1, len(element), 2):
        yield b"[" if number == 1 else b", ["
        yield from text(element[number])
        yield b", "
        yield from text(element[number + 1])
        yield b"]"
    yield b"]}"


STREAM = Kind(b"stream", walk, item, columns=b"%b\t", named=True)

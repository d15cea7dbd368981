r"""Streams: `id<TAB>field=value<TAB>field=value…` a line, by ID.

JSON is an array of `{"id", "fields"}`. In a field's name `=` is written `\x3d`, so the first `=` ends the name.
The consumer groups are in the JSON document of the key only.
"""

from collections.abc import Iterator
from typing import Any

from redisfuse.client.client import RedisClient
from redisfuse.errors import AccessError, ReplyTooLargeError, ServerReplyError
from redisfuse.rendering.iterate import BatchSizer, require_key_type
from redisfuse.rendering.json_encoding import encode_json
from redisfuse.rendering.renderer import Element, TypeRenderer


class StreamRenderer(TypeRenderer):
    """Elements are `(id, field, value, field, value…)`."""

    type = b"stream"
    line_format = b"%b\t"
    has_pairs = True

    def iter_batches(self, client: RedisClient, key: bytes) -> Iterator[list[Element]]:
        """Yield the entries, by ID."""
        sizer = BatchSizer()
        start = b"-"
        while True:
            count = sizer.count
            try:
                entries = client.execute(b"XRANGE", key, start, b"+", b"COUNT", count)
            except ReplyTooLargeError as error:
                sizer.request_less(error)
                continue
            batch: list[Element] = [(entry_id, *parts) for entry_id, parts in entries]
            sizer.record_batch(batch)
            if batch:
                yield batch
                start = next_entry_id(batch[-1][0])
            else:
                require_key_type(client, key, self.type)  # a stream may be empty
            if len(batch) < count:
                return

    def element_to_json(self, element: Element) -> Iterator[bytes]:
        """Yield `{"id": "1-0", "fields": [["field", "value"]]}`.

        The fields are pairs, because an entry may have a field twice.
        """
        yield b'{"id": "%b", "fields": [' % element[0]
        for number in range(1, len(element), 2):
            yield b"[" if number == 1 else b", ["
            yield from encode_json(element[number])
            yield b", "
            yield from encode_json(element[number + 1])
            yield b"]"
        yield b"]}"


def render_groups(client: RedisClient, key: bytes) -> Iterator[bytes]:
    """Yield the consumer groups of a stream as a JSON array, a group a line.

    `null` if the ACL denies XINFO. Raises NotFoundError, WrongTypeError.
    """
    try:
        groups = client.execute(b"XINFO", b"GROUPS", key)
    except AccessError:
        yield b"null"
        return
    except ServerReplyError:  # the reply for a key that was deleted meanwhile
        require_key_type(client, key, StreamRenderer.type)
        raise
    yield b"["
    for number, group in enumerate(groups):
        yield b",\n    " if number else b"\n    "
        yield from _render_group(dict(zip(group[::2], group[1::2], strict=True)))
    yield b"\n  ]" if groups else b"]"


def _render_group(group: dict[bytes, Any]) -> Iterator[bytes]:
    for number, name in enumerate((b"name", b"consumers", b"pending", b"last-delivered-id", b"entries-read", b"lag")):
        yield b'%b"%b": ' % (b", " if number else b"{", name.replace(b"-", b"_"))
        value = group.get(name)
        if isinstance(value, bytes):
            yield from encode_json(value)
        else:
            yield b"%d" % value if isinstance(value, int) else b"null"
    yield b"}"


def next_entry_id(entry_id: bytes) -> bytes:
    """Return the smallest ID greater than `entry_id`.

    Servers from 6.2 on accept `(ID` for it.
    """
    milliseconds, sequence = map(int, entry_id.split(b"-"))
    if sequence == (1 << 64) - 1:
        return b"%d-0" % (milliseconds + 1)
    return b"%d-%d" % (milliseconds, sequence + 1)

"""`NAME%json`: a key of any type as one JSON document, an element a line, streamed as it is walked.

`{"key": …, "type": …, "ttl": milliseconds or -1, "value": …}`. The value is a string, an array (list, set; of
`{"member", "score"}` for a zset; of `{"id", "fields"}` for a stream), an object (hash), the document itself (JSON
module) or null (other modules). Bytes that are not UTF-8 are `{"base64": "…"}`. The fields of a hash whose *names*
are not UTF-8 can't be names in JSON: they follow as `"binary_fields": [[field, value], …]`, which is there only if
there are any.
"""

from collections.abc import Iterator
from tempfile import SpooledTemporaryFile

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import Server
from redisfuse.errors import NotFoundError
from redisfuse.rendering import json, strings
from redisfuse.rendering.json_encoding import PIECE, is_utf8, long_text, text
from redisfuse.rendering.registry import KINDS
from redisfuse.rendering.renderer import Kind


def document(server: Server, key: bytes) -> Iterator[bytes]:
    """The document, in pieces. Raises NotFoundError; and WrongTypeError or ConflictError if the key changes midway."""
    type, ttl = server.ask_many([(b"TYPE", key), (b"PTTL", key)])
    for reply in (type, ttl):
        if isinstance(reply, Exception):
            raise reply
    if type == b"none":
        raise NotFoundError(f"key {key!r} does not exist")
    yield b'{\n  "key": '
    yield from text(key)
    yield b',\n  "type": '
    yield from text(type)
    yield b',\n  "ttl": %d,\n  "value": ' % max(ttl, -1)
    yield from _value(server, key, type)
    yield b"\n}\n"


def _value(server: Server, key: bytes, type: bytes) -> Iterator[bytes]:
    if type in KINDS:
        yield from _collection(server, key, KINDS[type])
    elif type == b"string":
        yield from _string(server, key)
    elif type == json.TYPE:
        yield from json.render(server, key)
    else:
        yield b"null"


def _collection(server: Server, key: bytes, kind: Kind) -> Iterator[bytes]:
    opening, closing = kind.brackets
    empty = True
    with SpooledTemporaryFile(max_size=CHUNK_BYTES) as binary:
        yield opening
        for piece in kind.walk(server, key):
            out = []
            for element in piece:
                if kind.keyed and not is_utf8([element[0]]):
                    binary.write(b",\n    [" if binary.tell() else b"\n    [")
                    for part in (element[0], element[1]):
                        binary.writelines([b", "] if part is element[1] else [])
                        binary.writelines(text(part))
                    binary.write(b"]")
                    continue
                out.append(b"\n    " if empty else b",\n    ")
                empty = False
                out += kind.item(element)
            yield b"".join(out)
        yield closing if empty else b"\n  " + closing
        if binary.tell():
            yield b',\n  "binary_fields": ['
            binary.seek(0)
            while part := binary.read(PIECE):
                yield part
            yield b"\n  ]"


def _string(server: Server, key: bytes) -> Iterator[bytes]:
    with SpooledTemporaryFile(max_size=CHUNK_BYTES) as file:
        file.writelines(strings.pieces(server, key))

        def again() -> Iterator[bytes]:
            file.seek(0)
            yield from iter(lambda: file.read(PIECE), b"")

        yield from long_text(again)

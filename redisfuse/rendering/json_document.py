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
from redisfuse.client.client import RedisClient
from redisfuse.errors import NotFoundError
from redisfuse.rendering import json, strings
from redisfuse.rendering.json_encoding import JSON_CHUNK_BYTES, encode_json, encode_json_chunks, is_utf8
from redisfuse.rendering.registry import RENDERERS
from redisfuse.rendering.renderer import TypeRenderer


def render_json_document(client: RedisClient, key: bytes) -> Iterator[bytes]:
    """The document, in pieces. Raises NotFoundError; and WrongTypeError or ConflictError if the key changes midway."""
    type, ttl = client.execute_many([(b"TYPE", key), (b"PTTL", key)])
    for reply in (type, ttl):
        if isinstance(reply, Exception):
            raise reply
    if type == b"none":
        raise NotFoundError(f"key {key!r} does not exist")
    yield b'{\n  "key": '
    yield from encode_json(key)
    yield b',\n  "type": '
    yield from encode_json(type)
    yield b',\n  "ttl": %d,\n  "value": ' % max(ttl, -1)
    yield from _render_value(client, key, type)
    yield b"\n}\n"


def _render_value(client: RedisClient, key: bytes, type: bytes) -> Iterator[bytes]:
    if type in RENDERERS:
        yield from _render_collection(client, key, RENDERERS[type])
    elif type == b"string":
        yield from _render_string(client, key)
    elif type == json.JSON_TYPE:
        yield from json.fetch_json(client, key)
    else:
        yield b"null"


def _render_collection(client: RedisClient, key: bytes, renderer: TypeRenderer) -> Iterator[bytes]:
    opening, closing = renderer.json_brackets
    empty = True
    with SpooledTemporaryFile(max_size=CHUNK_BYTES) as binary:
        yield opening
        for piece in renderer.iter_batches(client, key):
            out = []
            for element in piece:
                if renderer.is_json_object and not is_utf8([element[0]]):
                    binary.write(b",\n    [" if binary.tell() else b"\n    [")
                    for part in (element[0], element[1]):
                        binary.writelines([b", "] if part is element[1] else [])
                        binary.writelines(encode_json(part))
                    binary.write(b"]")
                    continue
                out.append(b"\n    " if empty else b",\n    ")
                empty = False
                out += renderer.element_to_json(element)
            yield b"".join(out)
        yield closing if empty else b"\n  " + closing
        if binary.tell():
            yield b',\n  "binary_fields": ['
            binary.seek(0)
            while part := binary.read(JSON_CHUNK_BYTES):
                yield part
            yield b"\n  ]"


def _render_string(client: RedisClient, key: bytes) -> Iterator[bytes]:
    with SpooledTemporaryFile(max_size=CHUNK_BYTES) as file:
        file.writelines(strings.iter_chunks(client, key))

        def again() -> Iterator[bytes]:
            file.seek(0)
            yield from iter(lambda: file.read(JSON_CHUNK_BYTES), b"")

        yield from encode_json_chunks(again)

"""`NAME%json`: a key of any type as one JSON document.

One element per line, streamed as the key is iterated.

`{"key": …, "type": …, "ttl": milliseconds or -1, "value": …}`. The value is a string, an array (list, set; of
`{"member", "score"}` for a zset; of `{"id", "fields"}` for a stream), an object (hash), the document itself (JSON
module) or null (other modules). Bytes that are not UTF-8 are `{"base64": "…"}`. Fields of a hash whose *names* are not
UTF-8 can't be names in JSON: they follow as `"binary_fields": [[field, value], …]`, which is present only if the hash
has such fields. A string that `NAME%text` decodes has `"decoded": "gzip > JSON"` after its value. After the entries of
a stream follow its consumer groups, as `"groups": [{"name", …}, …]`.
"""

from collections.abc import Iterator
from tempfile import SpooledTemporaryFile

from redisfuse.client.client import RedisClient
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import NotFoundError
from redisfuse.rendering import rejson, streams, strings
from redisfuse.rendering.decoding.decoder import describe_value
from redisfuse.rendering.decoding.limits import DecodeLimits
from redisfuse.rendering.json_encoding import JSON_CHUNK_BYTES, encode_json, encode_json_file, is_utf8
from redisfuse.rendering.registry import RENDERERS, iter_elements
from redisfuse.rendering.renderer import TypeRenderer


def render_json_document(
    client: RedisClient, key: bytes, *, decode_limits: DecodeLimits | None = None, max_sorted: int = 0
) -> Iterator[bytes]:
    """Yield the document, in chunks.

    Raises NotFoundError; WrongTypeError or ConflictError if the key changes midway.
    """
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
    if type == b"string":
        yield from _render_string(client, key, decode_limits)
    else:
        yield from _render_value(client, key, type, max_sorted)
    if type == streams.StreamRenderer.type:
        yield b',\n  "groups": '
        yield from streams.render_groups(client, key)
    yield b"\n}\n"


def _render_value(client: RedisClient, key: bytes, type: bytes, max_sorted: int) -> Iterator[bytes]:
    if type in RENDERERS:
        yield from _render_collection(client, key, RENDERERS[type], max_sorted)
    elif type == rejson.JSON_TYPE:
        yield from rejson.fetch_json(client, key)
    else:
        yield b"null"


def _render_collection(client: RedisClient, key: bytes, renderer: TypeRenderer, max_sorted: int) -> Iterator[bytes]:
    opening, closing = renderer.json_brackets
    is_first = True
    with SpooledTemporaryFile(max_size=CHUNK_BYTES) as binary_fields:
        yield opening
        for batch in iter_elements(client, key, renderer, max_sorted):
            output: list[bytes] = []
            for element in batch:
                if renderer.is_json_object and not is_utf8([element[0]]):
                    binary_fields.write(b",\n    [" if binary_fields.tell() else b"\n    [")
                    binary_fields.writelines(encode_json(element[0]))
                    binary_fields.write(b", ")
                    binary_fields.writelines(encode_json(element[1]))
                    binary_fields.write(b"]")
                    continue
                output.append(b"\n    " if is_first else b",\n    ")
                is_first = False
                output += renderer.element_to_json(element)
            yield b"".join(output)
        yield closing if is_first else b"\n  " + closing
        if binary_fields.tell():
            yield b',\n  "binary_fields": ['
            binary_fields.seek(0)
            while chunk := binary_fields.read(JSON_CHUNK_BYTES):
                yield chunk
            yield b"\n  ]"


def _render_string(client: RedisClient, key: bytes, decode_limits: DecodeLimits | None) -> Iterator[bytes]:
    with SpooledTemporaryFile(max_size=CHUNK_BYTES) as file:
        file.writelines(strings.iter_chunks(client, key))
        size = file.tell()
        yield from encode_json_file(file)
        if decode_limits is None:
            return
        file.seek(0)
        encoding = describe_value(file.read(decode_limits.input_bytes), decode_limits, size)
        if encoding is not None:
            yield b',\n  "decoded": '
            yield from encode_json(encoding.encode())

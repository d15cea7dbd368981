"""Bytes as JSON: a string if they are UTF-8, else `{"base64": "…"}`. Pure.

DEL and the C1 controls, which JSON would allow, are written `\\u0080` as well: a document may be read on a terminal.
"""

import base64
import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator

JSON_CHUNK_BYTES = 3 << 18  # bytes converted at a time; a multiple of 3, so that pieces of base64 join

_CONTROL_CHARACTERS = re.compile("[\x7f-\x9f]")


def encode_json(data: bytes) -> Iterator[bytes]:
    """`data` as a JSON value, in pieces."""
    if len(data) <= JSON_CHUNK_BYTES:
        yield _encode_small(data)
        return
    view = memoryview(data)
    yield from encode_json_chunks(
        lambda: (bytes(view[start : start + JSON_CHUNK_BYTES]) for start in range(0, len(data), JSON_CHUNK_BYTES))
    )


def encode_json_chunks(read_chunks: Callable[[], Iterable[bytes]]) -> Iterator[bytes]:
    """The bytes that `pieces()` gives each time it is called (in pieces of PIECE but the last) as a JSON value."""
    if is_utf8(read_chunks()):
        decoder = codecs.getincrementaldecoder("utf-8")()
        yield b'"'
        for piece in read_chunks():
            yield _encode_string(decoder.decode(piece))[1:-1].encode()
        yield b'"'
    else:
        yield b'{"base64": "'
        for piece in read_chunks():
            yield base64.b64encode(piece)
        yield b'"}'


def is_utf8(chunks: Iterable[bytes]) -> bool:
    """Are these bytes, taken together, valid UTF-8?"""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for piece in chunks:
            decoder.decode(piece)
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        return False
    return True


def _encode_small(data: bytes) -> bytes:
    try:
        return _encode_string(data.decode()).encode()
    except UnicodeDecodeError:
        return b'{"base64": "%b"}' % base64.b64encode(data)


def _encode_string(text: str) -> str:
    return _CONTROL_CHARACTERS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))

r"""Bytes as JSON: a string if they are UTF-8, else `{"base64": "…"}`. Pure.

DEL and the C1 controls, which JSON would allow, are written `\u0080` too: a document may be printed on a terminal.
"""

import base64
import codecs
import json
import re
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import IO

JSON_CHUNK_BYTES = 3 << 18  # bytes converted at a time; a multiple of 3, so that chunks of base64 join

_CONTROL_CHARACTERS = re.compile("[\x7f-\x9f]")


def encode_json(data: bytes) -> Iterator[bytes]:
    """Yield `data` as a JSON value, in chunks."""
    if len(data) <= JSON_CHUNK_BYTES:
        yield _encode_small(data)
    else:
        yield from encode_json_file(BytesIO(data))  # which shares the bytes


def encode_json_file(file: IO[bytes]) -> Iterator[bytes]:
    """Yield all bytes of a file as a JSON value, in chunks. The file is read twice."""
    if is_utf8(_iter_file(file)):
        decoder = codecs.getincrementaldecoder("utf-8")()
        yield b'"'
        for chunk in _iter_file(file):
            yield encode_json_string(decoder.decode(chunk))[1:-1].encode()
        yield b'"'
    else:
        yield b'{"base64": "'
        for chunk in _iter_file(file):
            yield base64.b64encode(chunk)
        yield b'"}'


def is_utf8(chunks: Iterable[bytes]) -> bool:
    """Return whether the chunks, joined, are valid UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for chunk in chunks:
            decoder.decode(chunk)
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        return False
    return True


def _iter_file(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(JSON_CHUNK_BYTES):
        yield chunk


def _encode_small(data: bytes) -> bytes:
    try:
        return encode_json_string(data.decode()).encode()
    except UnicodeDecodeError:
        return b'{"base64": "%b"}' % base64.b64encode(data)


def encode_json_string(text: str) -> str:
    """Return a text as a JSON string, in quotation marks."""
    return _CONTROL_CHARACTERS.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))

"""Bytes as JSON: a string if they are UTF-8, else `{"base64": "…"}`. Pure.

DEL and the C1 controls, which JSON would allow, are written `\\u0080` as well: a document may be read on a terminal.
"""

import base64
import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator

PIECE = 3 << 18  # bytes converted at a time; a multiple of 3, so that pieces of base64 join

_CONTROLS = re.compile("[\x7f-\x9f]")


def text(data: bytes) -> Iterator[bytes]:
    """`data` as a JSON value, in pieces."""
    if len(data) <= PIECE:
        yield _small(data)
        return
    view = memoryview(data)
    yield from long_text(lambda: (bytes(view[start : start + PIECE]) for start in range(0, len(data), PIECE)))


def long_text(pieces: Callable[[], Iterable[bytes]]) -> Iterator[bytes]:
    """The bytes that `pieces()` gives each time it is called (in pieces of PIECE but the last) as a JSON value."""
    if is_utf8(pieces()):
        decoder = codecs.getincrementaldecoder("utf-8")()
        yield b'"'
        for piece in pieces():
            yield _string(decoder.decode(piece))[1:-1].encode()
        yield b'"'
    else:
        yield b'{"base64": "'
        for piece in pieces():
            yield base64.b64encode(piece)
        yield b'"}'


def is_utf8(pieces: Iterable[bytes]) -> bool:
    """Are these bytes, taken together, valid UTF-8?"""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for piece in pieces:
            decoder.decode(piece)
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        return False
    return True


def _small(data: bytes) -> bytes:
    try:
        return _string(data.decode()).encode()
    except UnicodeDecodeError:
        return b'{"base64": "%b"}' % base64.b64encode(data)


def _string(text: str) -> str:
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))

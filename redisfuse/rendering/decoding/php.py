"""PHP's serialize(), and its session files (`name|value…`).

Pure: no class is loaded.
"""

from __future__ import annotations

import re

from redisfuse.rendering.decoding.byte_reader import ByteReader
from redisfuse.rendering.decoding.limits import MalformedValueError
from redisfuse.rendering.decoding.notation import NotationWriter

_MAX_NUMBER_CHARACTERS = 400  # of a float such as 1.0E+25, and of an integer
_INTEGER = re.compile(rb"[+-]?\d{1,20}")
_FLOAT = re.compile(rb"[+-]?(?:\d[\d.]*|\.\d+)(?:[Ee][+-]?\d+)?|-?INF|NAN")
_FLOATS = {b"INF": "Infinity", b"-INF": "-Infinity", b"NAN": "NaN"}
_MAX_SESSION_NAME = 256


def write_php(reader: ByteReader, writer: NotationWriter) -> None:
    """Write one serialized value. Raises a DecodingError."""
    kind = reader.take(1)
    if kind == b"N":
        _expect(reader, b";")
        writer.write_scalar("null")
        return
    _expect(reader, b":")
    if kind == b"b":
        writer.write_scalar("true" if _take_integer(reader, b";") else "false")
    elif kind == b"i":
        writer.write_scalar(str(_take_integer(reader, b";")))
    elif kind == b"d":
        text = reader.take_until(b";", _MAX_NUMBER_CHARACTERS)
        if not _FLOAT.fullmatch(text):
            raise MalformedValueError("a float is not a number")
        writer.write_scalar(_FLOATS.get(text, text.decode("ascii")))
    elif kind in (b"r", b"R"):
        writer.write_scalar(f"reference({_take_integer(reader, b';')})")
    elif kind == b"s":
        writer.write_bytes(_take_string(reader))
        _expect(reader, b";")
    elif kind == b"a":
        _write_members(reader, writer, is_object=False)
    elif kind == b"O":
        writer.begin_label(_take_class(reader))
        _expect(reader, b":")
        _write_members(reader, writer, is_object=True)
    elif kind == b"C":
        name = _take_class(reader)
        _expect(reader, b":")
        data = reader.take(_take_length(reader, b":{"))
        _expect(reader, b"}")
        writer.begin_label(f"{name}(", ")")
        writer.write_bytes(data)
    elif kind == b"E":
        writer.write_scalar(_to_text(_take_string(reader)).replace(":", "::"))
        _expect(reader, b";")
    else:
        raise MalformedValueError(f"{_to_text(kind)!r} begins no value")


def write_php_session(reader: ByteReader, writer: NotationWriter) -> None:
    """Write the variables of a session. Raises a DecodingError."""
    writer.begin_map()
    while reader.remaining:
        writer.write_string(_to_text(reader.take_until(b"|", _MAX_SESSION_NAME)))
        write_php(reader, writer)
    writer.end_container()


def _write_members(reader: ByteReader, writer: NotationWriter, *, is_object: bool) -> None:
    count = _take_length(reader, b":{")
    writer.begin_map()
    for _ in range(count):
        if is_object and reader.peek_byte() == ord("s"):
            reader.take(2)
            writer.write_string(_to_text(_take_string(reader)).lstrip("\0").replace("*\0", "").replace("\0", "::"))
            _expect(reader, b";")
        else:
            write_php(reader, writer)
        write_php(reader, writer)
    _expect(reader, b"}")
    writer.end_container()


def _take_class(reader: ByteReader) -> str:
    return _to_text(_take_string(reader)) + " "


def _take_string(reader: ByteReader) -> bytes:
    """Return the bytes of `5:"hello"`."""
    data = reader.take(_take_length(reader, b':"'))
    _expect(reader, b'"')
    return data


def _take_length(reader: ByteReader, delimiter: bytes) -> int:
    length = _take_integer(reader, delimiter)
    if length < 0:
        raise MalformedValueError("a length is negative")
    return length


def _take_integer(reader: ByteReader, delimiter: bytes) -> int:
    text = reader.take_until(delimiter, _MAX_NUMBER_CHARACTERS)
    if not _INTEGER.fullmatch(text):
        raise MalformedValueError("a number is expected")
    return int(text)


def _expect(reader: ByteReader, text: bytes) -> None:
    if reader.take(len(text)) != text:
        raise MalformedValueError(f"{text.decode('ascii')!r} is expected")


def _to_text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")

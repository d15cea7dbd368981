"""Protocol Buffers, by wire type.

Pure. A message has numbers and lengths, but neither names nor types, and no signature: to recognize one is a guess. A
field of variable length is shown as a text if it is one, else as a message if all of it can be one, else as bytes.
"""

from __future__ import annotations

import struct

from redisfuse.rendering.decoding.byte_reader import ByteReader
from redisfuse.rendering.decoding.limits import MalformedValueError, TruncatedValueError
from redisfuse.rendering.decoding.notation import NotationWriter
from redisfuse.rendering.decoding.plain import is_printable

MAX_FIELD_NUMBER = 4096  # a larger one is legal, but in practice the value is of another format
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_FIELDS_PER_CHECK = 256  # between two checks of the time


def write_protobuf(reader: ByteReader, writer: NotationWriter) -> None:
    """Write a message that takes all bytes. Raises a DecodingError."""
    _check_message(reader.data, 1, writer)
    _write_message(reader, writer)


def _take_varint(reader: ByteReader) -> int:
    number = 0
    for index in range(_MAX_VARINT_BYTES):
        byte = reader.take_byte()
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number & ((1 << 64) - 1)
    raise MalformedValueError("a number has more than 64 bits")


def _take_tag(reader: ByteReader) -> tuple[int, int]:
    tag = _take_varint(reader)
    number, wire_type = tag >> 3, tag & 7
    if not 1 <= number <= MAX_FIELD_NUMBER or wire_type not in (_VARINT, _FIXED64, _LENGTH, _FIXED32):
        raise MalformedValueError(f"{tag} is not the tag of a field")
    return number, wire_type


def _check_message(data: bytes, depth: int, writer: NotationWriter) -> None:
    """Raise a DecodingError if the bytes are not a message."""
    writer.budget.check_depth(depth)
    reader = ByteReader(data)
    fields = 0
    while reader.remaining:
        if not fields % _FIELDS_PER_CHECK:
            writer.budget.check_time()
        fields += 1
        _number, wire_type = _take_tag(reader)
        if wire_type == _VARINT:
            _take_varint(reader)
        elif wire_type == _LENGTH:
            reader.take(_take_varint(reader))
        else:
            reader.take(8 if wire_type == _FIXED64 else 4)


def _write_message(reader: ByteReader, writer: NotationWriter) -> None:
    writer.begin_map()
    while reader.remaining:
        number, wire_type = _take_tag(reader)
        writer.write_scalar(str(number))
        if wire_type == _VARINT:
            writer.write_scalar(str(_take_varint(reader)))
        elif wire_type == _FIXED64:
            _write_fixed(reader.take(8), "<Q", "<d", writer)
        elif wire_type == _FIXED32:
            _write_fixed(reader.take(4), "<I", "<f", writer)
        else:
            _write_delimited(reader.take(_take_varint(reader)), writer)
    writer.end_container()


def _write_fixed(data: bytes, integer: str, real: str, writer: NotationWriter) -> None:
    writer.write_scalar(f"fixed{8 * len(data)}({struct.unpack(integer, data)[0]}, {struct.unpack(real, data)[0]!r})")


def _write_delimited(data: bytes, writer: NotationWriter) -> None:
    if is_printable(data):
        writer.write_bytes(data)
        return
    try:
        _check_message(data, writer.depth + 1, writer)
    except (MalformedValueError, TruncatedValueError):
        writer.write_hex(data)
    else:
        _write_message(ByteReader(data), writer)

"""CBOR (RFC 8949). Pure."""

from __future__ import annotations

from redisfuse.rendering.decoding.byte_reader import ByteReader
from redisfuse.rendering.decoding.limits import MalformedValueError
from redisfuse.rendering.decoding.notation import NotationWriter

_SIZES = {24: ">B", 25: ">H", 26: ">I", 27: ">Q"}
_FLOATS = {25: ">e", 26: ">f", 27: ">d"}
_CONSTANTS = {20: "false", 21: "true", 22: "null", 23: "undefined"}
_INDEFINITE = 31
_BREAK = 0xFF
_CHUNKS_PER_CHECK = 256  # of a string, between two checks of the time


def begins_cbor(data: bytes) -> bool:
    """Return whether the value can be an array, a map or a tag.

    Any other item could be anything.
    """
    return 0x80 <= data[0] <= 0xDB or data[0] in (0x5F, 0x7F)


def write_cbor(reader: ByteReader, writer: NotationWriter) -> None:
    """Write one item. Raises a DecodingError."""
    first = reader.take_byte()
    major, info = first >> 5, first & 0x1F
    if major == 7:
        _write_simple(info, reader, writer)
        return
    if info == _INDEFINITE:
        _write_indefinite(major, reader, writer)
        return
    argument = _take_argument(info, reader)
    if major == 0:
        writer.write_scalar(str(argument))
    elif major == 1:
        writer.write_scalar(str(-1 - argument))
    elif major == 2:
        writer.write_hex(reader.take(argument))
    elif major == 3:
        writer.write_bytes(reader.take(argument))
    elif major == 6:
        writer.begin_label(f"{argument}(", ")")
        write_cbor(reader, writer)
    else:
        _write_container(major, argument, reader, writer)


def _take_argument(info: int, reader: ByteReader) -> int:
    if info < 24:
        return info
    if info not in _SIZES:
        raise MalformedValueError(f"the length {info} is reserved")
    argument: int = reader.unpack(_SIZES[info])
    return argument


def _write_simple(info: int, reader: ByteReader, writer: NotationWriter) -> None:
    if info in _FLOATS:
        writer.write_float(reader.unpack(_FLOATS[info]))
    elif info in _CONSTANTS:
        writer.write_scalar(_CONSTANTS[info])
    elif info <= 24:
        writer.write_scalar(f"simple({reader.take_byte() if info == 24 else info})")
    else:
        raise MalformedValueError("a break outside of an indefinite length" if info == 31 else f"0x{0xE0 | info:02x}")


def _write_container(major: int, count: int, reader: ByteReader, writer: NotationWriter) -> None:
    if major == 4:
        writer.begin_array()
    else:
        writer.begin_map()
        count *= 2
    for _ in range(count):
        write_cbor(reader, writer)
    writer.end_container()


def _write_indefinite(major: int, reader: ByteReader, writer: NotationWriter) -> None:
    if major in (2, 3):
        chunks: list[bytes] = []
        while reader.peek_byte() != _BREAK:
            if not len(chunks) % _CHUNKS_PER_CHECK:
                writer.budget.check_time()
            first = reader.take_byte()
            if first >> 5 != major or first & 0x1F == _INDEFINITE:
                raise MalformedValueError("a chunk of a string has another type")
            chunks.append(reader.take(_take_argument(first & 0x1F, reader)))
        reader.take_byte()
        if major == 2:
            writer.write_hex(b"".join(chunks))
        else:
            writer.write_bytes(b"".join(chunks))
        return
    if major not in (4, 5):
        raise MalformedValueError("an indefinite length of a type that has none")
    if major == 4:
        writer.begin_array()
    else:
        writer.begin_map()
    count = 0
    while reader.peek_byte() != _BREAK:
        write_cbor(reader, writer)
        count += 1
    reader.take_byte()
    if major == 5 and count % 2:
        raise MalformedValueError("a map ends between a key and its value")
    writer.end_container()

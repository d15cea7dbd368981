"""MessagePack. Pure."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

from redisfuse.rendering.decoding.byte_reader import ByteReader
from redisfuse.rendering.decoding.limits import MalformedValueError
from redisfuse.rendering.decoding.notation import NotationWriter

_FLOATS = {0xCA: ">f", 0xCB: ">d"}
_NUMBERS = {
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_CONSTANTS = {0xC0: "null", 0xC2: "false", 0xC3: "true"}
_STRINGS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_BINARIES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_ARRAYS = {0xDC: ">H", 0xDD: ">I"}
_MAPS = {0xDE: ">H", 0xDF: ">I"}
_TIMESTAMP = -1


def begins_message_pack(data: bytes) -> bool:
    """Return whether the value can be a map, an array, a string or an extension.

    A number alone could be anything.
    """
    first = data[0]
    return 0x80 <= first <= 0xBF or 0xC4 <= first <= 0xC9 or first >= 0xD4


def write_message_pack(reader: ByteReader, writer: NotationWriter) -> None:
    """Write one value. Raises a DecodingError."""
    code = reader.take_byte()
    if code < 0x80:
        writer.write_scalar(str(code))
    elif code >= 0xE0:
        writer.write_scalar(str(code - 0x100))
    elif code < 0x90:
        _write_map(code & 0x0F, reader, writer)
    elif code < 0xA0:
        _write_array(code & 0x0F, reader, writer)
    elif code < 0xC0:
        writer.write_bytes(reader.take(code & 0x1F))
    elif code in _CONSTANTS:
        writer.write_scalar(_CONSTANTS[code])
    elif code in _NUMBERS:
        writer.write_scalar(str(reader.unpack(_NUMBERS[code])))
    elif code in _FLOATS:
        writer.write_float(reader.unpack(_FLOATS[code]))
    elif code in _STRINGS:
        writer.write_bytes(reader.take(reader.unpack(_STRINGS[code])))
    elif code in _BINARIES:
        writer.write_hex(reader.take(reader.unpack(_BINARIES[code])))
    elif code in _ARRAYS:
        _write_array(reader.unpack(_ARRAYS[code]), reader, writer)
    elif code in _MAPS:
        _write_map(reader.unpack(_MAPS[code]), reader, writer)
    elif code in _FIXED_EXTENSIONS:
        _write_extension(_FIXED_EXTENSIONS[code], reader, writer)
    elif code in _EXTENSIONS:
        _write_extension(reader.unpack(_EXTENSIONS[code]), reader, writer)
    else:
        raise MalformedValueError(f"0x{code:02x} begins no value")


def _write_array(count: int, reader: ByteReader, writer: NotationWriter) -> None:
    writer.begin_array()
    for _ in range(count):
        write_message_pack(reader, writer)
    writer.end_container()


def _write_map(count: int, reader: ByteReader, writer: NotationWriter) -> None:
    writer.begin_map()
    for _ in range(2 * count):
        write_message_pack(reader, writer)
    writer.end_container()


def _write_extension(size: int, reader: ByteReader, writer: NotationWriter) -> None:
    kind = reader.unpack(">b")
    data = reader.take(size)
    if kind == _TIMESTAMP and (text := _format_timestamp(data)) is not None:
        writer.write_scalar(f'timestamp("{text}")')
    else:
        writer.write_scalar(f"ext({kind}, h'{data.hex()}')")


def _format_timestamp(data: bytes) -> str | None:
    """Return the time of a timestamp extension.

    None if it is none, or beyond the year 9999.
    """
    if len(data) == 4:
        nanoseconds, seconds = 0, int.from_bytes(data, "big")
    elif len(data) == 8:
        number = int.from_bytes(data, "big")
        nanoseconds, seconds = number >> 34, number & ((1 << 34) - 1)
    elif len(data) == 12:
        nanoseconds, seconds = struct.unpack(">Iq", data)
    else:
        return None
    try:
        text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return None
    return f"{text}.{nanoseconds:09d}Z" if nanoseconds else f"{text}Z"

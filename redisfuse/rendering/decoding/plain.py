"""Text, and bytes in hexadecimal. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from redisfuse.rendering.decoding.limits import DecodeBudget

MAX_HEX_BYTES = 64 << 10  # of a value in an unknown format
_HEX_LINE_BYTES = 16

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ESCAPED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")
_CONTROL_BYTES = bytes(byte for byte in range(0x20) if byte not in b"\t\n\r") + b"\x7f"


def is_printable(data: bytes) -> bool:
    """Return whether bytes are UTF-8 without controls other than tabs and line ends."""
    if data.translate(None, _CONTROL_BYTES) != data:
        return False
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return text.isascii() or _CONTROL.search(text.replace("\r", "")) is None


def is_text(data: bytes) -> bool:
    """Return whether bytes are UTF-8 with few controls other than tabs and line ends."""
    controls = len(data) - len(data.translate(None, _CONTROL_BYTES))
    if controls * 10 > len(data):
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def escape_text_within(data: bytes, budget: DecodeBudget) -> tuple[str, str]:
    """Return a text with its controls escaped, as far as it may be long.

    The second value is a line about what is missing, or empty.
    """
    text = _ESCAPED.sub(lambda match: f"\\x{ord(match[0]):02x}", data.decode("utf-8", "replace"))
    room = budget.limits.output_bytes - budget.text_bytes
    problem = ""
    if len(text) > room:
        problem = f"# text: limit reached: {budget.text_error()}"
        text = text[:room]
    budget.add_text(len(text))
    return text.removesuffix("\n"), problem


def dump_hex(data: bytes) -> Iterator[str]:
    """Yield the lines of `hexdump -C`, of at most `MAX_HEX_BYTES` bytes."""
    for start in range(0, min(len(data), MAX_HEX_BYTES), _HEX_LINE_BYTES):
        line = data[start : start + _HEX_LINE_BYTES]
        left, right = line[:8].hex(" "), line[8:].hex(" ")
        characters = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in line)
        yield f"{start:08x}  {left:<23}  {right:<23}  |{characters}|"

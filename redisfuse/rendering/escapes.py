r"""How bytes stand in a line of text: `\\`, `\t`, `\n`, `\xNN`; everything else as it is. Pure, and reversible.

Escaped are the backslash, the controls (C0, DEL, and the C1 controls U+0080-U+009F, as the two bytes that they are) and
every byte that is not part of valid UTF-8. So an escaped text holds no tab and no newline, and is valid UTF-8.
"""

import codecs
import re
from collections.abc import Iterator

PIECE = 1 << 20  # bytes of a long value that are escaped at a time

# What stands for itself, for deciding in C about the ordinary case: printable ASCII but the backslash.
PLAIN = bytes(byte for byte in range(0x20, 0x7F) if byte != 0x5C)

_SHORT = {0x5C: r"\\", 0x09: r"\t", 0x0A: r"\n"}
_TABLE = {code: rf"\x{code:02x}" for code in (*range(0x20), 0x7F)}
_TABLE |= {code: "".join(rf"\x{byte:02x}" for byte in chr(code).encode()) for code in range(0x80, 0xA0)}
_TABLE |= {0xDC00 + byte: rf"\x{byte:02x}" for byte in range(0x80, 0x100)}  # as surrogateescape decodes a stray byte
_TABLE |= _SHORT

_ESCAPE = re.compile(rb"\\(?:([\\tn])|x([0-9a-fA-F]{2}))?")
_LETTERS = {b"\\": b"\\", b"t": b"\t", b"n": b"\n"}


def escape(data: bytes) -> bytes:
    """`data` as it stands in a line."""
    if not data.translate(None, PLAIN):
        return data
    return data.decode("utf-8", "surrogateescape").translate(_TABLE).encode()


def escape_pieces(data: bytes) -> Iterator[bytes]:
    """`escape(data)` in pieces, so that a long value costs little memory beside itself."""
    if len(data) <= PIECE:
        yield escape(data)
        return
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    view = memoryview(data)
    for start in range(0, len(data), PIECE):
        text = decoder.decode(view[start : start + PIECE], start + PIECE >= len(data))
        yield text.translate(_TABLE).encode()


def unescape(text: bytes) -> bytes:
    r"""The bytes that `escape` wrote as `text`. Raises ValueError for a backslash that begins no escape."""
    return _ESCAPE.sub(_unescaped, text)


def _unescaped(found: re.Match[bytes]) -> bytes:
    letter, digits = found.groups()
    if digits:
        return bytes.fromhex(digits.decode())
    if not letter:
        raise ValueError(f"a backslash that begins no escape, at byte {found.start()}")
    return _LETTERS[letter]

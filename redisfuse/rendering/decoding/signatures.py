"""The bytes with which formats begin. Pure."""

from __future__ import annotations

import re

GZIP = b"\x1f\x8b\x08"
ZSTD = b"\x28\xb5\x2f\xfd"
LZ4_FRAME = b"\x04\x22\x4d\x18"
XZ = b"\xfd7zXZ\x00"
BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")

JAVA = b"\xac\xed\x00\x05"
PICKLE = re.compile(rb"\x80[\x02-\x05]")
PHP_VALUE = re.compile(
    rb"(?:a:\d{1,10}:\{|[OCE]:\d{1,10}:\"|s:\d{1,10}:\"|[iRr]:[+-]?\d{1,20};|b:[01];|d:[\d.INFANEe+-]{1,40};|N;)"
)
PHP_SESSION = re.compile(
    rb"[A-Za-z_\x80-\xff][\w.\x80-\xff-]{0,99}\|(?:[aOCE]:\d|s:\d{1,10}:\"|[ib]:-?\d{1,20};|d:[\d.-]|N;)"
)
JSON_CONTAINER = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*(?:\{[ \t\r\n]*[\"}]|\[)")

_BASE64 = re.compile(rb"[A-Za-z0-9+/\r\n]+={0,2}[\r\n]*")
_URL_SAFE_BASE64 = re.compile(rb"[A-Za-z0-9_-]+={0,2}")
_MIN_BASE64_BYTES = 12

NAMED = (
    (re.compile(rb"HYLL[\x00\x01]"), "HyperLogLog of Redis (PFCOUNT counts it)"),
    (re.compile(rb"\x04\x08[\[{\"Io:i0TFc@IfU]"), "Ruby Marshal"),
    (re.compile(rb"\x00\x00\x00[\x01\x02]"), "igbinary of PHP"),
    (re.compile(rb"\x00\x01\x00\x00\x00\xff\xff\xff\xff\x01\x00\x00\x00"), ".NET BinaryFormatter"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG image"),
    (re.compile(rb"\xff\xd8\xff"), "JPEG image"),
    (re.compile(rb"GIF8[79]a"), "GIF image"),
    (re.compile(rb"RIFF[\x00-\xff]{4}WEBP"), "WebP image"),
    (re.compile(rb"%PDF-1\.|%PDF-2\."), "PDF document"),
    (re.compile(rb"SQLite format 3\x00"), "SQLite database"),
    (re.compile(rb"PK\x03\x04"), "ZIP archive"),
    (re.compile(rb"\x7fELF"), "ELF binary"),
    (re.compile(rb"REDIS\d{4}"), "RDB file of Redis"),
)
"""Formats that are only named; the value itself is shown in hexadecimal."""


def is_zlib(data: bytes) -> bool:
    """Return whether the first two bytes are a header of zlib (RFC 1950)."""
    return len(data) > 2 and data[0] & 0x8F == 0x08 and (data[0] << 8 | data[1]) % 31 == 0 and not data[1] & 0x20


def base64_alphabet(data: bytes) -> bytes | None:
    """Return the two last characters of the alphabet if the bytes can be base64."""
    if len(data) < _MIN_BASE64_BYTES:
        return None
    if _BASE64.fullmatch(data):
        return b"+/"
    return b"-_" if _URL_SAFE_BASE64.fullmatch(data) else None


def may_be_encoded(data: bytes) -> bool:
    """Return whether a string within a value is worth an attempt to decode it.

    Quick, and right for most strings.
    """
    if len(data) < 4:
        return False
    if (
        data[0] in b"{["
        or (data[0] in b"(c]}l" and data[-1] == 0x2E)
        or data[0] > 0x7F
        or data[0] in b"\x1f\x04\x28\x78"
    ):
        return True
    return (
        PHP_VALUE.match(data) is not None or base64_alphabet(data[:4096]) is not None or BZIP2.match(data) is not None
    )

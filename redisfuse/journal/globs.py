"""Redis' glob patterns (those of KEYS), as regular expressions.

One thing differs from the server's: a range in a class is one of bytes 0 to 255, where most builds of Redis on x86 take
bytes past 127 to be negative.
"""

import re

_NO_BYTE = b"(?!)"


def glob(pattern: bytes) -> tuple[bytes, re.Pattern[bytes] | None]:
    """(literal beginning, compiled pattern) of a Redis glob; a pattern without specials: (the literal, None)."""
    literal = bytearray()
    parts = [bytearray()]  # what is between the stars
    special = False
    at = 0
    while at < len(pattern):
        byte = pattern[at : at + 1]
        at += 1
        if byte == b"*":
            special = True
            parts.append(bytearray())
        elif byte == b"?":
            special = True
            parts[-1] += b"."
        elif byte == b"[":
            special = True
            at, expression = _class(pattern, at)
            parts[-1] += expression
        else:
            if byte == b"\\" and at < len(pattern):
                byte = pattern[at : at + 1]
                at += 1
            parts[-1] += re.escape(byte)
            if not special:
                literal += byte
    return bytes(literal), re.compile(_joined(parts), re.DOTALL) if special else None


def _joined(parts: list[bytearray]) -> bytes:
    """One expression. Between two stars a part may as well stand where it first can: no other place is tried, which
    would take for ever with many stars."""
    if len(parts) == 1:
        return bytes(parts[0])
    first, *middle, last = parts
    return bytes(first) + b"".join(b"(?>.*?" + part + b")" for part in middle if part) + b".*" + bytes(last)


def _class(pattern: bytes, at: int) -> tuple[int, bytes]:
    """Where a `[…]` that begins before `at` ends, and its expression. One that isn't closed ends with the pattern."""
    negated = pattern[at : at + 1] == b"^"
    at += negated
    members = bytearray()
    while at < len(pattern) and pattern[at : at + 1] != b"]":
        first = last = pattern[at]
        if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
            at += 1
            first = last = pattern[at]
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            last = pattern[at + 2]
            at += 2
        members += b"\\x%02x-\\x%02x" % (min(first, last), max(first, last))
        at += 1
    if not members:
        return at + 1, b"." if negated else _NO_BYTE
    return at + 1, b"[" + (b"^" if negated else b"") + bytes(members) + b"]"


def literal_glob(key: bytes) -> bytes:
    """The glob that matches only this key."""
    escaped = bytearray()
    for byte in key:
        if byte in b"*?[]\\":
            escaped += b"\\"
        escaped.append(byte)
    return bytes(escaped)

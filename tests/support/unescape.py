"""The inverse of `redisfuse.text.escape_line`, as a reader of a rendering needs it."""

import re

_ESCAPE = re.compile(rb"\\(?:([\\tn])|x([0-9a-fA-F]{2}))?")
_LETTERS = {b"\\": b"\\", b"t": b"\t", b"n": b"\n"}


def unescape(text: bytes) -> bytes:
    """Return the bytes that were escaped as `text`. Raises ValueError for a backslash that begins no escape."""
    return _ESCAPE.sub(_unescape_match, text)


def _unescape_match(match: re.Match[bytes]) -> bytes:
    letter, digits = match.groups()
    if digits:
        return bytes.fromhex(digits.decode())
    if not letter:
        raise ValueError(f"a backslash that begins no escape, at byte {match.start()}")
    return _LETTERS[letter]

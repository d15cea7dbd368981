r"""Bytes as text that is safe to show and can be read back: `\\`, `\t`, `\n`, and `\xNN` for every other byte that is
not printable UTF-8 (controls, terminal escapes, bidirectional overrides, broken sequences).
"""

from __future__ import annotations

from datetime import UTC, datetime

_SHORT = {"\\": "\\\\", "\t": "\\t", "\n": "\\n"}


def escape(data: bytes) -> str:
    """`data` as printable text on one line."""
    text = data.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escaped(character) for character in text)


def escape_or_none(data: bytes | None) -> str | None:
    """`escape(data)` if that differs from the plain text, else None (also for None)."""
    if data is None:
        return None
    text = data.decode("utf-8", "surrogateescape")
    return None if text.isprintable() and "\\" not in text else escape(data)


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))


def iso(milliseconds: int) -> str:
    """A Unix time in ms as ISO 8601 in UTC, such as 2026-07-04T12:00:00.123Z. Times out of range stay numbers."""
    try:
        moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03}Z"

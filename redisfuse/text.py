r"""Text that is safe to print, times as text, and Redis's globs.

Pure. Keys and values can contain terminal escape sequences: all text from a server is escaped here before it is
printed. Every function writes an unprintable byte as `\xNN`, with lower-case digits:

- `for_terminal` is for messages and log lines. It is not reversible: a backslash is not escaped.
- `escape_text` is for one printable line that can be decoded: `\\`, `\t`, `\n`, `\xNN`.
- `escape_line` is for a line of a file: like `escape_text`, but it returns bytes, and every valid UTF-8 character
  that is not a control is unchanged, whether it is printable or not.
"""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

_TIME_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGE_PATTERN = re.compile(r"(?:\s*(\d+)\s*([smhdw])[a-z]*)(?:\s*(\d+)\s*([smhdw])[a-z]*)?(?:\s+ago)?\s*", re.IGNORECASE)
_CLOCK_PATTERN = re.compile(r"\d{1,2}:\d\d(:\d\d)?")

# -- terminals -------------------------------------------------------------------------------------------------------

# Controls, surrogates (bytes that were not UTF-8), line separators, and the marks that change the writing direction.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_TERMINAL_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def for_terminal(text: str | bytes) -> str:
    r"""Return `text` as one printable line.

    Controls and invalid UTF-8 become `\xNN` or `\uNNNN`.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return _UNPRINTABLE.sub(_escape_unprintable, text)


def _escape_unprintable(match: re.Match[str]) -> str:
    character = match[0]
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # surrogateescape: the byte itself
        number -= 0xDC00
    return _TERMINAL_SHORT.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")


class TerminalFormatter(logging.Formatter):
    """Formats log records as lines that a terminal can print.

    The lines of a traceback remain separate lines.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format the record, then escape each line."""
        return "\n".join(map(for_terminal, super().format(record).split("\n")))


# -- lines that can be decoded ---------------------------------------------------------------------------------------

# Printable ASCII except the backslash: bytes that need no escape. Lets C code decide the common case.
PLAIN = bytes(byte for byte in range(0x20, 0x7F) if byte != 0x5C)

_SHORT = {"\\": "\\\\", "\t": "\\t", "\n": "\\n"}
_LINE_TABLE = {code: rf"\x{code:02x}" for code in (*range(0x20), 0x7F)}
_LINE_TABLE |= {code: "".join(rf"\x{byte:02x}" for byte in chr(code).encode()) for code in range(0x80, 0xA0)}
_LINE_TABLE |= {0xDC00 + byte: rf"\x{byte:02x}" for byte in range(0x80, 0x100)}  # surrogateescape of an invalid byte
_LINE_TABLE |= {ord(character): short for character, short in _SHORT.items()}


def escape_text(data: bytes) -> str:
    r"""Return `data` as one printable line.

    Escapes: `\\`, `\t`, `\n`, and `\xNN` for each byte of an unprintable character.
    """
    text = data.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escape_character(character) for character in text)


def are_plain_lines(lines: Iterable[bytes]) -> bool:
    """Return whether `escape_text` would change none of these lines."""
    text = b" ".join(lines).decode("utf-8", "surrogateescape")
    return text.isprintable() and "\\" not in text


def escape_text_if_needed(data: bytes | None) -> str | None:
    """Return `escape_text(data)` if it differs from the plain text, else None.

    Returns None for None.
    """
    if data is None:
        return None
    text = data.decode("utf-8", "surrogateescape")
    return None if text.isprintable() and "\\" not in text else escape_text(data)


def _escape_character(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def escape_line(data: bytes) -> bytes:
    r"""Return `data` as valid UTF-8 without tabs, newlines and other controls.

    Escapes the backslash, the controls (C0, DEL, and the C1 controls U+0080-U+009F as their two bytes) and every byte
    that is not part of valid UTF-8. Reversible.
    """
    if not data.translate(None, PLAIN):
        return data
    return data.decode("utf-8", "surrogateescape").translate(_LINE_TABLE).encode()


_DECODED_BYTES = 1 << 20


def escape_line_chunks(data: bytes) -> Iterator[bytes]:
    """Yield `escape_line(data)` in chunks, which limits the memory for long values."""
    if len(data) <= _DECODED_BYTES:
        yield escape_line(data)
        return
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    view = memoryview(data)
    for start in range(0, len(data), _DECODED_BYTES):
        text = decoder.decode(view[start : start + _DECODED_BYTES], start + _DECODED_BYTES >= len(data))
        yield text.translate(_LINE_TABLE).encode()


# -- times -----------------------------------------------------------------------------------------------------------


def iso_utc(milliseconds: int) -> str:
    """Return a Unix time in ms as ISO 8601, such as 2026-07-04T12:00:00.123Z.

    Returns the number itself if it is out of range.
    """
    try:
        moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03}Z"


def format_local_time(milliseconds: int | None) -> str:
    """Return a time for people: local, to the second."""
    if milliseconds is None:
        return ""
    try:
        return f"{datetime.fromtimestamp(milliseconds // 1000):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)


def format_row_time(milliseconds: int, zone: str) -> str:
    """Return a local time for a row of a table whose title names the zone.

    It has the offset from UTC where that differs.
    """
    try:
        moment = datetime.fromtimestamp(milliseconds // 1000).astimezone()
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)
    offset = _format_offset(moment)
    return f"{moment:%Y-%m-%d %H:%M:%S}{'' if offset == zone else offset}"


def local_zone() -> str:
    """Return the offset of local time from UTC at present, such as +01:00."""
    return _format_offset(datetime.now().astimezone())


def _format_offset(moment: datetime) -> str:
    offset = f"{moment:%z}"
    return f"{offset[:3]}:{offset[3:5]}"


def parse_timestamp(text: str, now: datetime) -> int:
    """Return the Unix time in ms that `text` means at `now`.

    `now` must have a time zone. Raises ValueError.
    """
    word = text.strip().lower()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if word == "now":
        moment = now
    elif word in ("today", "yesterday"):
        moment = _to_local_time(midnight.replace(tzinfo=None) - timedelta(days=word == "yesterday"))
    elif _CLOCK_PATTERN.fullmatch(word):
        hour, _, rest = word.partition(":")
        moment = _to_local_time(datetime.fromisoformat(f"{midnight:%Y-%m-%d}T{hour:0>2}:{rest}"))
    elif parts := _AGE_PATTERN.fullmatch(word):
        pairs = [(parts[1], parts[2]), (parts[3], parts[4])]
        moment = now - sum((timedelta(**{_TIME_UNITS[unit]: int(n)}) for n, unit in pairs if n), timedelta())
    else:
        moment = datetime.fromisoformat(text.strip())
        moment = moment if moment.tzinfo else _to_local_time(moment)
    return int(moment.timestamp() * 1000)


def _to_local_time(naive: datetime) -> datetime:
    return naive.astimezone()


# -- numbers ---------------------------------------------------------------------------------------------------------


def format_size_pair(prior: int | None, new: int | None) -> str:
    """Return two numbers of bytes in at most nine characters.

    Examples: `111→113`, `-→1.2K`, `999M→1.1G`.
    """
    return f"{_format_short_size(prior)}→{_format_short_size(new)}"


def _format_short_size(size: int | None) -> str:
    if size is None:
        return "-"
    number = float(size)
    for unit in ("", "K", "M", "G"):
        if number < 999.5:
            return f"{number:.0f}{unit}" if not unit or number >= 9.95 else f"{number:.1f}{unit}"
        number /= 1024
    return f"{number:.1f}T"


def format_count(number: int, noun: str) -> str:
    """Return a number and its noun: `1 change`, `1,200 changes`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


# -- Redis's globs ---------------------------------------------------------------------------------------------------

_NO_BYTE = b"(?!)"


def compile_glob(pattern: bytes) -> tuple[bytes, re.Pattern[bytes] | None]:
    """Return (literal prefix, compiled pattern) of a Redis glob, as KEYS takes it.

    Returns (the literal, None) for a glob without special characters. One difference from the server: a range in a
    class covers bytes 0 to 255, whereas most builds of Redis on x86 treat bytes above 127 as negative.
    """
    literal = bytearray()
    parts = [bytearray()]  # the expressions between the stars
    special = False
    for is_literal, expression in _iter_glob_tokens(pattern):
        special = special or not is_literal
        if not expression:
            parts.append(bytearray())
        parts[-1] += re.escape(expression) if is_literal else expression
        if not special:
            literal += expression
    return bytes(literal), re.compile(_join_parts(parts), re.DOTALL) if special else None


def find_glob_literal(pattern: bytes) -> bytes:
    """Return the longest literal of a Redis glob after its prefix.

    Each match contains it. Empty if there is none.
    """
    literals = [bytearray()]
    for is_literal, expression in _iter_glob_tokens(pattern):
        if is_literal:
            literals[-1] += expression
        else:
            literals.append(bytearray())
    return bytes(max(literals[1:], key=len, default=b""))


def _iter_glob_tokens(pattern: bytes) -> Iterator[tuple[bool, bytes]]:
    """Yield (is a literal, literal byte or expression) of each part of a Redis glob.

    The expression of a star is empty.
    """
    position = 0
    while position < len(pattern):
        byte = pattern[position : position + 1]
        position += 1
        if byte in b"*?":
            yield False, b"" if byte == b"*" else b"."
        elif byte == b"[":
            position, expression = _compile_class(pattern, position)
            yield False, expression
        else:
            if byte == b"\\" and position < len(pattern):
                byte = pattern[position : position + 1]
                position += 1
            yield True, byte


def glob_matches(pattern: bytes, key: bytes) -> bool:
    """Return whether a Redis glob matches a key."""
    literal, expression = compile_glob(pattern)
    return key == literal if expression is None else expression.fullmatch(key) is not None


def _join_parts(parts: list[bytearray]) -> bytes:
    """Return the expression for a glob from its parts between the stars.

    A part between two stars matches at its first possible position only: backtracking would take exponential time with
    many stars.
    """
    if len(parts) == 1:
        return bytes(parts[0])
    first, *middle, last = parts
    return bytes(first) + b"".join(b"(?>.*?" + part + b")" for part in middle if part) + b".*" + bytes(last)


def _compile_class(pattern: bytes, position: int) -> tuple[int, bytes]:
    """Return (end, expression) of the `[…]` that begins before `position`.

    An unclosed class ends with the pattern.
    """
    negated = pattern[position : position + 1] == b"^"
    position += negated
    members = bytearray()
    while position < len(pattern) and pattern[position : position + 1] != b"]":
        first = last = pattern[position]
        if pattern[position : position + 1] == b"\\" and position + 1 < len(pattern):
            position += 1
            first = last = pattern[position]
        elif pattern[position + 1 : position + 2] == b"-" and position + 2 < len(pattern):
            last = pattern[position + 2]
            position += 2
        members += b"\\x%02x-\\x%02x" % (min(first, last), max(first, last))
        position += 1
    if not members:
        return position + 1, b"." if negated else _NO_BYTE
    return position + 1, b"[" + (b"^" if negated else b"") + bytes(members) + b"]"


def literal_glob(key: bytes) -> bytes:
    """Return the glob that matches only this key."""
    escaped = bytearray()
    for byte in key:
        if byte in b"*?[]\\":
            escaped += b"\\"
        escaped.append(byte)
    return bytes(escaped)

"""What a terminal may be shown: keys and values can hold escape sequences, so all text goes through here. Pure."""

import logging
import re

# Controls, surrogates (bytes that were not UTF-8), line separators, and the marks that change the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def printable(text: str | bytes) -> str:
    """One line of text that a terminal shows as it is: controls and bytes that are no text as `\\xNN` or `\\uNNNN`."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return _UNPRINTABLE.sub(_escaped, text)


class PrintableFormatter(logging.Formatter):
    """Log records as lines that a terminal can be shown; a traceback's lines stay lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Format, then make each line printable."""
        return "\n".join(map(printable, super().format(record).split("\n")))


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # surrogateescape: the byte itself
        number -= 0xDC00
    return _SHORT.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")

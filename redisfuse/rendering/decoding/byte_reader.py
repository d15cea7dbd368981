"""Reading bytes in order, without any allocation that they declare.

Pure.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any

from redisfuse.rendering.decoding.limits import TruncatedValueError


class ByteReader:
    """A position in bytes."""

    __slots__ = ("data", "position")

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    @property
    def remaining(self) -> int:
        """The number of bytes that follow."""
        return len(self.data) - self.position

    def take(self, size: int) -> bytes:
        """Return the next bytes. Raises TruncatedValueError if fewer are left."""
        end = self.position + size
        if end > len(self.data):
            raise TruncatedValueError(f"{size} bytes are declared, and {self.remaining} are left")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def take_byte(self) -> int:
        """Return the next byte. Raises TruncatedValueError."""
        if self.position >= len(self.data):
            raise TruncatedValueError("the value ends")
        byte = self.data[self.position]
        self.position += 1
        return byte

    def peek_byte(self) -> int:
        """Return the next byte without consuming it. Raises TruncatedValueError."""
        if self.position >= len(self.data):
            raise TruncatedValueError("the value ends")
        return self.data[self.position]

    def unpack(self, layout: str) -> Any:
        """Return one number, with a layout of the module `struct`.

        Raises TruncatedValueError.
        """
        form = _compile(layout)
        return form.unpack(self.take(form.size))[0]

    def take_until(self, delimiter: bytes, max_size: int) -> bytes:
        """Return the bytes before a delimiter, and consume both.

        Raises TruncatedValueError if it is not among the next `max_size` bytes.
        """
        end = self.data.find(delimiter, self.position, self.position + max_size)
        if end < 0:
            raise TruncatedValueError(f"{delimiter.decode('ascii')!r} is missing")
        piece = self.data[self.position : end]
        self.position = end + len(delimiter)
        return piece


@lru_cache(maxsize=64)
def _compile(layout: str) -> struct.Struct:
    return struct.Struct(layout)

"""Compression of archives, in frames.

A file of several frames (those of zstd, or members of gzip) decompresses to their contents, one after the other. A
frame that is complete can be kept when an interrupted dump is resumed.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, BinaryIO, Protocol, cast

from redisfuse.errors import UsageError

_GZIP_LEVEL = 6
_GZIP_WINDOW = 31  # bits of zlib's window, with the header of gzip


class FrameCompressor(Protocol):
    """Compresses one frame after the other."""

    def compress(self, data: bytes) -> bytes:
        """Return what can be written of the frame."""

    def end_frame(self) -> bytes:
        """Return the end of the frame; the next data begin another one."""


class FrameDecompressor(Protocol):
    """Decompresses one frame."""

    eof: bool
    unused_data: bytes  # after the end of the frame

    def decompress(self, data: bytes, /) -> bytes:
        """Return what follows from the next data."""


@dataclass(frozen=True, slots=True)
class Compression:
    """A format of compressed files."""

    suffix: str  # of their names
    magic: bytes  # their first bytes
    create_compressor: Callable[[], FrameCompressor]
    create_decompressor: Callable[[], FrameDecompressor]
    open_file: Callable[[BinaryIO], BinaryIO]  # for reading


def find_by_name(name: str) -> Compression | None:
    """Return the compression of a file with this name; None: it is not compressed."""
    return next((one for one in _COMPRESSIONS if name.endswith(one.suffix)), None)


def find_by_content(beginning: bytes) -> Compression | None:
    """Return the compression of a file that begins with these bytes."""
    return next((one for one in _COMPRESSIONS if beginning.startswith(one.magic)), None)


def list_decompression_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that damaged data raise."""
    zstd = sys.modules.get(_ZSTD_MODULE)
    return (EOFError, zlib.error, gzip.BadGzipFile, *((zstd.ZstdError,) if zstd is not None else ()))


class _GzipCompressor:
    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._object = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WINDOW)

    def compress(self, data: bytes) -> bytes:
        return self._object.compress(data)

    def end_frame(self) -> bytes:
        end = self._object.flush()
        self._begin()
        return end


class _ZstdCompressor:
    def __init__(self) -> None:
        self._object = _import_zstd().ZstdCompressor()

    def compress(self, data: bytes) -> bytes:
        return cast(bytes, self._object.compress(data))

    def end_frame(self) -> bytes:
        return cast(bytes, self._object.flush())  # by default with FLUSH_FRAME


_ZSTD_MODULE = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"


def _import_zstd() -> Any:
    try:
        return import_module(_ZSTD_MODULE)
    except ImportError:
        raise UsageError(
            "zstd archives need another package: pip install 'redisfuse[decode]'; or use a pipe and the program zstd"
        ) from None


_COMPRESSIONS = (
    Compression(
        ".gz",
        b"\x1f\x8b",
        _GzipCompressor,
        lambda: cast(FrameDecompressor, zlib.decompressobj(wbits=_GZIP_WINDOW)),
        lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file)),
    ),
    Compression(
        ".zst",
        b"\x28\xb5\x2f\xfd",
        _ZstdCompressor,
        lambda: cast(FrameDecompressor, _import_zstd().ZstdDecompressor()),
        lambda file: cast(BinaryIO, _import_zstd().ZstdFile(file)),
    ),
)

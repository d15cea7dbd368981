"""Layers around a value: compression and base64.

Each is expanded in pieces, so that a bomb is cut off at the limit and costs no more memory. Of a damaged layer, what
precedes the damage is returned.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import lzma
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from redisfuse.rendering.decoding import signatures
from redisfuse.rendering.decoding.limits import DecodeBudget, DecodingLimitError

INSTALL_HINT = "install redisfuse[decode]"

_PIECE_BYTES = 64 << 10  # decompressed at a time
_XZ_MEMORY_BYTES = 64 << 20  # of the dictionary that an xz header declares
_ZSTD_WINDOW_LOG = 25  # 32 MiB: what a frame may make the decompressor allocate


class Layer(NamedTuple):
    """The content of one layer."""

    name: str
    data: bytes | None  # None: it can't be expanded here
    problem: str = ""  # why data is not all of it
    reached_limit: bool = False  # the problem is a limit


class _Stream(Protocol):
    """A decompressor of one stream, as bz2, lzma, lz4 and zstd have it."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Compression:
    """A way to compress, recognized by how it begins."""

    name: str
    recognize: Callable[[bytes], bool]
    create: Callable[[], Any]  # returns a `_Stream`; raises ImportError
    is_certain: bool = True  # the signature is long enough; else some of it must decompress


class _ZlibStream:
    """The interface of `_Stream` for zlib and gzip."""

    def __init__(self, window_bits: int) -> None:
        self._object = zlib.decompressobj(window_bits)
        self._tail = b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._object.decompress(self._tail + data if data else self._tail, max_length)
        self._tail = self._object.unconsumed_tail
        self._is_drained = len(piece) < max_length
        return piece

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def needs_input(self) -> bool:
        return not self._tail and self._is_drained

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data


class _BrotliStream:
    """The interface of `_Stream` for brotli."""

    unused_data = b""  # the library rejects bytes after the end

    def __init__(self) -> None:
        self._object = import_module("brotli").Decompressor()

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece: bytes = self._object.process(data, output_buffer_limit=max_length)
        return piece

    @property
    def eof(self) -> bool:
        return bool(self._object.is_finished())

    @property
    def needs_input(self) -> bool:
        return bool(self._object.can_accept_more_data())


def _create_zstd() -> Any:
    module = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    return module.ZstdDecompressor(options={module.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})


_COMPRESSIONS = (
    Compression("gzip", lambda data: data.startswith(signatures.GZIP), lambda: _ZlibStream(31)),
    Compression("zstd", lambda data: data.startswith(signatures.ZSTD), _create_zstd),
    Compression(
        "lz4",
        lambda data: data.startswith(signatures.LZ4_FRAME),
        lambda: import_module("lz4.frame").LZ4FrameDecompressor(),
    ),
    Compression("bzip2", lambda data: signatures.BZIP2.match(data) is not None, bz2.BZ2Decompressor),
    Compression(
        "xz",
        lambda data: data.startswith(signatures.XZ),
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES),
    ),
    Compression("zlib", signatures.is_zlib, lambda: _ZlibStream(15), is_certain=False),
)
_BROTLI = Compression("brotli", lambda _: True, _BrotliStream, is_certain=False)


def list_decompressors() -> dict[str, bool]:
    """Return the compressions, and whether each can be expanded here."""
    available = {}
    for compression in (*_COMPRESSIONS, _BROTLI):
        try:
            compression.create()
        except ImportError:
            available[compression.name] = False
        else:
            available[compression.name] = True
    return available


def expand_compression(data: bytes, budget: DecodeBudget) -> Layer | None:
    """Return what a compressed value contains.

    None if it is not compressed, or not recognizably.
    """
    for compression in _COMPRESSIONS:
        if compression.recognize(data):
            return _expand(compression, data, budget)
    return None


def expand_brotli(data: bytes, budget: DecodeBudget) -> Layer | None:
    """Return the content of a value all of which is valid brotli.

    Brotli has no signature.
    """
    layer = _expand(_BROTLI, data, budget)
    if layer is None or not layer.data or (layer.problem and not layer.reached_limit):
        return None
    return layer


def expand_base64(data: bytes) -> Layer | None:
    """Return the bytes that a text encodes; None if it can't be base64."""
    alphabet = signatures.base64_alphabet(data)
    if alphabet is None:
        return None
    text = data.translate(None, b"\r\n")
    if alphabet == b"-_":
        text += b"=" * (-len(text) % 4)
    try:
        return Layer("base64", base64.b64decode(text, altchars=alphabet, validate=True))
    except (binascii.Error, ValueError):
        return None


def _expand(compression: Compression, data: bytes, budget: DecodeBudget) -> Layer | None:
    try:
        stream = compression.create()
    except ImportError:
        return Layer(compression.name, None, INSTALL_HINT)
    pieces: list[bytes] = []
    problem = ""
    reached_limit = False
    try:
        problem = _decompress_all(compression, stream, data, budget, pieces)
    except DecodingLimitError as error:
        problem, reached_limit = str(error), True
    except Exception as error:  # the errors of the libraries have no class in common
        problem = f"the data is damaged ({error})"
    output = b"".join(pieces)
    if not compression.is_certain and not output:
        return None
    if problem:
        problem += f"; {len(output)} bytes were decompressed"
    return Layer(compression.name, output or None if problem else output, problem, reached_limit)


def _decompress_all(
    compression: Compression, stream: _Stream, data: bytes, budget: DecodeBudget, pieces: list[bytes]
) -> str:
    """Append the decompressed pieces to `pieces`; return what is wrong with the end.

    Streams that follow each other, as in `cat a.gz b.gz`, are one.
    """
    size = 0
    pending = data
    while True:
        budget.check_time()
        piece = stream.decompress(pending, _PIECE_BYTES)
        pending = b""
        size += len(piece)
        if size > budget.limits.output_bytes:
            pieces.append(piece[: len(piece) - (size - budget.limits.output_bytes)])
            raise budget.output_error("the decompressed data")
        pieces.append(piece)
        if stream.eof:
            pending = stream.unused_data
            if not pending:
                return ""
            if pending[:3] != data[:3]:
                return f"{len(pending)} bytes follow its end"
            stream = compression.create()
        elif stream.needs_input and not piece:
            return "the data ends early"

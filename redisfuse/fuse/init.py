"""The answer to the kernel's first request, FUSE_INIT, where the library asks for less than the kernel offers.

libfuse 2 knows nothing newer than 2012. Of what came since, some need nothing of a library and matter here: lookups and
listings in one directory side by side, pages dropped when a file's mtime changes, reads of up to 1 MiB; and, unknown to
libfuse 3.14 too, that no write need be preceded by a question for `security.capability` (files here have no
capabilities or set-uid bits that a write would have to take away).
So libfuse's answer is caught on a socket that stands in for the kernel's descriptor, and passed on with those added.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable

_INIT = 26  # opcode
_IN_HEADER = 40  # struct fuse_in_header
_OUT_HEADER = 16  # struct fuse_out_header
_OFFERED = _IN_HEADER + 12  # where the kernel's flags are
_FULL = struct.Struct("=IIIIHHIIHHI7I")  # struct fuse_init_out since 7.28
_SHORT = struct.Struct("=IIIIHHI")  # before

_AUTO_INVAL_DATA = 1 << 12
_PARALLEL_DIROPS = 1 << 18
_MAX_PAGES = 1 << 22
_HANDLE_KILLPRIV_V2 = 1 << 28
_PAGES = (1 << 20) // os.sysconf("SC_PAGE_SIZE")
_LARGEST = 135_168  # bytes of a request, as libfuse 2 allows for


def answer_init(kernel: int, library: int, process: Callable[[bytes], None]) -> bool:
    """Read INIT from `kernel`, let `process` (the library, which writes to descriptor `library`) answer it, send that.

    Afterwards `library` is the kernel's descriptor again. False if the mount had ended before.
    """
    try:
        request = os.read(kernel, _LARGEST)
    except OSError:
        return False
    (opcode,) = struct.unpack_from("=I", request, 4)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        os.dup2(near.fileno(), library, inheritable=False)
        try:
            process(request)
            far.setblocking(False)
            reply = far.recv(_LARGEST)
        finally:
            os.dup2(kernel, library, inheritable=False)
    try:
        os.write(kernel, _improved(request, reply) if opcode == _INIT else reply)
    except OSError:
        return False
    return True


def _improved(request: bytes, reply: bytes) -> bytes:
    """`reply` with what the kernel offers in `request` and the library left out."""
    (offered,) = struct.unpack_from("=I", request, _OFFERED)
    _, error, unique = struct.unpack_from("=IiQ", reply)
    size = len(reply) - _OUT_HEADER
    if size == _SHORT.size:
        major, minor, readahead, flags, background, threshold, write = _SHORT.unpack_from(reply, _OUT_HEADER)
        flags |= offered & (_AUTO_INVAL_DATA | _PARALLEL_DIROPS | _MAX_PAGES | _HANDLE_KILLPRIV_V2)
        pages = _PAGES if flags & _MAX_PAGES else 0
        body = _FULL.pack(major, minor, readahead, flags, background, threshold, write, 0, pages, 0, 0, *[0] * 7)
    elif size == _FULL.size:
        fields = list(_FULL.unpack_from(reply, _OUT_HEADER))
        fields[3] |= offered & (_PARALLEL_DIROPS | _HANDLE_KILLPRIV_V2)  # the former is forgotten by libfuse 3.14
        body = _FULL.pack(*fields)
    else:
        return reply  # an error
    return struct.pack("=IiQ", _OUT_HEADER + len(body), error, unique) + body

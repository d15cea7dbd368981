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

_FUSE_INIT = 26  # opcode
_IN_HEADER_SIZE = 40  # struct fuse_in_header
_OUT_HEADER_SIZE = 16  # struct fuse_out_header
_INIT_FLAGS_OFFSET = _IN_HEADER_SIZE + 12  # where the kernel's flags are
_INIT_OUT = struct.Struct("=IIIIHHIIHHI7I")  # struct fuse_init_out since 7.28
_INIT_OUT_COMPAT_22 = struct.Struct("=IIIIHHI")  # before

_AUTO_INVAL_DATA = 1 << 12
_PARALLEL_DIROPS = 1 << 18
_MAX_PAGES = 1 << 22
_HANDLE_KILLPRIV_V2 = 1 << 28
_MAX_REQUEST_PAGES = (1 << 20) // os.sysconf("SC_PAGE_SIZE")
_MAX_REQUEST_BYTES = 135_168  # bytes of a request, as libfuse 2 allows for


def negotiate(kernel_fd: int, library_fd: int, process_request: Callable[[bytes], None]) -> bool:
    """Read INIT from `kernel`, let `process` (the library, which writes to descriptor `library`) answer it, send that.

    Afterwards `library` is the kernel's descriptor again. False if the mount had ended before.
    """
    try:
        request = os.read(kernel_fd, _MAX_REQUEST_BYTES)
    except OSError:
        return False
    (opcode,) = struct.unpack_from("=I", request, 4)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        os.dup2(near.fileno(), library_fd, inheritable=False)
        try:
            process_request(request)
            far.setblocking(False)
            reply = far.recv(_MAX_REQUEST_BYTES)
        finally:
            os.dup2(kernel_fd, library_fd, inheritable=False)
    try:
        os.write(kernel_fd, _add_capabilities(request, reply) if opcode == _FUSE_INIT else reply)
    except OSError:
        return False
    return True


def _add_capabilities(request: bytes, reply: bytes) -> bytes:
    """`reply` with what the kernel offers in `request` and the library left out."""
    (offered,) = struct.unpack_from("=I", request, _INIT_FLAGS_OFFSET)
    _, error, unique = struct.unpack_from("=IiQ", reply)
    size = len(reply) - _OUT_HEADER_SIZE
    if size == _INIT_OUT_COMPAT_22.size:
        major, minor, readahead, flags, background, threshold, write = _INIT_OUT_COMPAT_22.unpack_from(
            reply, _OUT_HEADER_SIZE
        )
        flags |= offered & (_AUTO_INVAL_DATA | _PARALLEL_DIROPS | _MAX_PAGES | _HANDLE_KILLPRIV_V2)
        pages = _MAX_REQUEST_PAGES if flags & _MAX_PAGES else 0
        body = _INIT_OUT.pack(major, minor, readahead, flags, background, threshold, write, 0, pages, 0, 0, *[0] * 7)
    elif size == _INIT_OUT.size:
        fields = list(_INIT_OUT.unpack_from(reply, _OUT_HEADER_SIZE))
        fields[3] |= offered & (_PARALLEL_DIROPS | _HANDLE_KILLPRIV_V2)  # the former is forgotten by libfuse 3.14
        body = _INIT_OUT.pack(*fields)
    else:
        return reply  # an error
    return struct.pack("=IiQ", _OUT_HEADER_SIZE + len(body), error, unique) + body

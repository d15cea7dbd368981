"""The reply to INIT: the version of the protocol and the accepted flags."""

from __future__ import annotations

import os

from redisfuse.errors import MountError
from redisfuse.fuse.interface import ConnectionInfo, FuseSessionOptions
from redisfuse.fuse.wire import (
    IN_HEADER_SIZE,
    INIT_IN,
    INIT_OUT,
    KERNEL_MAJOR,
    KERNEL_MINOR_MAX,
    KERNEL_MINOR_MIN,
    MAX_WRITE_BYTES,
    UINT32,
    InitFlag,
)

_MAX_PAGES = MAX_WRITE_BYTES // os.sysconf("SC_PAGE_SIZE")
_MAX_BACKGROUND, _CONGESTION_THRESHOLD = 64, 48  # requests that no program waits for (read-ahead, RELEASE)
_ALWAYS = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.DO_READDIRPLUS
    | InitFlag.ASYNC_DIO
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.NO_OPENDIR_SUPPORT
    # No GETXATTR of security.capability before each write: files have no capabilities or set-uid bits here.
    | InitFlag.HANDLE_KILLPRIV_V2
    | InitFlag.INIT_EXT
    | InitFlag.HAS_EXPIRE_ONLY
    | InitFlag.DIRECT_IO_ALLOW_MMAP  # direct I/O does not prevent shared mappings
)


def negotiate(request: memoryview, options: FuseSessionOptions) -> tuple[bytes, ConnectionInfo | None]:
    """Return the body of the reply, and the negotiated parameters.

    These are None if the kernel will send INIT again with our major version. READDIRPLUS_AUTO is not accepted: with it,
    the kernel requests no attributes for programs that read a whole directory before they open its files (grep, find).
    Raises MountError if the kernel is too old.
    """
    major, minor, max_readahead, offered = INIT_IN.unpack_from(request, IN_HEADER_SIZE)
    if major > KERNEL_MAJOR:
        return INIT_OUT.pack(KERNEL_MAJOR, KERNEL_MINOR_MAX, *[0] * 16), None
    if (major, minor) < (KERNEL_MAJOR, KERNEL_MINOR_MIN):
        raise MountError(
            f"the kernel has FUSE {major}.{minor}, but Linux 5.4 or later ({KERNEL_MAJOR}.{KERNEL_MINOR_MIN}) is needed"
        )
    if offered & InitFlag.INIT_EXT and len(request) >= IN_HEADER_SIZE + INIT_IN.size + UINT32.size:
        offered |= UINT32.unpack_from(request, IN_HEADER_SIZE + INIT_IN.size)[0] << 32
    wanted = _ALWAYS | (InitFlag.EXPLICIT_INVAL_DATA if options.explicit_invalidation else InitFlag.AUTO_INVAL_DATA)
    flags = offered & wanted
    minor = min(minor, KERNEL_MINOR_MAX)
    reply = INIT_OUT.pack(
        *(KERNEL_MAJOR, minor, max_readahead, flags & 0xFFFFFFFF),
        *(_MAX_BACKGROUND, _CONGESTION_THRESHOLD, MAX_WRITE_BYTES, 1, _MAX_PAGES, 0, flags >> 32),
        *[0] * 7,
    )
    return reply, ConnectionInfo(minor, flags)

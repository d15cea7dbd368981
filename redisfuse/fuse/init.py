"""The reply to INIT: which version of the protocol and which of the kernel's offers the session takes."""

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
_MAX_BACKGROUND, _CONGESTION_THRESHOLD = 64, 48  # requests under way that no program waits for (read-ahead, RELEASE)
_ALWAYS = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.ASYNC_DIO
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.NO_OPENDIR_SUPPORT
    # No GETXATTR of security.capability before each write: files have no capabilities or set-uid bits here.
    | InitFlag.HANDLE_KILLPRIV_V2
    | InitFlag.INIT_EXT
    | InitFlag.HAS_EXPIRE_ONLY
)


def negotiate(request: memoryview, options: FuseSessionOptions) -> tuple[bytes, ConnectionInfo | None]:
    """Return the reply's body, and what was negotiated; None if the kernel sends INIT again in our major version.

    READDIRPLUS_AUTO is not taken: the kernel gives up on attributes for programs that read a whole directory before
    they open its files (grep, find). Raises MountError for a kernel that is too old.
    """
    major, minor, max_readahead, offered = INIT_IN.unpack_from(request, IN_HEADER_SIZE)
    if major > KERNEL_MAJOR:
        return INIT_OUT.pack(KERNEL_MAJOR, KERNEL_MINOR_MAX, *[0] * 16), None
    if (major, minor) < (KERNEL_MAJOR, KERNEL_MINOR_MIN):
        raise MountError(
            f"the kernel speaks FUSE {major}.{minor}: Linux 5.4 or later ({KERNEL_MAJOR}.{KERNEL_MINOR_MIN}) is needed"
        )
    if offered & InitFlag.INIT_EXT and len(request) >= IN_HEADER_SIZE + INIT_IN.size + UINT32.size:
        offered |= UINT32.unpack_from(request, IN_HEADER_SIZE + INIT_IN.size)[0] << 32
    wanted = _ALWAYS | (InitFlag.EXPLICIT_INVAL_DATA if options.explicit_invalidation else InitFlag.AUTO_INVAL_DATA)
    if options.readdirplus:
        wanted |= InitFlag.DO_READDIRPLUS
    flags = offered & wanted
    minor = min(minor, KERNEL_MINOR_MAX)
    reply = INIT_OUT.pack(
        *(KERNEL_MAJOR, minor, max_readahead, flags & 0xFFFFFFFF),
        *(_MAX_BACKGROUND, _CONGESTION_THRESHOLD, MAX_WRITE_BYTES, 1, _MAX_PAGES, 0, flags >> 32),
        *[0] * 7,
    )
    return reply, ConnectionInfo(
        *(minor, offered, flags, max_readahead, MAX_WRITE_BYTES),
        has_expire_only=bool(flags & InitFlag.HAS_EXPIRE_ONLY),
        has_inc_epoch=minor >= 44,
    )

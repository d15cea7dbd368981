"""Names of stale nodes, which their path no longer leads to.

They exist in mounts that never receive OPEN (`FuseSessionOptions.no_open`). Such a mount answers the kernel's first
OPEN with ENOSYS, and the kernel sends no other: a warm open, read and close never leaves the kernel. The mount
therefore does not know which files are open, and all readers of a node share its pages. When a file changes, its node
becomes stale: libfuse's path table is made to hold it under another name, its content is pinned for the processes that
have it open, and the kernel's entry is invalidated, so that the next lookup creates a new node for the path.

libfuse builds a node's path from its name. A name that contains `//` gives a path that no program can request.
"""

from __future__ import annotations

import struct

_STALE_MARKER = b"//"
_FUSE_RENAME = 12  # opcode; the body is struct fuse_rename_in and the two names
_FUSE_IN_HEADER = struct.Struct("=IIQQIIIHH")  # struct fuse_in_header
_UNIQUE_BASE = 1 << 62  # far above the kernel's own request numbers, which count from 2 in steps of 2


def is_stale(path: bytes) -> bool:
    """Return whether a path, as libfuse passes it, is that of a stale node."""
    return _STALE_MARKER in path


def strip_stale_marker(path: bytes) -> bytes:
    """Return the path under which a node was looked up."""
    return path.partition(_STALE_MARKER)[0]


def parse_stale_number(name: bytes) -> int:
    """Return the sequence number in a stale node's name."""
    return int(name.rpartition(_STALE_MARKER)[2])


def build_rename_request(parent: int, name: bytes, number: int, uid: int) -> bytes:
    """Return a FUSE_RENAME request, in the kernel's format, that makes a node stale.

    The node is `name` in the directory `parent`. `number` must be unique. libfuse sends its reply to the kernel, which
    expects none and drops it.
    """
    names = name + b"\0" + name + _STALE_MARKER + b"%d" % number + b"\0"
    size = _FUSE_IN_HEADER.size + 8 + len(names)
    header = _FUSE_IN_HEADER.pack(size, _FUSE_RENAME, _UNIQUE_BASE + 2 * number, parent, uid, 0, 0, 0, 0)
    return header + struct.pack("=Q", parent) + names

"""Names of nodes that are not what their path leads to any more, where files are read without being opened.

Such a mount (`FuseSessionOptions.no_open`) answers the kernel's first OPEN with ENOSYS, and none follows: a warm open, read
and close never leaves the kernel. But then nobody knows who has a file open, and all who read a node share its pages.
So when a file changes, its node is retired: the library is made to call it by another name, with what was read of it
kept for those who have it open, and the kernel is told to look again, which makes a new node of the path.

The library makes of a node's name a path. A name with `//` in it gives one that no program can ask for.
"""

from __future__ import annotations

import struct

_STALE_MARKER = b"//"
_FUSE_RENAME = 12  # opcode; the body is struct fuse_rename_in and the two names
_FUSE_IN_HEADER = struct.Struct("=IIQQIIIHH")  # struct fuse_in_header
_UNIQUE_BASE = 1 << 62  # far above any request of the kernel's, which counts from 2 by twos


def is_stale(path: bytes) -> bool:
    """Whether a path, as the library gives it, is of a retired node."""
    return _STALE_MARKER in path


def strip_stale_marker(path: bytes) -> bytes:
    """The path at which the node of a path was found."""
    return path.partition(_STALE_MARKER)[0]


def parse_stale_number(name: bytes) -> int:
    """The how manieth retirement a retired node's was."""
    return int(name.rpartition(_STALE_MARKER)[2])


def build_rename_request(parent: int, name: bytes, number: int, uid: int) -> bytes:
    """The rename that retires what is called `name` in the directory `parent`, as if the kernel had sent it.

    `number`: another one each time. The library's answer goes to the kernel, which waits for none such and drops it.
    """
    names = name + b"\0" + name + _STALE_MARKER + b"%d" % number + b"\0"
    size = _FUSE_IN_HEADER.size + 8 + len(names)
    header = _FUSE_IN_HEADER.pack(size, _FUSE_RENAME, _UNIQUE_BASE + 2 * number, parent, uid, 0, 0, 0, 0)
    return header + struct.pack("=Q", parent) + names

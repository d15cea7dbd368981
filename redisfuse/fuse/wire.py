"""The kernel's protocol as bytes (fuse(4), include/uapi/linux/fuse.h): requests that are inspected before libfuse
sees them, and notifications to the kernel.

Parsing a request never blocks, nor does replying to `GIL_HOLDING_OPCODES`: they keep the GIL. (Releasing it lets
another thread take it for longer than the call lasts, at the cost of two thread switches, a dozen times for each file
that is saved.) All other requests may block in libfuse, on a path that another thread's callback has locked: a thread
that held the GIL meanwhile would deadlock.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import threading

MAX_WRITE_BYTES = 1 << 20  # bytes: what the kernel sends at once, unless its administrator raised that
MAX_REQUEST_BYTES = MAX_WRITE_BYTES + 8192  # bytes of a request, with its headers
OPCODE_OFFSET, UNIQUE_OFFSET, NODE_ID_OFFSET, IN_HEADER_SIZE = (
    4,
    8,
    16,
    40,
)  # offsets in struct fuse_in_header, and its size
FORGET, _BATCH_FORGET = FORGET_OPCODES = (2, 42)
GETXATTR = 22
GIL_HOLDING_OPCODES = (16, 25)  # WRITE and FLUSH: for them the library looks for no path, unless files are not opened
GETXATTR_NAME_OFFSET = IN_HEADER_SIZE + 8  # of the attribute, behind struct fuse_getxattr_in
POLLFD = struct.Struct("=ihh")  # struct pollfd of poll(2)
_OUT_HEADER = struct.Struct("=IiQ")  # struct fuse_out_header

# Attributes that every `ls -l`, write or exec asks for and that are never kept here: not supported, for good (ls then
# stops asking on this device; ENOSYS would end all extended attributes).
UNSUPPORTED_XATTR_PREFIXES = (b"system.posix_acl_", b"security.")


def parse_forget(request: ctypes.Array[ctypes.c_char], opcode: int) -> list[int]:
    """The nodes that a request tells to be forgotten."""
    if opcode == FORGET:
        return list(struct.unpack_from("=Q", request, NODE_ID_OFFSET))
    (count,) = struct.unpack_from("=I", request, IN_HEADER_SIZE)
    return list(struct.unpack_from(f"={2 * count}Q", request, IN_HEADER_SIZE + 8)[::2])


def reply_unsupported_xattr(request: ctypes.Array[ctypes.c_char]) -> bytes | None:
    """The answer to a GETXATTR, if it is that such attributes are not kept here."""
    if ctypes.string_at(ctypes.addressof(request) + GETXATTR_NAME_OFFSET).startswith(UNSUPPORTED_XATTR_PREFIXES):
        return _OUT_HEADER.pack(_OUT_HEADER.size, -errno.ENOTSUP, *struct.unpack_from("=Q", request, UNIQUE_OFFSET))
    return None


# -- notifications --

_NOTIFY_INVAL_INODE, _NOTIFY_INVAL_ENTRY, _NOTIFY_STORE, _NOTIFY_INC_EPOCH = 2, 3, 4, 8  # enum fuse_notify_code
EXPIRE_ONLY = 1  # FUSE_EXPIRE_ONLY, Linux 6.2: look again, but leave the name to those who have it open
_WRITE_TIMEOUT_SECONDS = 1.0  # seconds


def _pack_notification(code: int, payload: bytes) -> bytes:
    return struct.pack("=IiQ", 16 + len(payload), code, 0) + payload


INC_EPOCH = _pack_notification(_NOTIFY_INC_EPOCH, b"")  # no name that was told before is believed any more


def inval_inode(node_id: int) -> bytes:
    """Takes a node's attributes and all its pages from the kernel (from 0, a length of 0 being to the end)."""
    return _pack_notification(_NOTIFY_INVAL_INODE, struct.pack("=Qqq", node_id, 0, 0))


def inval_attributes(node_id: int) -> bytes:
    """Takes a node's attributes from the kernel, and leaves it the pages."""
    return _pack_notification(_NOTIFY_INVAL_INODE, struct.pack("=Qqq", node_id, -1, 0))


def inval_entry(parent: int, name: bytes, flags: int) -> bytes:
    """Takes a name from the kernel: 0, or EXPIRE_ONLY."""
    return _pack_notification(_NOTIFY_INVAL_ENTRY, struct.pack("=QII", parent, len(name), flags) + name + b"\0")


def notify_store(node_id: int, offset: int, data: bytes) -> bytes:
    """Gives the kernel bytes of a node, and makes it as long as they reach."""
    return _pack_notification(_NOTIFY_STORE, struct.pack("=QQII", node_id, offset, len(data), 0) + data)


def write_in_thread(descriptor: int, notification: bytes) -> None:
    """Write a notification for a callback, and return when it is written, or after a second; whatever comes of it.

    A callback must not do so itself: the kernel may make a notification wait for a request that is under way in the
    same node, and so for the callback that writes it, or for one that can't begin before that has ended.
    """

    def write() -> None:
        with contextlib.suppress(OSError):
            os.write(descriptor, notification)

    thread = threading.Thread(target=write, name="fuse-aside", daemon=True)
    with contextlib.suppress(RuntimeError):  # no more threads to be had
        thread.start()
        thread.join(_WRITE_TIMEOUT_SECONDS)

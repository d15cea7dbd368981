"""Notifications to the kernel (fuse(4)), and how a callback writes one."""

from __future__ import annotations

import contextlib
import os
import struct
import threading

_INVAL_INODE, _INVAL_ENTRY, _STORE, _INC_EPOCH = 2, 3, 4, 8  # enum fuse_notify_code
EXPIRE_ONLY = 1  # FUSE_EXPIRE_ONLY, Linux 6.2: look again, but leave the name to those who have it open
_PATIENCE = 1.0  # seconds


def _notice(code: int, payload: bytes) -> bytes:
    return struct.pack("=IiQ", 16 + len(payload), code, 0) + payload


NEXT_EPOCH = _notice(_INC_EPOCH, b"")  # no name that was told before is believed any more


def forget_node(number: int) -> bytes:
    """Takes a node's attributes and all its pages from the kernel (from 0, a length of 0 being to the end)."""
    return _notice(_INVAL_INODE, struct.pack("=Qqq", number, 0, 0))


def forget_attributes(number: int) -> bytes:
    """Takes a node's attributes from the kernel, and leaves it the pages."""
    return _notice(_INVAL_INODE, struct.pack("=Qqq", number, -1, 0))


def forget_name(parent: int, name: bytes, flags: int) -> bytes:
    """Takes a name from the kernel: 0, or EXPIRE_ONLY."""
    return _notice(_INVAL_ENTRY, struct.pack("=QII", parent, len(name), flags) + name + b"\0")


def stored(number: int, offset: int, data: bytes) -> bytes:
    """Gives the kernel bytes of a node, and makes it as long as they reach."""
    return _notice(_STORE, struct.pack("=QQII", number, offset, len(data), 0) + data)


def write_aside(descriptor: int, notice: bytes) -> None:
    """Write a notification for a callback, and return when it is written, or after a second; whatever comes of it.

    A callback must not do so itself: the kernel may make a notification wait for a request that is under way in the
    same node, and so for the callback that writes it, or for one that can't begin before that has ended.
    """

    def write() -> None:
        with contextlib.suppress(OSError):
            os.write(descriptor, notice)

    thread = threading.Thread(target=write, name="fuse-aside", daemon=True)
    with contextlib.suppress(RuntimeError):  # no more threads to be had
        thread.start()
        thread.join(_PATIENCE)

"""The kernel's requests as bytes (fuse(4), include/uapi/linux/fuse.h), where they are looked into before the library.

Reading one never waits, nor does answering those of `KEPT`: for them the interpreter is not given up. (Another thread
would take it for longer than the call lasts, at the price of two changes of threads, a dozen times for each file that
is saved.) All others may wait in the library, for a path that another thread's callback has locked: a thread that did
so with the interpreter in its hands would wait for ever.
"""

from __future__ import annotations

import ctypes
import errno
import struct

LONGEST_WRITE = 1 << 20  # bytes: what the kernel sends at once, unless its administrator raised that
LARGEST = LONGEST_WRITE + 8192  # bytes of a request, with its headers
OPCODE, UNIQUE, NODE, BODY = 4, 8, 16, 40  # offsets in struct fuse_in_header, and its size
FORGET, _BATCH_FORGET = FORGETS = (2, 42)
GETXATTR = 22
KEPT = (16, 25)  # WRITE and FLUSH: for them the library looks for no path, unless files are not opened
NAME = BODY + 8  # of the attribute, behind struct fuse_getxattr_in
POLL = struct.Struct("=ihh")  # struct pollfd of poll(2)
_ANSWER = struct.Struct("=IiQ")  # struct fuse_out_header

# Attributes that every `ls -l`, write or exec asks for and that are never kept here: not supported, for good (ls then
# stops asking on this device; ENOSYS would end all extended attributes).
NEVER = (b"system.posix_acl_", b"security.")


def forgotten(request: ctypes.Array[ctypes.c_char], opcode: int) -> list[int]:
    """The nodes that a request tells to be forgotten."""
    if opcode == FORGET:
        return list(struct.unpack_from("=Q", request, NODE))
    (count,) = struct.unpack_from("=I", request, BODY)
    return list(struct.unpack_from(f"={2 * count}Q", request, BODY + 8)[::2])


def unsupported(request: ctypes.Array[ctypes.c_char]) -> bytes | None:
    """The answer to a GETXATTR, if it is that such attributes are not kept here."""
    if ctypes.string_at(ctypes.addressof(request) + NAME).startswith(NEVER):
        return _ANSWER.pack(_ANSWER.size, -errno.ENOTSUP, *struct.unpack_from("=Q", request, UNIQUE))
    return None

"""Which FUSE node a path is, as far as the kernel has it cached; never asks the filesystem itself.

`openat2` with RESOLVE_CACHED (Linux 5.12) walks only what the kernel knows and believes; `name_to_handle_at` then gives
the node id, which FUSE uses as its file handle. Paths are walked from the directory above the mount point, so that no
descriptor inside the mount is ever kept (it would make the mount busy).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from ctypes import c_char_p, c_int, c_long, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import NamedTuple

_OPENAT2 = 437  # the number on every architecture
_RESOLVE_CACHED = 0x20
_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
_AT_HANDLE_FID = 0x200  # Linux 6.6: a handle that need not be opened again
_STATX_MASK = 1 | 0x200
_STX_MODE_OFFSET, _STX_SIZE_OFFSET = 28, 40  # offsets in struct statx
_FILEID_INO64_GEN = 0x81  # FILEID_INO64_GEN: node id's high and low half, generation
_MAX_WALK_ATTEMPTS = 3  # a walk without locks also fails when something else is renamed or mounted just then
_OPEN_HOW = struct.pack("QQQ", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _RESOLVE_CACHED)

ROOT_NODE_ID = 1  # the node id of a FUSE filesystem's root


class DcacheNode(NamedTuple):
    """`node_id` 0: the kernel has it cached that there is no such name. `size`: bytes, as the kernel believes."""

    node_id: int
    is_directory: bool
    size: int | None = None


NEGATIVE_DENTRY = DcacheNode(0, False)


class DcacheProbe:
    """Looks up nodes of the mount at `mountpoint`. Raises OSError if this kernel can't do that."""

    def __init__(self, mountpoint: Path) -> None:
        # None of these calls waits, so they keep the interpreter: giving it up takes longer than they do. But for
        # closing: whoever is the last to let go of a file waits for what is being read ahead of it, from us.
        libc = ctypes.PyDLL(None, use_errno=True)
        self._syscall = libc.syscall
        self._syscall.argtypes = [c_long, c_int, c_char_p, c_char_p, c_size_t]
        self._syscall.restype = c_long
        self._name_to_handle_at = libc.name_to_handle_at
        self._name_to_handle_at.argtypes = [c_int, c_char_p, c_void_p, c_void_p, c_int]
        self._close = ctypes.CDLL(None).close
        self._statx = getattr(libc, "statx", None)
        if self._statx is not None:
            self._statx.argtypes = [c_int, c_char_p, c_int, c_uint, c_void_p]
        self._handle_flags = _AT_EMPTY_PATH
        # One thread uses this, so the buffers can be shared by all its calls.
        self._handle_buffer = ctypes.create_string_buffer(8 + 128)
        self._statx_buffer = ctypes.create_string_buffer(256)
        self._mount_id = c_int()
        self._mountpoint_name = os.fsencode(mountpoint.name)
        self._parent_fd = os.open(mountpoint.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            root = self.lookup(b"")
            if root is None or root.node_id != ROOT_NODE_ID:
                raise OSError(errno.EOPNOTSUPP, "the kernel does not tell node ids")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._parent_fd)
        self._parent_fd = -1

    def lookup(self, path: bytes) -> DcacheNode | None:
        """The node at `path` (without a leading slash); ABSENT if that is what is cached; None if nothing is."""
        path = self._mountpoint_name + b"/" + path if path else self._mountpoint_name
        for _ in range(_MAX_WALK_ATTEMPTS):
            descriptor = self._syscall(_OPENAT2, self._parent_fd, path, _OPEN_HOW, len(_OPEN_HOW))
            if descriptor >= 0:
                try:
                    return self._read_node(descriptor)
                finally:
                    self._close(descriptor)
            number = ctypes.get_errno()
            if number == errno.ENOENT:
                return NEGATIVE_DENTRY
            if number in (errno.ENOSYS, errno.EINVAL, errno.E2BIG):
                raise OSError(number, "openat2 with RESOLVE_CACHED needs Linux 5.12")
            if number != errno.EAGAIN:
                return None  # ENOTDIR, EACCES, ELOOP: no way that a program could have come there
        return None

    def _read_node(self, descriptor: int) -> DcacheNode | None:
        struct.pack_into("=Ii", self._handle_buffer, 0, 128, 0)
        if (
            self._name_to_handle_at(
                descriptor, b"", self._handle_buffer, ctypes.byref(self._mount_id), self._handle_flags
            )
            != 0
        ):
            number = ctypes.get_errno()
            if number == errno.EOPNOTSUPP and not self._handle_flags & _AT_HANDLE_FID:
                self._handle_flags |= _AT_HANDLE_FID
                return self._read_node(descriptor)
            raise OSError(number, os.strerror(number))
        _, kind, high, low = struct.unpack_from("=IiII", self._handle_buffer)
        if kind != _FILEID_INO64_GEN:
            return None  # something else is mounted there
        directory, size = True, None  # where statx is missing: the careful answer
        if self._statx is not None:
            flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
            if self._statx(descriptor, b"", flags, _STATX_MASK, self._statx_buffer) == 0:
                (mode,) = struct.unpack_from("=H", self._statx_buffer, _STX_MODE_OFFSET)
                (size,) = struct.unpack_from("=Q", self._statx_buffer, _STX_SIZE_OFFSET)
                directory = mode & 0o170000 == 0o040000
        return DcacheNode(high << 32 | low, directory, size)

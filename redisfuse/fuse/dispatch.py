"""The callbacks of libfuse, for both libraries: C's arguments in, `FuseOperations` asked, C's answers out.

Pointers arrive as plain addresses (no ctypes pointer objects), structures are written as packed bytes: a callback's
cost is most of what a program waits for. The layouts are those of the library module (fuse, mfusepy) that is driven.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import struct
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_longlong, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from operator import itemgetter
from typing import Any

from redisfuse.errors import NotFoundError
from redisfuse.fuse.interface import UTIME_NOW, UTIME_OMIT, FileAttributes, FuseOperations, OpenReply, UtimensTime
from redisfuse.fuse.page_cache import PageCacheState
from redisfuse.fuse.wire import UNSUPPORTED_XATTR_PREFIXES
from redisfuse.paths.stale_names import is_stale, strip_stale_marker

# libfuse's own names for files removed while open (hide_node in lib/fuse.c): node id and a counter, in hexadecimal.
FUSE_HIDDEN_NAME = re.compile(rb"/\.fuse_hidden[0-9a-f]{16,24}\Z")

_UNKNOWN_INODE = 0xFFFFFFFF  # FUSE_UNKNOWN_INO of lib/fuse.c
_BLOCK_BYTES = 4096
_UTIME_NOW_NSEC = (1 << 30) - 1  # utimensat(2)
_UTIME_OMIT_NSEC = (1 << 30) - 2
_UNCHANGED_ID = 0xFFFFFFFF  # (uid_t) -1

# The C functions' types, with pointers as addresses.
POINTER, STRING = c_void_p, c_char_p
COMMON_CALLBACK_TYPES: dict[str, tuple[Any, ...]] = {
    "mknod": (STRING, c_uint, c_ulonglong),
    "mkdir": (STRING, c_uint),
    "unlink": (STRING,),
    "rmdir": (STRING,),
    "symlink": (STRING, STRING),
    "link": (STRING, STRING),
    "open": (STRING, POINTER),
    "read": (STRING, POINTER, c_size_t, c_longlong, POINTER),
    "write": (STRING, POINTER, c_size_t, c_longlong, POINTER),
    "access": (STRING, c_int),
    "statfs": (STRING, POINTER),
    "flush": (STRING, POINTER),
    "release": (STRING, POINTER),
    "fsync": (STRING, c_int, POINTER),
    "setxattr": (STRING, STRING, POINTER, c_size_t, c_int),
    "getxattr": (STRING, STRING, POINTER, c_size_t),
    "listxattr": (STRING, POINTER, c_size_t),
    "removexattr": (STRING, STRING),
    "opendir": (STRING, POINTER),
    "releasedir": (STRING, POINTER),
    "create": (STRING, c_uint, POINTER),
}
# What a read-only mount never does. (flush and fsync are not there at all: the kernel then stops asking.)
WRITE_CALLBACKS = {
    "mknod",
    "mkdir",
    "unlink",
    "rmdir",
    "symlink",
    "link",
    "rename",
    "chmod",
    "chown",
    "truncate",
    "ftruncate",
}
WRITE_CALLBACKS |= {"utimens", "write", "create", "setxattr", "removexattr"}
SYNC_CALLBACKS = {"flush", "fsync"}
# What `FuseOperations` may answer from memory: it calls `Binding.prepare_to_block` itself. The others may always block.
INLINE_CALLBACKS = {"getattr", "fgetattr", "open", "read", "write", "flush", "release"}


class StatPacker:
    """Packs an Attr as the library's `struct stat`, whatever the machine's order of its fields."""

    def __init__(self, c_stat: type[ctypes.Structure]) -> None:
        names = ["st_ino", "st_nlink", "st_mode", "st_uid", "st_gid", "st_size", "st_blksize", "st_blocks"]
        places: list[tuple[int, int]] = []
        for name in names:
            field = getattr(c_stat, name)
            places.append((field.offset, field.size))
        word = ctypes.sizeof(ctypes.c_long)
        for name in ("st_atimespec", "st_mtimespec", "st_ctimespec"):
            offset = getattr(c_stat, name).offset
            places += [(offset, word), (offset + word, word)]
        order = sorted(range(len(places)), key=lambda index: places[index][0])
        layout, end = "=", 0
        for index in order:
            offset, size = places[index]
            layout += f"{offset - end}x" + {2: "H", 4: "I", 8: "Q"}[size]
            end = offset + size
        self.size = ctypes.sizeof(c_stat)
        self._struct = struct.Struct(layout + f"{self.size - end}x")
        self._reorder = None if order == list(range(len(order))) else itemgetter(*order)
        self._packed_types: dict[int, bytes] = {}

    def pack(self, attr: FileAttributes) -> bytes:
        inode, mode, nlink, size, mtime_ns, uid, gid, allocated = attr
        seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
        blocks = ((size if allocated is None else allocated) + 511) // 512
        if self._reorder is None:
            return self._struct.pack(
                inode, nlink, mode, uid, gid, size, _BLOCK_BYTES, blocks,
                seconds, nanoseconds, seconds, nanoseconds, seconds, nanoseconds,
            )  # fmt: skip
        times = (seconds, nanoseconds) * 3
        return self._struct.pack(*self._reorder((inode, nlink, mode, uid, gid, size, _BLOCK_BYTES, blocks, *times)))

    def pack_type(self, mode: int, inode: int) -> bytes:
        """Only what a plain directory entry takes: the type, and the inode number if known."""
        if inode:
            return self.pack(FileAttributes(inode, mode, 0, 0, 0, 0, 0))
        packed = self._packed_types.get(mode)
        if packed is None:
            packed = self._packed_types[mode] = self.pack(FileAttributes(_UNKNOWN_INODE, mode, 0, 0, 0, 0, 0))
        return packed


class LibfuseCallbacks:
    """The callbacks whose arguments are the same on libfuse 2 and 3; the others are in the subclasses."""

    filler_type: Any  # the type of readdir's filler function

    def __init__(self, library: Any, operations: FuseOperations) -> None:
        self.operations = operations
        self.stat_packer = StatPacker(library.c_stat)
        info = library.fuse_file_info
        self._handle_offset = info.fh.offset
        self._c_statvfs = library.c_statvfs
        self._file_info_type = info
        self._is_root = os.geteuid() == 0
        self._filler_functions: dict[int, Callable[..., int]] = {}
        self.page_cache = PageCacheState()
        self.no_open = False  # files are read without being opened

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _read_handle(self, info: int) -> int:
        return c_uint64.from_address(info + self._handle_offset).value

    def _open_with(self, info: int, path: bytes, open_file: Callable[[bytes, int], OpenReply]) -> int:
        known = self.page_cache
        version = known.begin_open(path)
        try:
            flags = c_int.from_address(info).value
            opened = open_file(path, flags)
        except BaseException:
            known.abort_open(path, version)
            raise
        direct_io, keep_cache = known.finish_open(path, version, opened)
        if flags & os.O_TRUNC:
            known.on_truncate(path, None, 0)
        c_uint64.from_address(info + self._handle_offset).value = opened.handle
        if direct_io or keep_cache or opened.nonseekable:
            fi = self._file_info_type.from_address(info)
            fi.direct_io = direct_io
            fi.keep_cache = keep_cache
            fi.nonseekable = opened.nonseekable
        return 0

    def _fill_stat(self, buffer: int, path: bytes | None, handle: int | None) -> int:
        if path is not None:
            self.page_cache.on_lookup(path)
        if self.no_open and path is not None and (handle is not None or is_stale(path)):
            attr = self.operations.getattr_node(path, for_read=handle is not None)
        else:
            attr = self.operations.getattr(path, handle)
        if path is not None:
            self.page_cache.on_getattr(path, attr.size)
        ctypes.memmove(buffer, self.stat_packer.pack(attr), self.stat_packer.size)
        return 0

    def _rename(self, old: bytes, new: bytes, flags: int) -> int:
        if (
            FUSE_HIDDEN_NAME.search(new)
            and not FUSE_HIDDEN_NAME.search(old)
            and os.path.dirname(old) == os.path.dirname(new)
        ):
            self.operations.unlink_open(old, new)
        else:
            self.operations.rename(old, new, flags)
        return 0

    def _chown(self, path: bytes | None, uid: int, gid: int, handle: int | None) -> int:
        self.operations.chown(path, -1 if uid == _UNCHANGED_ID else uid, -1 if gid == _UNCHANGED_ID else gid, handle)
        return 0

    def _truncate(self, path: bytes | None, length: int, handle: int | None) -> int:
        self.operations.truncate(path, length, handle)
        self.page_cache.on_truncate(path, handle, length)
        return 0

    def _utimens(self, path: bytes | None, times: int, handle: int | None) -> int:
        if times:
            longs = (ctypes.c_long * 4).from_address(times)
            self.operations.utimens(
                path, _parse_timespec(longs[0], longs[1]), _parse_timespec(longs[2], longs[3]), handle
            )
        else:
            self.operations.utimens(path, UTIME_NOW, UTIME_NOW, handle)
        return 0

    def _fill_dot_entries(self, offset: int, fill: Callable[[bytes, bytes, int], int]) -> bool:
        """Give `.` and `..`, which have the kernel's offsets 1 and 2; what `FuseOperations` lists follows from 3 on.

        `fill` takes name, packed attributes and offset. False if the buffer is full.
        """
        directory = self.stat_packer.pack_type(stat.S_IFDIR, 0)
        if offset < 1 and fill(b".", directory, 1):
            return False
        return offset > 1 or not fill(b"..", directory, 2)

    def _get_filler(self, filler: int) -> Callable[..., int]:
        function = self._filler_functions.get(filler)
        if function is None:
            function = self._filler_functions[filler] = self.filler_type(filler)
        return function

    # -- the callbacks -----------------------------------------------------------------------------------------------

    def mknod(self, path: bytes, mode: int, device: int) -> int:
        self.operations.mknod(path, mode, device)
        return 0

    def mkdir(self, path: bytes, mode: int) -> int:
        self.operations.mkdir(path, mode)
        return 0

    def unlink(self, path: bytes) -> int:
        self.operations.unlink(path)
        return 0

    def rmdir(self, path: bytes) -> int:
        self.operations.rmdir(path)
        return 0

    def symlink(self, target: bytes, path: bytes) -> int:
        self.operations.symlink(target, path)
        return 0

    def link(self, old: bytes, new: bytes) -> int:
        self.operations.link(old, new)
        return 0

    def rename_to_stale(self, old: bytes, new: bytes, _flags: int = 0) -> int:
        """The rename of a mount whose files are not opened, which is read-only."""
        if not is_stale(new):
            return -errno.EROFS
        if not is_stale(old):  # below a directory that is retired itself nothing changes any more
            self.operations.detach_node(old, new)
        return 0

    def open(self, path: bytes, info: int) -> int:
        if self.no_open:
            return -errno.ENOSYS  # it never asks again
        try:
            return self._open_with(info, path, self.operations.open)
        except NotFoundError:
            # The kernel believed that it is there. On ESTALE it looks again, and then says ENOENT or creates it.
            return -errno.ESTALE

    def create(self, path: bytes, mode: int, info: int) -> int:
        return self._open_with(info, path, lambda where, flags: self.operations.create(where, flags, mode))

    def read(self, path: bytes | None, buffer: int, size: int, offset: int, info: int) -> int:
        handle = self._read_handle(info)
        if handle or path is None:
            data = self.operations.read(handle, size, offset)
        else:
            data = self.operations.read_node(path, size, offset, *self.page_cache.kernel_size(path))
        if not isinstance(data, bytes):
            data = bytes(data)
        length = len(data)
        if length > size:
            raise ValueError(f"read gave {length} bytes where {size} were asked for")
        ctypes.memmove(buffer, data, length)
        return length

    def write(self, _path: bytes | None, buffer: int, size: int, offset: int, info: int) -> int:
        handle = self._read_handle(info)
        # The flags are those of this moment (fcntl can change O_APPEND). A page of a mapping goes to its place.
        append = (
            bool(c_int.from_address(info).value & os.O_APPEND) and not self._file_info_type.from_address(info).writepage
        )
        written = self.operations.write(handle, ctypes.string_at(buffer, size), offset, append=append)
        if not 0 < written <= size and size:
            raise ValueError(f"write took {written} of {size} bytes")
        self.page_cache.on_write(handle, offset + written)
        return written

    def access(self, path: bytes, mask: int) -> int:
        """access(2) and chdir(2), where the kernel doesn't check permissions: then only the owner gets here."""
        mode = self.operations.getattr(path, None).mode
        granted = mode >> 6 & 7
        if self._is_root:
            granted |= os.R_OK | os.W_OK
        return -errno.EACCES if mask & 7 & ~granted else 0

    def statfs(self, path: bytes, buffer: int) -> int:
        answer = self._c_statvfs.from_address(buffer)
        for name, value in self.operations.statfs(path).items():
            setattr(answer, name, value)
        return 0

    def flush(self, _path: bytes | None, info: int) -> int:
        self.operations.flush(self._read_handle(info))
        return 0

    def release(self, _path: bytes | None, info: int) -> int:
        handle = self._read_handle(info)
        self.page_cache.on_release(handle)
        self.operations.release(handle)
        return 0

    def fsync(self, _path: bytes | None, datasync: int, info: int) -> int:
        self.operations.fsync(self._read_handle(info), bool(datasync))
        return 0

    def setxattr(self, path: bytes, name: bytes, value: int, size: int, flags: int) -> int:
        if name.startswith(UNSUPPORTED_XATTR_PREFIXES):
            return -errno.ENOTSUP
        self.operations.setxattr(path, name, ctypes.string_at(value, size) if size else b"", flags)
        return 0

    def getxattr(self, path: bytes, name: bytes, buffer: int, size: int) -> int:
        if name.startswith(UNSUPPORTED_XATTR_PREFIXES):
            return -errno.ENOTSUP
        return _reply_xattr(self.operations.getxattr(strip_stale_marker(path), name), buffer, size)

    def listxattr(self, path: bytes, buffer: int, size: int) -> int:
        return _reply_xattr(
            b"".join(name + b"\0" for name in self.operations.listxattr(strip_stale_marker(path))), buffer, size
        )

    def removexattr(self, path: bytes, name: bytes) -> int:
        if name.startswith(UNSUPPORTED_XATTR_PREFIXES):
            return -errno.ENOTSUP
        self.operations.removexattr(path, name)
        return 0

    def opendir(self, path: bytes, info: int) -> int:
        c_uint64.from_address(info + self._handle_offset).value = self.operations.opendir(path)
        return 0

    def releasedir(self, _path: bytes | None, info: int) -> int:
        self.operations.releasedir(self._read_handle(info))
        return 0


def _parse_timespec(seconds: int, nanoseconds: int) -> UtimensTime:
    if nanoseconds == _UTIME_NOW_NSEC:
        return UTIME_NOW
    if nanoseconds == _UTIME_OMIT_NSEC:
        return UTIME_OMIT
    return seconds * 1_000_000_000 + nanoseconds


def _reply_xattr(data: bytes, buffer: int, size: int) -> int:
    """Answer as getxattr(2) wants: the length alone if `size` is 0, ERANGE if it doesn't fit."""
    if size:
        if len(data) > size:
            return -errno.ERANGE
        ctypes.memmove(buffer, data, len(data))
    return len(data)


def reply_read_only(*_: Any) -> int:
    """What a read-only mount says to any change, should one ever get past the kernel's `ro`."""
    return -errno.EROFS

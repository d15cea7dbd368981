"""The callbacks of libfuse, for both libraries: C's arguments in, `Calls` asked, C's answers out.

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
from redisfuse.fuse.interface import NOW, OMIT, Attr, Calls, Opened, Time
from redisfuse.fuse.page_cache import Known
from redisfuse.fuse.wire import NEVER
from redisfuse.paths.stale_names import is_retired, live

# libfuse's own names for files removed while open (hide_node in lib/fuse.c): node id and a counter, in hexadecimal.
HIDDEN = re.compile(rb"/\.fuse_hidden[0-9a-f]{16,24}\Z")

_UNKNOWN_INODE = 0xFFFFFFFF  # FUSE_UNKNOWN_INO of lib/fuse.c
_BLOCK = 4096
_UTIME_NOW = (1 << 30) - 1  # utimensat(2)
_UTIME_OMIT = (1 << 30) - 2
_NONE = 0xFFFFFFFF  # (uid_t) -1

# The C functions' types, with pointers as addresses.
P, S = c_void_p, c_char_p
CommonTypes: dict[str, tuple[Any, ...]] = {
    "mknod": (S, c_uint, c_ulonglong),
    "mkdir": (S, c_uint),
    "unlink": (S,),
    "rmdir": (S,),
    "symlink": (S, S),
    "link": (S, S),
    "open": (S, P),
    "read": (S, P, c_size_t, c_longlong, P),
    "write": (S, P, c_size_t, c_longlong, P),
    "access": (S, c_int),
    "statfs": (S, P),
    "flush": (S, P),
    "release": (S, P),
    "fsync": (S, c_int, P),
    "setxattr": (S, S, P, c_size_t, c_int),
    "getxattr": (S, S, P, c_size_t),
    "listxattr": (S, P, c_size_t),
    "removexattr": (S, S),
    "opendir": (S, P),
    "releasedir": (S, P),
    "create": (S, c_uint, P),
}
# What a read-only mount never does. (flush and fsync are not there at all: the kernel then stops asking.)
WRITING = {"mknod", "mkdir", "unlink", "rmdir", "symlink", "link", "rename", "chmod", "chown", "truncate", "ftruncate"}
WRITING |= {"utimens", "write", "create", "setxattr", "removexattr"}
SYNCING = {"flush", "fsync"}
# What `Calls` may answer from memory: it says itself when it has to wait (`Binding.waiting`). The others always may.
PROMPT = {"getattr", "fgetattr", "open", "read", "write", "flush", "release"}


class StatLayout:
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
        self._modes: dict[int, bytes] = {}

    def pack(self, attr: Attr) -> bytes:
        inode, mode, nlink, size, mtime_ns, uid, gid = attr
        seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
        blocks = (size + 511) // 512
        if self._reorder is None:
            return self._struct.pack(
                inode, nlink, mode, uid, gid, size, _BLOCK, blocks,
                seconds, nanoseconds, seconds, nanoseconds, seconds, nanoseconds,
            )  # fmt: skip
        times = (seconds, nanoseconds) * 3
        return self._struct.pack(*self._reorder((inode, nlink, mode, uid, gid, size, _BLOCK, blocks, *times)))

    def pack_type(self, mode: int, inode: int) -> bytes:
        """Only what a plain directory entry takes: the type, and the inode number if known."""
        if inode:
            return self.pack(Attr(inode, mode, 0, 0, 0, 0, 0))
        packed = self._modes.get(mode)
        if packed is None:
            packed = self._modes[mode] = self.pack(Attr(_UNKNOWN_INODE, mode, 0, 0, 0, 0, 0))
        return packed


class Callbacks:
    """The callbacks whose arguments are the same on libfuse 2 and 3; the others are in the subclasses."""

    filler_type: Any  # the type of readdir's filler function

    def __init__(self, library: Any, calls: Calls) -> None:
        self.calls = calls
        self.layout = StatLayout(library.c_stat)
        info = library.fuse_file_info
        self._handle_at = info.fh.offset
        self._c_statvfs = library.c_statvfs
        self._info = info
        self._root = os.geteuid() == 0
        self._fillers: dict[int, Callable[..., int]] = {}
        self.known = Known()
        self.no_open = False  # files are read without being opened

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _handle(self, info: int) -> int:
        return c_uint64.from_address(info + self._handle_at).value

    def _open(self, info: int, path: bytes, ask: Callable[[bytes, int], Opened]) -> int:
        known = self.known
        version = known.opening(path)
        try:
            flags = c_int.from_address(info).value
            opened = ask(path, flags)
        except BaseException:
            known.failed(path, version)
            raise
        direct_io, keep_cache = known.opened(path, version, opened)
        if flags & os.O_TRUNC:
            known.cut(path, None, 0)
        c_uint64.from_address(info + self._handle_at).value = opened.handle
        if direct_io or keep_cache or opened.nonseekable:
            fi = self._info.from_address(info)
            fi.direct_io = direct_io
            fi.keep_cache = keep_cache
            fi.nonseekable = opened.nonseekable
        return 0

    def _stat(self, buffer: int, path: bytes | None, handle: int | None) -> int:
        if path is not None:
            self.known.asked(path)
        if self.no_open and path is not None and (handle is not None or is_retired(path)):
            attr = self.calls.getattr_node(path, reading=handle is not None)
        else:
            attr = self.calls.getattr(path, handle)
        if path is not None:
            self.known.told(path, attr.size)
        ctypes.memmove(buffer, self.layout.pack(attr), self.layout.size)
        return 0

    def _rename(self, old: bytes, new: bytes, flags: int) -> int:
        if HIDDEN.search(new) and not HIDDEN.search(old) and os.path.dirname(old) == os.path.dirname(new):
            self.calls.unlink_open(old, new)
        else:
            self.calls.rename(old, new, flags)
        return 0

    def _chown(self, path: bytes | None, uid: int, gid: int, handle: int | None) -> int:
        self.calls.chown(path, -1 if uid == _NONE else uid, -1 if gid == _NONE else gid, handle)
        return 0

    def _truncate(self, path: bytes | None, length: int, handle: int | None) -> int:
        self.calls.truncate(path, length, handle)
        self.known.cut(path, handle, length)
        return 0

    def _utimens(self, path: bytes | None, times: int, handle: int | None) -> int:
        if times:
            longs = (ctypes.c_long * 4).from_address(times)
            self.calls.utimens(path, _time(longs[0], longs[1]), _time(longs[2], longs[3]), handle)
        else:
            self.calls.utimens(path, NOW, NOW, handle)
        return 0

    def _dots(self, offset: int, fill: Callable[[bytes, bytes, int], int]) -> bool:
        """Give `.` and `..`, which have the kernel's offsets 1 and 2; what `Calls` lists follows from 3 on.

        `fill` takes name, packed attributes and offset. False if the buffer is full.
        """
        directory = self.layout.pack_type(stat.S_IFDIR, 0)
        if offset < 1 and fill(b".", directory, 1):
            return False
        return offset > 1 or not fill(b"..", directory, 2)

    def _fill(self, filler: int) -> Callable[..., int]:
        function = self._fillers.get(filler)
        if function is None:
            function = self._fillers[filler] = self.filler_type(filler)
        return function

    # -- the callbacks -----------------------------------------------------------------------------------------------

    def mknod(self, path: bytes, mode: int, device: int) -> int:
        self.calls.mknod(path, mode, device)
        return 0

    def mkdir(self, path: bytes, mode: int) -> int:
        self.calls.mkdir(path, mode)
        return 0

    def unlink(self, path: bytes) -> int:
        self.calls.unlink(path)
        return 0

    def rmdir(self, path: bytes) -> int:
        self.calls.rmdir(path)
        return 0

    def symlink(self, target: bytes, path: bytes) -> int:
        self.calls.symlink(target, path)
        return 0

    def link(self, old: bytes, new: bytes) -> int:
        self.calls.link(old, new)
        return 0

    def retire(self, old: bytes, new: bytes, _flags: int = 0) -> int:
        """The rename of a mount whose files are not opened, which is read-only."""
        if not is_retired(new):
            return -errno.EROFS
        if not is_retired(old):  # below a directory that is retired itself nothing changes any more
            self.calls.retire(old, new)
        return 0

    def open(self, path: bytes, info: int) -> int:
        if self.no_open:
            return -errno.ENOSYS  # it never asks again
        try:
            return self._open(info, path, self.calls.open)
        except NotFoundError:
            # The kernel believed that it is there. On ESTALE it looks again, and then says ENOENT or creates it.
            return -errno.ESTALE

    def create(self, path: bytes, mode: int, info: int) -> int:
        return self._open(info, path, lambda where, flags: self.calls.create(where, flags, mode))

    def read(self, path: bytes | None, buffer: int, size: int, offset: int, info: int) -> int:
        handle = self._handle(info)
        if handle or path is None:
            data = self.calls.read(handle, size, offset)
        else:
            data = self.calls.read_node(path, size, offset, *self.known.size(path))
        if not isinstance(data, bytes):
            data = bytes(data)
        length = len(data)
        if length > size:
            raise ValueError(f"read gave {length} bytes where {size} were asked for")
        ctypes.memmove(buffer, data, length)
        return length

    def write(self, _path: bytes | None, buffer: int, size: int, offset: int, info: int) -> int:
        handle = self._handle(info)
        # The flags are those of this moment (fcntl can change O_APPEND). A page of a mapping goes to its place.
        append = bool(c_int.from_address(info).value & os.O_APPEND) and not self._info.from_address(info).writepage
        written = self.calls.write(handle, ctypes.string_at(buffer, size), offset, append=append)
        if not 0 < written <= size and size:
            raise ValueError(f"write took {written} of {size} bytes")
        self.known.wrote(handle, offset + written)
        return written

    def access(self, path: bytes, wanted: int) -> int:
        """access(2) and chdir(2), where the kernel doesn't check permissions: then only the owner gets here."""
        mode = self.calls.getattr(path, None).mode
        granted = mode >> 6 & 7
        if self._root:
            granted |= os.R_OK | os.W_OK
        return -errno.EACCES if wanted & 7 & ~granted else 0

    def statfs(self, path: bytes, buffer: int) -> int:
        answer = self._c_statvfs.from_address(buffer)
        for name, value in self.calls.statfs(path).items():
            setattr(answer, name, value)
        return 0

    def flush(self, _path: bytes | None, info: int) -> int:
        self.calls.flush(self._handle(info))
        return 0

    def release(self, _path: bytes | None, info: int) -> int:
        handle = self._handle(info)
        self.known.released(handle)
        self.calls.release(handle)
        return 0

    def fsync(self, _path: bytes | None, datasync: int, info: int) -> int:
        self.calls.fsync(self._handle(info), bool(datasync))
        return 0

    def setxattr(self, path: bytes, name: bytes, value: int, size: int, flags: int) -> int:
        if name.startswith(NEVER):
            return -errno.ENOTSUP
        self.calls.setxattr(path, name, ctypes.string_at(value, size) if size else b"", flags)
        return 0

    def getxattr(self, path: bytes, name: bytes, buffer: int, size: int) -> int:
        if name.startswith(NEVER):
            return -errno.ENOTSUP
        return _sized(self.calls.getxattr(live(path), name), buffer, size)

    def listxattr(self, path: bytes, buffer: int, size: int) -> int:
        return _sized(b"".join(name + b"\0" for name in self.calls.listxattr(live(path))), buffer, size)

    def removexattr(self, path: bytes, name: bytes) -> int:
        if name.startswith(NEVER):
            return -errno.ENOTSUP
        self.calls.removexattr(path, name)
        return 0

    def opendir(self, path: bytes, info: int) -> int:
        c_uint64.from_address(info + self._handle_at).value = self.calls.opendir(path)
        return 0

    def releasedir(self, _path: bytes | None, info: int) -> int:
        self.calls.releasedir(self._handle(info))
        return 0


def _time(seconds: int, nanoseconds: int) -> Time:
    if nanoseconds == _UTIME_NOW:
        return NOW
    if nanoseconds == _UTIME_OMIT:
        return OMIT
    return seconds * 1_000_000_000 + nanoseconds


def _sized(data: bytes, buffer: int, size: int) -> int:
    """Answer as getxattr(2) wants: the length alone if `size` is 0, ERANGE if it doesn't fit."""
    if size:
        if len(data) > size:
            return -errno.ERANGE
        ctypes.memmove(buffer, data, len(data))
    return len(data)


def read_only_answer(*_: Any) -> int:
    """What a read-only mount says to any change, should one ever get past the kernel's `ro`."""
    return -errno.EROFS

"""libfuse 2 by way of fusepy: its library handle and its structures, driven directly.

fusepy's own `FUSE` class decodes names, loses errors and handles, and ignores offsets (MEASURED, "Traps in fusepy");
none of its methods run here.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from ctypes import CFUNCTYPE, PYFUNCTYPE, c_char_p, c_int, c_longlong, c_size_t, c_uint, c_void_p
from typing import Any

import fuse

from redisfuse.fuse.dispatch import COMMON_CALLBACK_TYPES, POINTER, STRING, LibfuseCallbacks
from redisfuse.fuse.interface import FuseOperations, FuseSessionOptions
from redisfuse.fuse.session import FuseArgs, FuseSession, find_versioned_symbol

_ATOMIC_O_TRUNC = 1 << 3  # FUSE_CAP_ATOMIC_O_TRUNC


class _ConnectionInfo(ctypes.Structure):
    """struct fuse_conn_info of libfuse 2.9, which fusepy lacks."""

    _fields_ = (
        ("proto_major", c_uint),
        ("proto_minor", c_uint),
        ("async_read", c_uint),
        ("max_write", c_uint),
        ("max_readahead", c_uint),
        ("capable", c_uint),
        ("want", c_uint),
    )


class Libfuse2Callbacks(LibfuseCallbacks):
    """The callbacks that differ on libfuse 3. fgetattr and ftruncate are calls of their own, with a handle."""

    filler_type = PYFUNCTYPE(c_int, c_void_p, c_char_p, c_char_p, c_longlong)

    def getattr(self, path: bytes, buffer: int) -> int:
        return self._fill_stat(buffer, path, None)

    def fgetattr(self, path: bytes | None, buffer: int, info: int) -> int:
        return self._fill_stat(buffer, path, self._read_handle(info))

    def rename(self, old: bytes, new: bytes) -> int:
        return self._rename(old, new, 0)

    def chmod(self, path: bytes, mode: int) -> int:
        self.operations.chmod(path, mode, None)
        return 0

    def chown(self, path: bytes, uid: int, gid: int) -> int:
        return self._chown(path, uid, gid, None)

    def truncate(self, path: bytes, length: int) -> int:
        return self._truncate(path, length, None)

    def ftruncate(self, path: bytes | None, length: int, info: int) -> int:
        return self._truncate(path, length, self._read_handle(info))

    def utimens(self, path: bytes, times: int) -> int:
        return self._utimens(path, times, None)

    def readdir(self, _path: bytes | None, buffer: int, filler: int, offset: int, info: int) -> int:
        fill = self._get_filler(filler)
        if not self._fill_dot_entries(offset, lambda name, packed, position: fill(buffer, name, packed, position)):
            return 0
        pack, pack_type = self.stat_packer.pack, self.stat_packer.pack_type
        position = max(offset, 2)
        for name, mode, attr, inode in self.operations.readdir(self._read_handle(info), position - 2):
            position += 1
            if fill(buffer, name, pack_type(mode, inode) if attr is None else pack(attr), position):
                break
        return 0


class Libfuse2Session(FuseSession):
    """A `Binding` on libfuse 2."""

    name = "fusepy"
    has_readdirplus = False

    def __init__(self) -> None:
        super().__init__(fuse)
        lib = self._libfuse
        lib.fuse_mount.restype = c_void_p
        lib.fuse_mount.argtypes = [c_char_p, c_void_p]
        # Plain dlsym finds the fuse_new of libfuse 1.
        self._fuse_new = CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p)(
            find_versioned_symbol(lib, b"fuse_new", b"FUSE_2.6")
        )
        lib.fuse_chan_fd.argtypes = [c_void_p]
        lib.fuse_get_session.restype = c_void_p
        lib.fuse_get_session.argtypes = lib.fuse_destroy.argtypes = [c_void_p]
        lib.fuse_unmount.argtypes = [c_char_p, c_void_p]
        self._channel: int | None = None
        self._fuse: int | None = None
        self._session: int | None = None
        self._timeout_array: Any = None
        self._nullpath_ok = 1  # whether calls with a handle get no path

    def _callback_types(self) -> dict[str, tuple[Any, ...]]:
        return {
            **COMMON_CALLBACK_TYPES,
            "getattr": (STRING, POINTER),
            "fgetattr": (STRING, POINTER, POINTER),
            "rename": (STRING, STRING),
            "chmod": (STRING, c_uint),
            "chown": (STRING, c_uint, c_uint),
            "truncate": (STRING, c_longlong),
            "ftruncate": (STRING, c_longlong, POINTER),
            "utimens": (STRING, POINTER),
            "readdir": (STRING, POINTER, POINTER, c_longlong, POINTER),
            "init": (POINTER,),
        }

    def _create_callbacks(self, operations: FuseOperations) -> LibfuseCallbacks:
        return Libfuse2Callbacks(self._module, operations)

    def _build_options(self, options: FuseSessionOptions) -> list[str]:
        entry, negative, attr = self._marked_timeouts = _mark_timeouts(options)
        self._nullpath_ok = int(not options.can_skip_open)
        listed = ["ro"] if options.read_only else ["rw", "big_writes"]
        listed += [f"fsname={options.fsname}", "subtype=redisfuse", "use_ino"]
        listed += [f"entry_timeout={entry!r}", f"negative_timeout={negative!r}", f"attr_timeout={attr!r}"]
        listed += ["allow_other", "default_permissions"] if options.allow_other else []
        listed += ["nonempty"] if options.nonempty else []
        return [*listed, *options.extra]

    def _mount(self, path: bytes, arguments: FuseArgs, c_operations: ctypes.Structure) -> bool:
        c_operations.flag_nullpath_ok = c_operations.flag_nopath = self._nullpath_ok
        c_operations.flag_utime_omit_ok = 1
        lib = self._libfuse
        self._channel = lib.fuse_mount(path, ctypes.byref(arguments))
        if not self._channel:
            return False
        size = ctypes.sizeof(c_operations)
        self._fuse = self._fuse_new(self._channel, ctypes.byref(arguments), ctypes.byref(c_operations), size, None)
        if not self._fuse:
            lib.fuse_unmount(path, self._channel)
            return False
        self._session = lib.fuse_get_session(self._fuse)
        self._timeout_array = _locate_timeouts(self._fuse, self._marked_timeouts)
        self.can_set_timeouts = self._timeout_array is not None
        return True

    def _device_fd(self) -> int:
        return int(self._libfuse.fuse_chan_fd(self._channel))

    def _configure(self, connection: int, _configuration: int, options: FuseSessionOptions) -> None:
        info = _ConnectionInfo.from_address(connection)
        info.want |= info.capable & _ATOMIC_O_TRUNC
        if self.can_set_timeouts:
            self.set_timeouts(options.entry_timeout, options.attr_timeout, options.negative_timeout)

    def _create_processor(self, buffer_address: int, library: ctypes.CDLL) -> Callable[[int], object]:
        process, session, channel = library.fuse_session_process, self._session, self._channel
        process.argtypes = [c_void_p, c_void_p, c_size_t, c_void_p]
        return lambda size: process(session, buffer_address, size, channel)

    def _tear_down(self, path: bytes) -> None:
        self._libfuse.fuse_unmount(path, self._channel)
        self._libfuse.fuse_destroy(self._fuse)
        self._fuse = self._session = self._channel = self._timeout_array = None

    def _set_entry_timeouts(self, entry: float, negative: float, *, listings: bool) -> None:  # noqa: ARG002
        if self._timeout_array is not None:
            self._timeout_array[:2] = [entry, negative]

    def _set_attr_timeout(self, seconds: float) -> None:
        if self._timeout_array is not None:
            self._timeout_array[2] = seconds


def _mark_timeouts(options: FuseSessionOptions) -> tuple[float, float, float]:
    """The time-outs in the order in which libfuse 2 keeps them, changed by less than a millisecond to be recognised."""
    return options.entry_timeout + 0.000137, options.negative_timeout + 0.000291, options.attr_timeout + 0.000413


def _locate_timeouts(fuse_address: int, marked_timeouts: tuple[float, float, float]) -> Any:
    """Where libfuse 2 keeps its three time-outs, as an array of doubles that can be written; None if not found.

    libfuse 2 has no call for it. They stand side by side in `struct fuse` (lib/fuse.c, struct fuse_config), which is
    one piece from malloc, so it can be searched up to its end; they are found only if exactly these three stand there.
    """
    usable = ctypes.CDLL(None).malloc_usable_size
    usable.restype = c_size_t
    usable.argtypes = [c_void_p]
    memory = ctypes.string_at(fuse_address, usable(fuse_address))
    wanted = struct.pack("ddd", *marked_timeouts)

    found = [at for at in range(0, len(memory) - 23, 8) if memory[at : at + 24] == wanted]
    return (ctypes.c_double * 3).from_address(fuse_address + found[0]) if len(found) == 1 else None


__all__ = ["Libfuse2Session"]

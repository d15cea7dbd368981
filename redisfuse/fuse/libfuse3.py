"""libfuse 3 by way of mfusepy: its library handle and its structures, driven directly.

mfusepy's own `FUSE` class drops rename's flags and ftruncate's handle, and never gives attributes with names (MEASURED,
"Traps in mfusepy"); none of its methods run here. It must be imported with libfuse 3 chosen: `choice` does that.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import PYFUNCTYPE, c_char_p, c_int, c_longlong, c_size_t, c_uint, c_void_p
from typing import Any

import mfusepy

from redisfuse.fuse.dispatch import COMMON_CALLBACK_TYPES, POINTER, STRING, LibfuseCallbacks
from redisfuse.fuse.interface import FuseOperations, FuseSessionOptions
from redisfuse.fuse.session import FuseArgs, FuseSession, find_versioned_symbol
from redisfuse.fuse.wire import MAX_WRITE_BYTES

_CAP_READDIRPLUS_AUTO = 1 << 14
_CAP_PARALLEL_DIROPS = 1 << 18
_FILL_DIR_PLUS = 2  # FUSE_FILL_DIR_PLUS
_READDIR_PLUS = 1  # FUSE_READDIR_PLUS
_ALWAYS_PLUS_ENTRIES = 25_000  # the first names of a listing, which have their attributes with them whoever lists


class _OpenListing:
    """A directory that is being listed: its path with a slash at the end, and whether attributes are wanted.

    Attributes that come with a name spare the program a look-up, but make the kernel and the library remember the name:
    too much in a directory of millions that is only being counted. So past the first names they are given only if the
    name that was left without them last was looked up since: then the program wants those of all. (The kernel's own
    guess, READDIRPLUS_AUTO, gives up on programs that read a whole directory before they open its files: grep, find.)
    """

    __slots__ = ("base", "probe_path", "wants_attributes")

    def __init__(self, base: bytes) -> None:
        self.base = base
        self.probe_path = b""  # path of the name without attributes
        self.wants_attributes = True


class Libfuse3Callbacks(LibfuseCallbacks):
    """The callbacks that differ on libfuse 2. Several take a handle, if the program gave a descriptor."""

    filler_type = PYFUNCTYPE(c_int, c_void_p, c_char_p, c_char_p, c_longlong, c_int)

    def __init__(self, library: Any, operations: FuseOperations) -> None:
        super().__init__(library, operations)
        self.cache_listings = False
        self._open_listings: dict[int, _OpenListing] = {}  # open directories by handle
        self._probe_paths: set[bytes] = set()
        self._has_cache_readdir = hasattr(library.fuse_file_info, "cache_readdir")  # libfuse 3.5

    def _optional_handle(self, info: int | None) -> int | None:
        return self._read_handle(info) if info else None

    def getattr(self, path: bytes | None, buffer: int, info: int | None) -> int:
        if self._probe_paths and path is not None:
            self._probe_paths.discard(path)
        return self._fill_stat(buffer, path, self._optional_handle(info))

    def rename(self, old: bytes, new: bytes, flags: int) -> int:
        return self._rename(old, new, flags)

    def chmod(self, path: bytes | None, mode: int, info: int | None) -> int:
        self.operations.chmod(path, mode, self._optional_handle(info))
        return 0

    def chown(self, path: bytes | None, uid: int, gid: int, info: int | None) -> int:
        return self._chown(path, uid, gid, self._optional_handle(info))

    def truncate(self, path: bytes | None, length: int, info: int | None) -> int:
        return self._truncate(path, length, self._optional_handle(info))

    def utimens(self, path: bytes | None, times: int, info: int | None) -> int:
        return self._utimens(path, times, self._optional_handle(info))

    def opendir(self, path: bytes, info: int) -> int:
        kept = self.cache_listings and self._has_cache_readdir and self.page_cache.is_listing_cached(path)
        super().opendir(path, info)
        self._open_listings[self._read_handle(info)] = _OpenListing(path.rstrip(b"/") + b"/")
        if self.cache_listings and self._has_cache_readdir:
            fi = self._file_info_type.from_address(info)
            fi.cache_readdir = 1
            fi.keep_cache = kept
        return 0

    def releasedir(self, path: bytes | None, info: int) -> int:
        listing = self._open_listings.pop(self._read_handle(info), None)
        if listing is not None:
            self._probe_paths.discard(listing.probe_path)
        return super().releasedir(path, info)

    def readdir(self, _path: bytes | None, buffer: int, filler: int, offset: int, info: int, flags: int) -> int:
        fill = self._get_filler(filler)
        if not self._fill_dot_entries(offset, lambda name, packed, position: fill(buffer, name, packed, position, 0)):
            return 0
        pack, pack_type = self.stat_packer.pack, self.stat_packer.pack_type
        handle = self._read_handle(info)
        listing = self._open_listings[handle]
        base = listing.base
        position = max(offset, 2)
        with_attributes = _FILL_DIR_PLUS if flags & _READDIR_PLUS and self._wants_attributes(listing, position) else 0
        probing = position >= _ALWAYS_PLUS_ENTRIES
        sizes: dict[int, int] = {}
        for name, mode, attr, inode in self.operations.readdir(handle, position - 2):
            position += 1
            if attr is None:
                full = fill(buffer, name, pack_type(mode, inode), position, 0)
            elif probing:
                probing = False
                listing.probe_path = base + name
                self._probe_paths.add(listing.probe_path)
                full = fill(buffer, name, pack_type(mode, inode), position, 0)
            else:
                if with_attributes:
                    if base == b"/":
                        self.page_cache.on_lookup(base + name)
                    sizes[hash(base + name)] = attr.size
                full = fill(buffer, name, pack(attr), position, with_attributes)
            if full:
                break
        if sizes:
            self.page_cache.on_readdirplus(sizes)
        return 0

    def _wants_attributes(self, listing: _OpenListing, position: int) -> bool:
        if position < _ALWAYS_PLUS_ENTRIES:
            return True
        if listing.probe_path:
            listing.wants_attributes = listing.probe_path not in self._probe_paths
            self._probe_paths.discard(listing.probe_path)
            listing.probe_path = b""
        return listing.wants_attributes


class Libfuse3Session(FuseSession):
    """A `Binding` on libfuse 3."""

    name = "mfusepy"
    has_readdirplus = True
    can_set_timeouts = True

    def __init__(self) -> None:
        if mfusepy.fuse_version_major != 3:
            raise OSError(f"mfusepy was imported with libfuse {mfusepy.fuse_version_major}, not 3")
        super().__init__(mfusepy)
        lib = self._libfuse
        # libfuse 3 has two more kinds of fuse_new; since 3.1 this is the one without a help text.
        self._fuse_new = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_size_t, c_void_p)(
            find_versioned_symbol(lib, b"fuse_new", b"FUSE_3.1")
        )
        lib.fuse_mount.argtypes = [c_void_p, c_char_p]
        lib.fuse_get_session.restype = c_void_p
        lib.fuse_get_session.argtypes = lib.fuse_session_fd.argtypes = [c_void_p]
        lib.fuse_unmount.argtypes = lib.fuse_destroy.argtypes = [c_void_p]
        self._fuse: int | None = None
        self._session: int | None = None
        self._fuse_config: Any = None
        self._callback_table: Libfuse3Callbacks | None = None

    def _callback_types(self) -> dict[str, tuple[Any, ...]]:
        return {
            **COMMON_CALLBACK_TYPES,
            "getattr": (STRING, POINTER, POINTER),
            "rename": (STRING, STRING, c_uint),
            "chmod": (STRING, c_uint, POINTER),
            "chown": (STRING, c_uint, c_uint, POINTER),
            "truncate": (STRING, c_longlong, POINTER),
            "utimens": (STRING, POINTER, POINTER),
            "readdir": (STRING, POINTER, POINTER, c_longlong, POINTER, c_int),
            "init": (POINTER, POINTER),
        }

    def _create_callbacks(self, operations: FuseOperations) -> LibfuseCallbacks:
        self._callback_table = Libfuse3Callbacks(self._module, operations)
        return self._callback_table

    def _build_options(self, options: FuseSessionOptions) -> list[str]:
        listed = ["ro" if options.read_only else "rw", f"fsname={options.fsname}", "subtype=redisfuse"]
        listed += ["allow_other", "default_permissions"] if options.allow_other else []
        return [*listed, *options.extra]

    def _mount(self, path: bytes, arguments: FuseArgs, c_operations: ctypes.Structure) -> bool:
        lib = self._libfuse
        self._fuse = self._fuse_new(
            ctypes.byref(arguments), ctypes.byref(c_operations), ctypes.sizeof(c_operations), None
        )
        if not self._fuse:
            return False
        self._session = lib.fuse_get_session(self._fuse)
        if lib.fuse_mount(self._fuse, path) != 0:
            lib.fuse_destroy(self._fuse)
            return False
        return True

    def _device_fd(self) -> int:
        return int(self._libfuse.fuse_session_fd(self._session))

    def _configure(self, connection: int, configuration: int, options: FuseSessionOptions) -> None:
        info = self._module.fuse_conn_info.from_address(connection)
        info.want |= info.capable & _CAP_PARALLEL_DIROPS
        info.want &= ~_CAP_READDIRPLUS_AUTO
        info.max_write = min(info.max_write, MAX_WRITE_BYTES)
        self._fuse_config = self._module.fuse_config.from_address(configuration)  # stays where it is (lib/fuse.c)
        self._fuse_config.use_ino = 1
        self._fuse_config.nullpath_ok = not options.can_skip_open
        self.set_timeouts(
            options.entry_timeout, options.attr_timeout, options.negative_timeout, listings=options.cache_listings
        )

    def _create_processor(self, buffer_address: int, library: ctypes.CDLL) -> Callable[[int], object]:
        process, session = library.fuse_session_process_buf, self._session
        process.argtypes = [c_void_p, c_void_p]
        buffer = self._module.fuse_buf(mem=buffer_address)
        pointer = ctypes.byref(buffer)

        def process_request(size: int) -> None:
            buffer.size = size
            process(session, pointer)

        return process_request

    def _tear_down(self, _path: bytes) -> None:
        self._fuse_config = None
        self._libfuse.fuse_unmount(self._fuse)
        self._libfuse.fuse_destroy(self._fuse)
        self._fuse = self._session = None

    def _set_entry_timeouts(self, entry: float, negative: float, *, listings: bool) -> None:
        configuration = self._fuse_config
        if configuration is not None and self._callback_table is not None:
            configuration.entry_timeout = entry
            configuration.negative_timeout = negative
            self._callback_table.cache_listings = listings

    def _set_attr_timeout(self, seconds: float) -> None:
        if self._fuse_config is not None:
            self._fuse_config.attr_timeout = seconds

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

from redisfuse.fuse.dispatch import Callbacks, CommonTypes, P, S
from redisfuse.fuse.interface import Calls, MountOptions
from redisfuse.fuse.session import Arguments, Session, versioned
from redisfuse.fuse.wire import LONGEST_WRITE

_CAP_READDIRPLUS_AUTO = 1 << 14
_CAP_PARALLEL_DIROPS = 1 << 18
_FILL_PLUS = 2  # FUSE_FILL_DIR_PLUS
_ASKED_PLUS = 1  # FUSE_READDIR_PLUS
_WITH_ATTRIBUTES = 25_000  # the first names of a listing, which have their attributes with them whoever lists


class _Listing:
    """A directory that is being listed: its path with a slash at the end, and whether attributes are wanted.

    Attributes that come with a name spare the program a look-up, but make the kernel and the library remember the name:
    too much in a directory of millions that is only being counted. So past the first names they are given only if the
    name that was left without them last was looked up since: then the program wants those of all. (The kernel's own
    guess, READDIRPLUS_AUTO, gives up on programs that read a whole directory before they open its files: grep, find.)
    """

    __slots__ = ("base", "probe", "wanted")

    def __init__(self, base: bytes) -> None:
        self.base = base
        self.probe = b""  # path of the name without attributes
        self.wanted = True


class Fuse3Callbacks(Callbacks):
    """The callbacks that differ on libfuse 2. Several take a handle, if the program gave a descriptor."""

    filler_type = PYFUNCTYPE(c_int, c_void_p, c_char_p, c_char_p, c_longlong, c_int)

    def __init__(self, library: Any, calls: Calls) -> None:
        super().__init__(library, calls)
        self.cache_listings = False
        self._listed: dict[int, _Listing] = {}  # open directories by handle
        self._probes: set[bytes] = set()
        self._caches = hasattr(library.fuse_file_info, "cache_readdir")  # libfuse 3.5

    def _maybe(self, info: int | None) -> int | None:
        return self._handle(info) if info else None

    def getattr(self, path: bytes | None, buffer: int, info: int | None) -> int:
        if self._probes and path is not None:
            self._probes.discard(path)
        return self._stat(buffer, path, self._maybe(info))

    def rename(self, old: bytes, new: bytes, flags: int) -> int:
        return self._rename(old, new, flags)

    def chmod(self, path: bytes | None, mode: int, info: int | None) -> int:
        self.calls.chmod(path, mode, self._maybe(info))
        return 0

    def chown(self, path: bytes | None, uid: int, gid: int, info: int | None) -> int:
        return self._chown(path, uid, gid, self._maybe(info))

    def truncate(self, path: bytes | None, length: int, info: int | None) -> int:
        return self._truncate(path, length, self._maybe(info))

    def utimens(self, path: bytes | None, times: int, info: int | None) -> int:
        return self._utimens(path, times, self._maybe(info))

    def opendir(self, path: bytes, info: int) -> int:
        kept = self.cache_listings and self._caches and self.known.listing_kept(path)
        super().opendir(path, info)
        self._listed[self._handle(info)] = _Listing(path.rstrip(b"/") + b"/")
        if self.cache_listings and self._caches:
            fi = self._info.from_address(info)
            fi.cache_readdir = 1
            fi.keep_cache = kept
        return 0

    def releasedir(self, path: bytes | None, info: int) -> int:
        listing = self._listed.pop(self._handle(info), None)
        if listing is not None:
            self._probes.discard(listing.probe)
        return super().releasedir(path, info)

    def readdir(self, _path: bytes | None, buffer: int, filler: int, offset: int, info: int, flags: int) -> int:
        fill = self._fill(filler)
        if not self._dots(offset, lambda name, packed, position: fill(buffer, name, packed, position, 0)):
            return 0
        pack, pack_type = self.layout.pack, self.layout.pack_type
        handle = self._handle(info)
        listing = self._listed[handle]
        base = listing.base
        position = max(offset, 2)
        with_attributes = _FILL_PLUS if flags & _ASKED_PLUS and self._attributes_wanted(listing, position) else 0
        probing = position >= _WITH_ATTRIBUTES
        sizes: dict[int, int] = {}
        for name, mode, attr, inode in self.calls.readdir(handle, position - 2):
            position += 1
            if attr is None:
                full = fill(buffer, name, pack_type(mode, inode), position, 0)
            elif probing:
                probing = False
                listing.probe = base + name
                self._probes.add(listing.probe)
                full = fill(buffer, name, pack_type(mode, inode), position, 0)
            else:
                if with_attributes:
                    if base == b"/":
                        self.known.asked(base + name)
                    sizes[hash(base + name)] = attr.size
                full = fill(buffer, name, pack(attr), position, with_attributes)
            if full:
                break
        if sizes:
            self.known.told_many(sizes)
        return 0

    def _attributes_wanted(self, listing: _Listing, position: int) -> bool:
        if position < _WITH_ATTRIBUTES:
            return True
        if listing.probe:
            listing.wanted = listing.probe not in self._probes
            self._probes.discard(listing.probe)
            listing.probe = b""
        return listing.wanted


class Mfusepy(Session):
    """A `Binding` on libfuse 3."""

    name = "mfusepy"
    has_readdirplus = True
    timeouts_can_change = True

    def __init__(self) -> None:
        if mfusepy.fuse_version_major != 3:
            raise OSError(f"mfusepy was imported with libfuse {mfusepy.fuse_version_major}, not 3")
        super().__init__(mfusepy)
        lib = self._libfuse
        # libfuse 3 has two more kinds of fuse_new; since 3.1 this is the one without a help text.
        self._new = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_size_t, c_void_p)(
            versioned(lib, b"fuse_new", b"FUSE_3.1")
        )
        lib.fuse_mount.argtypes = [c_void_p, c_char_p]
        lib.fuse_get_session.restype = c_void_p
        lib.fuse_get_session.argtypes = lib.fuse_session_fd.argtypes = [c_void_p]
        lib.fuse_unmount.argtypes = lib.fuse_destroy.argtypes = [c_void_p]
        self._fuse: int | None = None
        self._session: int | None = None
        self._configuration: Any = None
        self._table: Fuse3Callbacks | None = None

    def _callback_types(self) -> dict[str, tuple[Any, ...]]:
        return {
            **CommonTypes,
            "getattr": (S, P, P),
            "rename": (S, S, c_uint),
            "chmod": (S, c_uint, P),
            "chown": (S, c_uint, c_uint, P),
            "truncate": (S, c_longlong, P),
            "utimens": (S, P, P),
            "readdir": (S, P, P, c_longlong, P, c_int),
            "init": (P, P),
        }

    def _callbacks(self, calls: Calls) -> Callbacks:
        self._table = Fuse3Callbacks(self._module, calls)
        return self._table

    def _option_list(self, options: MountOptions) -> list[str]:
        listed = ["ro" if options.read_only else "rw", f"fsname={options.fsname}", "subtype=redisfuse"]
        listed += ["allow_other", "default_permissions"] if options.allow_other else []
        return [*listed, *options.extra]

    def _mount(self, path: bytes, arguments: Arguments, operations: ctypes.Structure) -> bool:
        lib = self._libfuse
        self._fuse = self._new(ctypes.byref(arguments), ctypes.byref(operations), ctypes.sizeof(operations), None)
        if not self._fuse:
            return False
        self._session = lib.fuse_get_session(self._fuse)
        if lib.fuse_mount(self._fuse, path) != 0:
            lib.fuse_destroy(self._fuse)
            return False
        return True

    def _descriptor(self) -> int:
        return int(self._libfuse.fuse_session_fd(self._session))

    def _configure(self, connection: int, configuration: int, options: MountOptions) -> None:
        info = self._module.fuse_conn_info.from_address(connection)
        info.want |= info.capable & _CAP_PARALLEL_DIROPS
        info.want &= ~_CAP_READDIRPLUS_AUTO
        info.max_write = min(info.max_write, LONGEST_WRITE)
        self._configuration = self._module.fuse_config.from_address(configuration)  # stays where it is (lib/fuse.c)
        self._configuration.use_ino = 1
        self._configuration.nullpath_ok = not options.may_do_without_open
        self.set_timeouts(
            options.entry_timeout, options.attr_timeout, options.negative_timeout, listings=options.cache_listings
        )

    def _processor(self, address: int, library: ctypes.CDLL) -> Callable[[int], object]:
        process, session = library.fuse_session_process_buf, self._session
        process.argtypes = [c_void_p, c_void_p]
        buffer = self._module.fuse_buf(mem=address)
        pointer = ctypes.byref(buffer)

        def answer(size: int) -> None:
            buffer.size = size
            process(session, pointer)

        return answer

    def _tear_down(self, _path: bytes) -> None:
        self._configuration = None
        self._libfuse.fuse_unmount(self._fuse)
        self._libfuse.fuse_destroy(self._fuse)
        self._fuse = self._session = None

    def _set_timeouts(self, entry: float, negative: float, *, listings: bool) -> None:
        configuration = self._configuration
        if configuration is not None and self._table is not None:
            configuration.entry_timeout = entry
            configuration.negative_timeout = negative
            self._table.cache_listings = listings

    def _set_attr_timeout(self, seconds: float) -> None:
        if self._configuration is not None:
            self._configuration.attr_timeout = seconds

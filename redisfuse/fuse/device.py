"""Mounting with libfuse 2 or 3, found by fusepy or mfusepy.

The bindings find the library; it parses -o and calls fusermount. Only the descriptor of the kernel's connection is used
after that: the library reads no request.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from abc import ABC, abstractmethod
from ctypes import c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

from redisfuse.errors import MountError, UsageError
from redisfuse.fuse.capture_stderr import capture_stderr
from redisfuse.fuse.interface import FuseSessionOptions


class _FuseArgs(ctypes.Structure):
    """struct fuse_args of fuse_opt.h."""

    _fields_ = (("argc", c_int), ("argv", ctypes.POINTER(c_char_p)), ("allocated", c_int))


class FuseDevice(ABC):
    """One mount made by one library."""

    name: str

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        version = library.fuse_version()
        self.version = (version // 100, version % 100) if version >= 100 else (version // 10, version % 10)

    @property
    def library(self) -> str:
        """The name and version of the library, such as "libfuse 2.9"."""
        return f"libfuse {self.version[0]}.{self.version[1]}"

    def mount(self, path: Path, options: FuseSessionOptions) -> int:
        """Mount and return the descriptor of the connection.

        Raises MountError, with the text that the library printed.
        """
        words = [b"redisfuse", b"-o", ",".join(map(_escape_option, self._list_options(options))).encode()]
        arguments = _FuseArgs(len(words), (c_char_p * (len(words) + 1))(*words), 0)
        with capture_stderr() as read_output:
            reason = self._mount(os.fsencode(path), arguments)
        output = "; ".join(line.strip() for line in read_output().splitlines() if line.strip())
        if reason is not None:
            raise MountError(f"{path} could not be mounted: {output or reason}")
        return self._descriptor()

    def unmount(self, path: Path) -> None:
        """Unmount, if still mounted, close the descriptor and free the library's memory."""
        with capture_stderr():  # an error message, if it is unmounted already
            self._unmount(os.fsencode(path))

    def _list_options(self, options: FuseSessionOptions) -> list[str]:
        listed = ["ro" if options.read_only else "rw", f"fsname={options.fsname}", "subtype=redisfuse"]
        listed += ["allow_other", "default_permissions"] if options.allow_other else []
        return [*listed, *options.extra]

    @abstractmethod
    def _mount(self, path: bytes, arguments: _FuseArgs) -> str | None:
        """Mount; return a reason if that failed, for a library that printed none."""

    @abstractmethod
    def _descriptor(self) -> int: ...

    @abstractmethod
    def _unmount(self, path: bytes) -> None: ...


class Libfuse2Device(FuseDevice):
    """A mount by libfuse 2."""

    name = "fusepy"

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(library)
        library.fuse_mount.restype = c_void_p
        library.fuse_mount.argtypes = [c_char_p, c_void_p]
        library.fuse_chan_fd.argtypes = [c_void_p]
        library.fuse_unmount.argtypes = [c_char_p, c_void_p]
        self._channel: int | None = None

    def _list_options(self, options: FuseSessionOptions) -> list[str]:
        return super()._list_options(options) + (["nonempty"] if options.nonempty else [])

    def _mount(self, path: bytes, arguments: _FuseArgs) -> str | None:
        self._channel = self._library.fuse_mount(path, ctypes.byref(arguments))
        if not self._channel:
            return "libfuse gave no reason"
        if arguments.argc > 1:  # options that fuse_mount does not know are left for fuse_new
            self._unmount(path)
            unknown = b" ".join(word for word in arguments.argv[1 : arguments.argc] if word not in (b"-o", None))
            return f"unknown option: {os.fsdecode(unknown)}"
        return None

    def _descriptor(self) -> int:
        return int(self._library.fuse_chan_fd(self._channel))

    def _unmount(self, path: bytes) -> None:
        channel, self._channel = self._channel, None
        if channel:
            self._library.fuse_unmount(path, channel)  # frees the channel too


class Libfuse3Device(FuseDevice):
    """A mount by libfuse 3."""

    name = "mfusepy"

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(library)
        library.fuse_session_new.restype = c_void_p
        library.fuse_session_new.argtypes = [c_void_p, c_void_p, c_size_t, c_void_p]
        library.fuse_session_mount.argtypes = [c_void_p, c_char_p]
        for function in (library.fuse_session_fd, library.fuse_session_unmount, library.fuse_session_destroy):
            function.argtypes = [c_void_p]
        library.fuse_session_unmount.restype = library.fuse_session_destroy.restype = None
        self._session: int | None = None

    def _mount(self, path: bytes, arguments: _FuseArgs) -> str | None:
        no_operations = ctypes.create_string_buffer(8)
        self._session = self._library.fuse_session_new(ctypes.byref(arguments), no_operations, 0, None)
        if not self._session:
            return "libfuse refused the options"
        if self._library.fuse_session_mount(self._session, path) != 0:
            self._library.fuse_session_destroy(self._session)
            self._session = None
            return "libfuse gave no reason"
        return None

    def _descriptor(self) -> int:
        return int(self._library.fuse_session_fd(self._session))

    def _unmount(self, _path: bytes) -> None:
        session, self._session = self._session, None
        if session:
            self._library.fuse_session_unmount(session)
            self._library.fuse_session_destroy(session)


_BINDINGS: dict[str, tuple[str, str, type[Libfuse2Device] | type[Libfuse3Device]]] = {
    "fusepy": ("fuse", "fusepy", Libfuse2Device),
    "mfusepy": ("mfusepy", "'redisfuse[fuse3]'", Libfuse3Device),
}
BINDING_NAMES = tuple(_BINDINGS)


def _escape_option(option: str) -> str:
    """Escape commas, at which libfuse splits -o, with a backslash (fuse_opt.h)."""
    return option.replace("\\", "\\\\").replace(",", "\\,")


def _load_device(name: str) -> FuseDevice:
    """Load a binding's library. Raises MountError (one line) if it is missing."""
    module_name, package, device = _BINDINGS[name]
    before = os.environ.get("FUSE_LIBRARY_NAME")
    if name == "mfusepy":  # if both libraries exist, it loads libfuse 2 unless this is set during its import
        os.environ["FUSE_LIBRARY_NAME"] = "fuse3"
    try:
        module: Any = importlib.import_module(module_name)
        return device(ctypes.CDLL(module._libfuse._name))  # a separate handle: prototypes set here affect no other code
    except ModuleNotFoundError as error:
        raise MountError(f"{error.name} is not installed: `pip install {package}`") from error
    except (OSError, AttributeError) as error:
        library, remedy = ("libfuse 3", "`apt install fuse3`")
        if name == "fusepy":
            library, remedy = ("libfuse 2", "`apt install libfuse2` (libfuse2t64 since Debian 13 and Ubuntu 24.04)")
        raise MountError(f"{library}, which {name} uses, is missing: {remedy}") from error
    finally:
        os.environ.pop("FUSE_LIBRARY_NAME", None)
        if before is not None:
            os.environ["FUSE_LIBRARY_NAME"] = before


def list_bindings() -> dict[str, str]:
    """Return each binding's name with the reason why it can't be used, or ""."""
    reasons = {}
    for name in BINDING_NAMES:
        try:
            _load_device(name)
            reasons[name] = ""
        except MountError as error:
            reasons[name] = str(error)
    return reasons


def select_device(name: str | None = None) -> FuseDevice:
    """Return the device of a binding.

    None selects mfusepy if it and libfuse 3 are installed, else fusepy. Raises UsageError for an unknown name,
    MountError (one line) if the binding or its library is missing.
    """
    if name is None:
        try:
            return _load_device("mfusepy")
        except MountError:
            return _load_device("fusepy")
    if name not in BINDING_NAMES:
        raise UsageError(f"no binding {name!r}: there are {' and '.join(BINDING_NAMES)}")
    return _load_device(name)

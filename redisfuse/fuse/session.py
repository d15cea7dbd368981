"""Mounting, serving and ending, the same for both libraries.

Requests are read here and answered by the library, in a `LeaderFollowerPool` of threads; the main thread waits
on a pipe into which signals (`signal.set_wakeup_fd`), `stop()` and the end of a thread are written. A signal unmounts;
the kernel then ends the threads' loops. Nothing here takes a lock that a callback takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import logging
import mmap
import os
import select
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from redisfuse.errors import MountError
from redisfuse.fuse import init
from redisfuse.fuse import mountpoint as mountpoints
from redisfuse.fuse.capture_stderr import capture_stderr
from redisfuse.fuse.cpu_affinity import CpuPinning
from redisfuse.fuse.dcache_probe import DcacheProbe
from redisfuse.fuse.dispatch import INLINE_CALLBACKS, SYNC_CALLBACKS, WRITE_CALLBACKS, LibfuseCallbacks, reply_read_only
from redisfuse.fuse.interface import FuseOperations, FuseSessionOptions, KernelNotifier
from redisfuse.fuse.reply_errno import reply_errors
from redisfuse.fuse.signals import SelfPipe
from redisfuse.fuse.wire import (
    FORGET_OPCODES,
    GETXATTR,
    GIL_HOLDING_OPCODES,
    MAX_REQUEST_BYTES,
    NODE_ID_OFFSET,
    OPCODE_OFFSET,
    POLLFD,
    inval_attributes,
    notify_store,
    parse_forget,
    reply_unsupported_xattr,
    write_in_thread,
)
from redisfuse.fuse.worker_pool import LeaderFollowerPool
from redisfuse.paths import stale_names

log = logging.getLogger("redisfuse.fuse")

_RELEASE_GRACE_SECONDS = 0.1  # seconds: the release of what was closed just before has come by then
_RETRY_ERRNOS = {errno.EINTR, errno.ENOENT}  # ENOENT: the request was interrupted before it was read
_THREAD_ENDED = b"\0"  # signal numbers start at 1
_STOP_REQUESTED = b"\xff"


class FuseArgs(ctypes.Structure):
    """struct fuse_args of fuse_opt.h."""

    _fields_ = (("argc", ctypes.c_int), ("argv", ctypes.POINTER(ctypes.c_char_p)), ("allocated", ctypes.c_int))


class FuseSession(ABC):
    """One mount by way of one library. Subclasses know the library's functions."""

    name: str
    has_readdirplus: bool
    can_set_timeouts = False
    uses_no_open = False

    def __init__(self, module: Any) -> None:
        self._module = module
        self._libfuse = ctypes.CDLL(module._libfuse._name)  # a handle of our own: its prototypes are ours to set
        self._libfuse_with_gil = ctypes.PyDLL(
            module._libfuse._name
        )  # the same, for calls that never wait (requests.py)
        libc = ctypes.PyDLL(None, use_errno=True)
        self._libc_read, self._libc_write = libc.read, libc.write  # not os.read, which goes on after a signal
        self._libc_read.restype = self._libc_write.restype = ctypes.c_ssize_t
        self._libc_read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        self._libc_write.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
        self._libc_poll = ctypes.CDLL(None).poll  # and not select.poll, likewise
        self._libc_poll.argtypes = [ctypes.c_char_p, ctypes.c_ulong, ctypes.c_int]
        self._cpu_pinning = CpuPinning()
        self._exiting = False
        self.worker_pool: LeaderFollowerPool | None = None
        self._self_pipe: SelfPipe | None = None
        self._init_error: BaseException | None = None
        self._init_called = False  # whether `started` was called, and
        self._init_returned = False  # whether it returned
        self.busy_at_unmount = False
        self._gil_holding_opcodes: tuple[
            int, ...
        ] = ()  # kinds of requests that are answered without giving up the interpreter
        self._kernel_fd: int | None = None  # the connection, while the library's own descriptor is something else
        self._c_references: list[Any] = []  # what C holds pointers into, until the process ends
        self._request_addresses: dict[int, int] = {}  # thread -> where the request is that it answers
        self._lock = threading.Lock()
        self._attr_timeout = 0.0  # seconds, as `set_timeouts` said
        self._uncached_threads: set[int] = set()  # threads whose answer is not to be believed for any time
        self._stale_numbers = itertools.count(1)
        self._on_forget: Callable[[Iterable[int]], None] | None = None
        self._dcache_probe: DcacheProbe | None = None
        self._fuse_get_context = self._libfuse_with_gil.fuse_get_context
        self._fuse_get_context.restype = ctypes.POINTER(module.fuse_context)
        version = self._libfuse.fuse_version()
        self.version = (version // 100, version % 100) if version >= 100 else (version // 10, version % 10)

    @property
    def library(self) -> str:
        return f"libfuse {self.version[0]}.{self.version[1]}"

    # -- what the library does ---------------------------------------------------------------------------------------

    @abstractmethod
    def _callback_types(self) -> dict[str, tuple[Any, ...]]:
        """The C arguments of each callback, by its name in `struct fuse_operations`."""

    @abstractmethod
    def _create_callbacks(self, operations: FuseOperations) -> LibfuseCallbacks:
        """The callbacks that answer by way of `calls`."""

    @abstractmethod
    def _build_options(self, options: FuseSessionOptions) -> list[str]:
        """What stands behind -o."""

    @abstractmethod
    def _mount(self, path: bytes, arguments: FuseArgs, c_operations: ctypes.Structure) -> bool:
        """Mount; False if the library could not, and has said why on descriptor 2."""

    @abstractmethod
    def _device_fd(self) -> int:
        """The kernel's connection."""

    @abstractmethod
    def _configure(self, connection: int, configuration: int, options: FuseSessionOptions) -> None:
        """While INIT is answered: ask for what is wanted, in the structures at these addresses (libfuse 2 has one)."""

    @abstractmethod
    def _create_processor(self, buffer_address: int, library: ctypes.CDLL) -> Callable[[int], object]:
        """What lets the library answer the request, of so many bytes, that is at an address."""

    def _process_request(self, request: bytes) -> None:
        """Let the library answer one request."""
        memory = ctypes.create_string_buffer(request, len(request))
        self._create_processor(ctypes.addressof(memory), self._libfuse)(len(request))

    def _negotiate_init(self) -> bool:
        """Answer the kernel's first request, before there are threads; False if the mount has ended by then."""
        number = self._device_fd()
        self._kernel_fd = os.dup(number)
        try:
            answered = init.negotiate(self._kernel_fd, number, self._process_request)
            os.set_blocking(number, False)
            return answered
        finally:
            kernel, self._kernel_fd = self._kernel_fd, None
            os.close(kernel)

    def _create_worker(self) -> Callable[[], bool]:
        """For one thread: what reads a request and lets it be answered; False once the session has ended."""
        memory = (ctypes.c_char * MAX_REQUEST_BYTES).from_buffer(
            mmap.mmap(-1, MAX_REQUEST_BYTES)
        )  # takes no memory until it is used
        address = ctypes.addressof(memory)
        process, prompt = (
            self._create_processor(address, self._libfuse),
            self._create_processor(address, self._libfuse_with_gil),
        )
        read, write, kernel = self._libc_read, self._libc_write, self._device_fd()
        opcode, kept = ctypes.c_uint32.from_address(address + OPCODE_OFFSET), self._gil_holding_opcodes
        waited = ctypes.create_string_buffer(POLLFD.pack(kernel, select.POLLIN, 0))
        self._c_references.append(memory)
        self._request_addresses[threading.get_ident()] = address
        briefs, wait, affinity = self._uncached_threads, self._libc_poll, self._cpu_pinning

        def serve_request() -> bool:
            if self._exiting:
                return False
            size = read(kernel, address, MAX_REQUEST_BYTES)
            if size < 0:
                number = ctypes.get_errno()
                if number == errno.EAGAIN:
                    affinity.on_idle()
                    wait(waited, 1, -1)
                    return True
                return number in _RETRY_ERRNOS  # else ENODEV: unmounted
            affinity.on_request()
            what = opcode.value
            if what in kept:
                prompt(size)
            elif what == GETXATTR and (answer := reply_unsupported_xattr(memory)) is not None:
                write(kernel, answer, len(answer))
            else:
                process(size)
            if self._on_forget is not None and what in FORGET_OPCODES:
                self._on_forget(parse_forget(memory, what))
            if briefs:
                self._restore_attr_timeout()
            return True

        return serve_request

    def _request_exit(self) -> None:
        """Tell the threads to end when they next look."""
        self._exiting = True

    @abstractmethod
    def _tear_down(self, path: bytes) -> None:
        """Unmount if still mounted, and free everything. The loop has ended."""

    # -- for the rest of the program ---------------------------------------------------------------------------------

    def run(
        self, operations: FuseOperations, options: FuseSessionOptions, notifier: KernelNotifier | None = None
    ) -> None:
        path = mountpoints.validate_mountpoint(options.mountpoint, nonempty=options.nonempty)
        self._init_error = None
        self._init_called = self._init_returned = self._exiting = self.busy_at_unmount = False
        self._gil_holding_opcodes = () if options.can_skip_open else GIL_HOLDING_OPCODES
        with SelfPipe() as wakeups:
            self._self_pipe = wakeups
            self.worker_pool = crew = LeaderFollowerPool(
                self._create_worker, options.threads, lambda: wakeups.wake(_THREAD_ENDED)
            )
            self._mount_session(path, operations, options, notifier)
            try:
                if self._negotiate_init():
                    crew.start()
                else:
                    wakeups.wake(_THREAD_ENDED)
                self._wait_for_end(wakeups, path, options)
                self._unmount(path)
                ended = crew.shutdown(self._request_exit, options.stop_timeout, wakeups.handles_signals)
            finally:
                if notifier is not None:
                    notifier.detach()
            try:
                if ended:
                    with capture_stderr():  # libfuse says so if we have unmounted already
                        self._tear_down(os.fsencode(path))
            finally:
                if self._dcache_probe is not None:
                    self._dcache_probe.close()
                if self._init_called:
                    operations.destroy()
            if not ended:
                raise MountError(f"{path} is unmounted, but a call did not end within {options.stop_timeout:.0f} s")
        self._self_pipe = None
        if self._init_error is not None:
            raise self._init_error

    def stop(self) -> None:
        wakeups = self._self_pipe
        if wakeups is not None:
            wakeups.wake(_STOP_REQUESTED)

    def is_interrupted(self) -> bool:
        return bool(self._libfuse.fuse_interrupted())

    def prepare_to_block(self) -> None:
        if self.worker_pool is not None:
            self.worker_pool.promote_follower()

    def disable_attr_cache(self) -> None:
        # The library takes the time-out of all answers when it sends one: for a moment all are brief.
        with self._lock:
            self._uncached_threads.add(threading.get_ident())
            self._set_attr_timeout(0.0)

    def _restore_attr_timeout(self) -> None:
        with self._lock:
            self._uncached_threads.discard(threading.get_ident())
            if not self._uncached_threads:
                self._set_attr_timeout(self._attr_timeout)

    def current_node_id(self) -> int:
        return ctypes.c_uint64.from_address(self._request_addresses[threading.get_ident()] + NODE_ID_OFFSET).value

    def notify_store(self, offset: int, data: bytes) -> None:
        # If it has forgotten the file, or memory is short, then it will ask.
        write_in_thread(self._device_fd(), notify_store(self.current_node_id(), offset, data))

    def invalidate_size(self) -> None:
        write_in_thread(self._device_fd(), inval_attributes(self.current_node_id()))

    def kernel_size(self, path: bytes, node_id: int) -> int | None:
        with self._lock:
            found = self._dcache_probe.lookup(path[1:]) if self._dcache_probe is not None else None
        return found.size if found is not None and found.node_id == node_id else None

    def is_inode_cached(self, node_id: int) -> bool:
        # While the kernel lets go of a node it waits for what it has asked of it, and this for that.
        self.prepare_to_block()
        try:
            os.write(self._device_fd(), inval_attributes(node_id))
        except OSError as error:
            return error.errno != errno.ENOENT
        return True

    def _rename_to_stale(self, parent: int, name: bytes) -> None:
        self._process_request(stale_names.build_rename_request(parent, name, next(self._stale_numbers), os.getuid()))

    def get_caller(self) -> tuple[int, int, int]:
        context = self._fuse_get_context().contents
        return context.uid, context.gid, context.pid

    def set_timeouts(self, entry: float, attr: float, negative: float, *, listings: bool = False) -> None:
        with self._lock:
            self._attr_timeout = attr
            self._set_entry_timeouts(entry, negative, listings=listings)
            self._set_attr_timeout(0.0 if self._uncached_threads else attr)

    @abstractmethod
    def _set_entry_timeouts(self, entry: float, negative: float, *, listings: bool) -> None:
        """What set_timeouts says, but for the attributes'."""

    @abstractmethod
    def _set_attr_timeout(self, seconds: float) -> None:
        """For how long the kernel may believe the attributes that it is told from now on."""

    # -- inside ------------------------------------------------------------------------------------------------------

    def _mount_session(
        self, path: Path, fuse_operations: FuseOperations, options: FuseSessionOptions, notifier: KernelNotifier | None
    ) -> None:
        callbacks = self._create_callbacks(fuse_operations)

        def init(connection: int, configuration: int = 0) -> int:
            try:
                self._configure(connection, configuration, options)
                if notifier is not None:
                    notifier.attach(
                        self._device_fd() if self._kernel_fd is None else self._kernel_fd, path, callbacks.page_cache
                    )
                    if options.can_skip_open and notifier.is_supported and self.can_set_timeouts:
                        self._enable_no_open(path, fuse_operations, callbacks)
                self._init_called = True
                fuse_operations.init()
                self._init_returned = True
            except BaseException as error:
                self._init_error = error
                self._request_exit()
            return 0

        operations, functions = self._build_c_operations(callbacks, init, options.read_only)
        words = ["redisfuse", "-o", ",".join(_escape_option(option) for option in self._build_options(options))]
        argv = (ctypes.c_char_p * (len(words) + 1))(*[os.fsencode(word) for word in words])
        arguments = FuseArgs(len(words), argv, 0)
        self._c_references = [operations, functions, argv, arguments]
        with capture_stderr() as said:
            mounted = self._mount(os.fsencode(path), arguments, operations)
        text = said()
        if not mounted:
            raise MountError(f"{path} could not be mounted: {_format_reason(text)}")
        if text:
            log.warning("%s says: %s", self.library, text)

    def _enable_no_open(self, path: Path, operations: FuseOperations, callbacks: LibfuseCallbacks) -> None:
        self._dcache_probe = DcacheProbe(path)
        self.uses_no_open = callbacks.no_open = True
        known = callbacks.page_cache
        known.rename_to_stale, known.has_been_read, known.list_read_nodes = (
            self._rename_to_stale,
            operations.has_been_read,
            operations.list_read_nodes,
        )
        self._on_forget = operations.forget

    def _build_c_operations(
        self, callbacks: LibfuseCallbacks, init: Callable[..., int], read_only: bool
    ) -> tuple[ctypes.Structure, list[Any]]:
        """The library's table of callbacks, and the function objects in it, which must outlive the session."""
        crew = self.worker_pool
        assert crew is not None
        operations: ctypes.Structure = self._module.fuse_operations()
        fields = {field[0]: field[1] for field in self._module.fuse_operations._fields_}
        functions: list[Any] = []
        for name, types in self._callback_types().items():
            if read_only and name in SYNC_CALLBACKS:
                continue
            if name == "init":
                function: Any = ctypes.CFUNCTYPE(ctypes.c_void_p, *types)(init)
            else:
                method = getattr(callbacks, name)
                if read_only and name in WRITE_CALLBACKS:
                    method = callbacks.rename_to_stale if name == "rename" else reply_read_only
                before = None if name in INLINE_CALLBACKS else crew.promote_follower
                function = ctypes.CFUNCTYPE(ctypes.c_int, *types)(reply_errors(name, method, before))
            functions.append(function)
            setattr(operations, name, ctypes.cast(function, fields[name]))
        return operations, functions

    def _wait_for_end(self, self_pipe: SelfPipe, path: Path, options: FuseSessionOptions) -> None:
        """Until a signal, `stop`, or the end of a thread."""
        if options.read_ahead is not None:
            # The kernel sets its own value when INIT is answered, which is when `started` has returned.
            while not (came := self_pipe.wait(0.2)):
                if self._init_returned:
                    mountpoints.set_read_ahead(path, options.read_ahead)
                    break
            if came:
                return
        while not self_pipe.wait(None):
            pass

    def _unmount(self, path: Path) -> None:
        """Unmount, also while in use, unless it is unmounted already."""
        poll = select.poll()
        poll.register(self._device_fd(), 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            self.busy_at_unmount = mountpoints.is_stale(path)  # the connection was aborted
            return  # the kernel has ended the connection; whatever is mounted there now is not ours
        try:
            mountpoints.try_unmount(path, lazy=False)
        except (OSError, MountError):
            # In use: it goes away for new programs, and those that are inside get ENOTCONN when all is torn down.
            with contextlib.suppress(OSError, MountError):
                mountpoints.try_unmount(path, lazy=True)
            self.busy_at_unmount = True
            time.sleep(_RELEASE_GRACE_SECONDS)
            self._request_exit()


def find_versioned_symbol(library: ctypes.CDLL, name: bytes, version: bytes) -> int:
    """The address of one of several functions of the same name: plain dlsym may find one of an older interface."""
    find = ctypes.CDLL(None).dlvsym
    find.restype = ctypes.c_void_p
    find.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
    address: int | None = find(library._handle, name, version)
    if not address:
        raise OSError(f"{name.decode()} of {version.decode()} is not in {library._name}")
    return address


def _escape_option(option: str) -> str:
    """libfuse splits -o at commas; a backslash keeps the next character (fuse_opt.h)."""
    return option.replace("\\", "\\\\").replace(",", "\\,")


def _format_reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines) if lines else "libfuse gave no reason"

"""Mounting, serving and ending, the same for both libraries.

Requests are read here and answered by the library, in a `Crew` of threads, so that the main thread stays free: it waits
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
from redisfuse.fuse.capture_stderr import captured_errors
from redisfuse.fuse.cpu_affinity import Affinity
from redisfuse.fuse.dcache_probe import CachedNodes
from redisfuse.fuse.dispatch import PROMPT, SYNCING, WRITING, Callbacks, read_only_answer
from redisfuse.fuse.interface import Attachable, Calls, MountOptions
from redisfuse.fuse.reply_errno import guarded
from redisfuse.fuse.signals import Wakeups
from redisfuse.fuse.wire import (
    FORGETS,
    GETXATTR,
    KEPT,
    LARGEST,
    NODE,
    OPCODE,
    POLL,
    forget_attributes,
    forgotten,
    stored,
    unsupported,
    write_aside,
)
from redisfuse.fuse.worker_pool import Crew
from redisfuse.paths import stale_names

log = logging.getLogger("redisfuse.fuse")

_LAST_WORDS = 0.1  # seconds: the release of what was closed just before has come by then
_AGAIN = {errno.EINTR, errno.ENOENT}  # ENOENT: the request was interrupted before it was read
_ENDED = b"\0"  # signal numbers start at 1
_STOP = b"\xff"


class Arguments(ctypes.Structure):
    """struct fuse_args of fuse_opt.h."""

    _fields_ = (("argc", ctypes.c_int), ("argv", ctypes.POINTER(ctypes.c_char_p)), ("allocated", ctypes.c_int))


class Session(ABC):
    """One mount by way of one library. Subclasses know the library's functions."""

    name: str
    has_readdirplus: bool
    timeouts_can_change = False
    without_open = False

    def __init__(self, module: Any) -> None:
        self._module = module
        self._libfuse = ctypes.CDLL(module._libfuse._name)  # a handle of our own: its prototypes are ours to set
        self._keeping = ctypes.PyDLL(module._libfuse._name)  # the same, for calls that never wait (requests.py)
        libc = ctypes.PyDLL(None, use_errno=True)
        self._read, self._write = libc.read, libc.write  # not os.read, which goes on after a signal
        self._read.restype = self._write.restype = ctypes.c_ssize_t
        self._read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        self._write.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
        self._wait_for_request = ctypes.CDLL(None).poll  # and not select.poll, likewise
        self._wait_for_request.argtypes = [ctypes.c_char_p, ctypes.c_ulong, ctypes.c_int]
        self._affinity = Affinity()
        self._exiting = False
        self.crew: Crew | None = None
        self._wakeups: Wakeups | None = None
        self._failure: BaseException | None = None
        self._started = False  # whether `started` was called, and
        self._answering = False  # whether it returned
        self.left_open = False
        self._kept: tuple[int, ...] = ()  # kinds of requests that are answered without giving up the interpreter
        self._kernel: int | None = None  # the connection, while the library's own descriptor is something else
        self._keep: list[Any] = []  # what C holds pointers into, until the process ends
        self._addresses: dict[int, int] = {}  # thread -> where the request is that it answers
        self._lock = threading.Lock()
        self._attr_timeout = 0.0  # seconds, as `set_timeouts` said
        self._briefs: set[int] = set()  # threads whose answer is not to be believed for any time
        self._retirements = itertools.count(1)
        self._forgotten: Callable[[Iterable[int]], None] | None = None
        self._nodes: CachedNodes | None = None
        self._context = self._keeping.fuse_get_context
        self._context.restype = ctypes.POINTER(module.fuse_context)
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
    def _callbacks(self, calls: Calls) -> Callbacks:
        """The callbacks that answer by way of `calls`."""

    @abstractmethod
    def _option_list(self, options: MountOptions) -> list[str]:
        """What stands behind -o."""

    @abstractmethod
    def _mount(self, path: bytes, arguments: Arguments, operations: ctypes.Structure) -> bool:
        """Mount; False if the library could not, and has said why on descriptor 2."""

    @abstractmethod
    def _descriptor(self) -> int:
        """The kernel's connection."""

    @abstractmethod
    def _configure(self, connection: int, configuration: int, options: MountOptions) -> None:
        """While INIT is answered: ask for what is wanted, in the structures at these addresses (libfuse 2 has one)."""

    @abstractmethod
    def _processor(self, address: int, library: ctypes.CDLL) -> Callable[[int], object]:
        """What lets the library answer the request, of so many bytes, that is at an address."""

    def _process(self, request: bytes) -> None:
        """Let the library answer one request."""
        memory = ctypes.create_string_buffer(request, len(request))
        self._processor(ctypes.addressof(memory), self._libfuse)(len(request))

    def _prepare(self) -> bool:
        """Answer the kernel's first request, before there are threads; False if the mount has ended by then."""
        number = self._descriptor()
        self._kernel = os.dup(number)
        try:
            answered = init.answer_init(self._kernel, number, self._process)
            os.set_blocking(number, False)
            return answered
        finally:
            kernel, self._kernel = self._kernel, None
            os.close(kernel)

    def _server(self) -> Callable[[], bool]:
        """For one thread: what reads a request and lets it be answered; False once the session has ended."""
        memory = (ctypes.c_char * LARGEST).from_buffer(mmap.mmap(-1, LARGEST))  # takes no memory until it is used
        address = ctypes.addressof(memory)
        process, prompt = self._processor(address, self._libfuse), self._processor(address, self._keeping)
        read, write, kernel = self._read, self._write, self._descriptor()
        opcode, kept = ctypes.c_uint32.from_address(address + OPCODE), self._kept
        waited = ctypes.create_string_buffer(POLL.pack(kernel, select.POLLIN, 0))
        self._keep.append(memory)
        self._addresses[threading.get_ident()] = address
        briefs, wait, affinity = self._briefs, self._wait_for_request, self._affinity

        def serve() -> bool:
            if self._exiting:
                return False
            size = read(kernel, address, LARGEST)
            if size < 0:
                number = ctypes.get_errno()
                if number == errno.EAGAIN:
                    affinity.waited()
                    wait(waited, 1, -1)
                    return True
                return number in _AGAIN  # else ENODEV: unmounted
            affinity.asked()
            what = opcode.value
            if what in kept:
                prompt(size)
            elif what == GETXATTR and (answer := unsupported(memory)) is not None:
                write(kernel, answer, len(answer))
            else:
                process(size)
            if self._forgotten is not None and what in FORGETS:
                self._forgotten(forgotten(memory, what))
            if briefs:
                self._end_brief()
            return True

        return serve

    def _exit(self) -> None:
        """Tell the threads to end when they next look."""
        self._exiting = True

    @abstractmethod
    def _tear_down(self, path: bytes) -> None:
        """Unmount if still mounted, and free everything. The loop has ended."""

    # -- for the rest of the program ---------------------------------------------------------------------------------

    def run(self, calls: Calls, options: MountOptions, notifier: Attachable | None = None) -> None:
        path = mountpoints.check(options.mountpoint, nonempty=options.nonempty)
        self._failure = None
        self._started = self._answering = self._exiting = self.left_open = False
        self._kept = () if options.may_do_without_open else KEPT
        with Wakeups() as wakeups:
            self._wakeups = wakeups
            self.crew = crew = Crew(self._server, options.threads, lambda: wakeups.wake(_ENDED))
            self._open(path, calls, options, notifier)
            try:
                if self._prepare():
                    crew.start()
                else:
                    wakeups.wake(_ENDED)
                self._wait(wakeups, path, options)
                self._close(path)
                ended = crew.end(self._exit, options.stop_timeout, wakeups.handles_signals)
            finally:
                if notifier is not None:
                    notifier.detach()
            try:
                if ended:
                    with captured_errors():  # libfuse says so if we have unmounted already
                        self._tear_down(os.fsencode(path))
            finally:
                if self._nodes is not None:
                    self._nodes.close()
                if self._started:
                    calls.stopped()
            if not ended:
                raise MountError(f"{path} is unmounted, but a call did not end within {options.stop_timeout:.0f} s")
        self._wakeups = None
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        wakeups = self._wakeups
        if wakeups is not None:
            wakeups.wake(_STOP)

    def interrupted(self) -> bool:
        return bool(self._libfuse.fuse_interrupted())

    def waiting(self) -> None:
        if self.crew is not None:
            self.crew.hand_over()

    def brief(self) -> None:
        # The library takes the time-out of all answers when it sends one: for a moment all are brief.
        with self._lock:
            self._briefs.add(threading.get_ident())
            self._set_attr_timeout(0.0)

    def _end_brief(self) -> None:
        with self._lock:
            self._briefs.discard(threading.get_ident())
            if not self._briefs:
                self._set_attr_timeout(self._attr_timeout)

    def node(self) -> int:
        return ctypes.c_uint64.from_address(self._addresses[threading.get_ident()] + NODE).value

    def store(self, offset: int, data: bytes) -> None:
        # If it has forgotten the file, or memory is short, then it will ask.
        write_aside(self._descriptor(), stored(self.node(), offset, data))

    def outdated(self) -> None:
        write_aside(self._descriptor(), forget_attributes(self.node()))

    def believed_size(self, path: bytes, number: int) -> int | None:
        with self._lock:
            found = self._nodes.find(path[1:]) if self._nodes is not None else None
        return found.size if found is not None and found.number == number else None

    def has_node(self, number: int) -> bool:
        # While the kernel lets go of a node it waits for what it has asked of it, and this for that.
        self.waiting()
        try:
            os.write(self._descriptor(), forget_attributes(number))
        except OSError as error:
            return error.errno != errno.ENOENT
        return True

    def _retire(self, parent: int, name: bytes) -> None:
        self._process(stale_names.request(parent, name, next(self._retirements), os.getuid()))

    def caller(self) -> tuple[int, int, int]:
        context = self._context().contents
        return context.uid, context.gid, context.pid

    def set_timeouts(self, entry: float, attr: float, negative: float, *, listings: bool = False) -> None:
        with self._lock:
            self._attr_timeout = attr
            self._set_timeouts(entry, negative, listings=listings)
            self._set_attr_timeout(0.0 if self._briefs else attr)

    @abstractmethod
    def _set_timeouts(self, entry: float, negative: float, *, listings: bool) -> None:
        """What set_timeouts says, but for the attributes'."""

    @abstractmethod
    def _set_attr_timeout(self, seconds: float) -> None:
        """For how long the kernel may believe the attributes that it is told from now on."""

    # -- inside ------------------------------------------------------------------------------------------------------

    def _open(self, path: Path, calls: Calls, options: MountOptions, notifier: Attachable | None) -> None:
        callbacks = self._callbacks(calls)

        def init(connection: int, configuration: int = 0) -> int:
            try:
                self._configure(connection, configuration, options)
                if notifier is not None:
                    notifier.attach(self._descriptor() if self._kernel is None else self._kernel, path, callbacks.known)
                    if options.may_do_without_open and notifier.supported and self.timeouts_can_change:
                        self._do_without_open(path, calls, callbacks)
                self._started = True
                calls.started()
                self._answering = True
            except BaseException as error:
                self._failure = error
                self._exit()
            return 0

        operations, functions = self._operations(callbacks, init, options.read_only)
        words = ["redisfuse", "-o", ",".join(_escaped(option) for option in self._option_list(options))]
        argv = (ctypes.c_char_p * (len(words) + 1))(*[os.fsencode(word) for word in words])
        arguments = Arguments(len(words), argv, 0)
        self._keep = [operations, functions, argv, arguments]
        with captured_errors() as said:
            mounted = self._mount(os.fsencode(path), arguments, operations)
        text = said()
        if not mounted:
            raise MountError(f"{path} could not be mounted: {_reason(text)}")
        if text:
            log.warning("%s says: %s", self.library, text)

    def _do_without_open(self, path: Path, calls: Calls, callbacks: Callbacks) -> None:
        self._nodes = CachedNodes(path)
        self.without_open = callbacks.no_open = True
        known = callbacks.known
        known.retire, known.was_read, known.read_nodes = self._retire, calls.was_read, calls.read_nodes
        self._forgotten = calls.forgotten

    def _operations(
        self, callbacks: Callbacks, init: Callable[..., int], read_only: bool
    ) -> tuple[ctypes.Structure, list[Any]]:
        """The library's table of callbacks, and the function objects in it, which must outlive the session."""
        crew = self.crew
        assert crew is not None
        operations: ctypes.Structure = self._module.fuse_operations()
        fields = {field[0]: field[1] for field in self._module.fuse_operations._fields_}
        functions: list[Any] = []
        for name, types in self._callback_types().items():
            if read_only and name in SYNCING:
                continue
            if name == "init":
                function: Any = ctypes.CFUNCTYPE(ctypes.c_void_p, *types)(init)
            else:
                method = getattr(callbacks, name)
                if read_only and name in WRITING:
                    method = callbacks.retire if name == "rename" else read_only_answer
                before = None if name in PROMPT else crew.hand_over
                function = ctypes.CFUNCTYPE(ctypes.c_int, *types)(guarded(name, method, before))
            functions.append(function)
            setattr(operations, name, ctypes.cast(function, fields[name]))
        return operations, functions

    def _wait(self, wakeups: Wakeups, path: Path, options: MountOptions) -> None:
        """Until a signal, `stop`, or the end of a thread."""
        if options.read_ahead is not None:
            # The kernel sets its own value when INIT is answered, which is when `started` has returned.
            while not (came := wakeups.wait(0.2)):
                if self._answering:
                    mountpoints.set_read_ahead(path, options.read_ahead)
                    break
            if came:
                return
        while not wakeups.wait(None):
            pass

    def _close(self, path: Path) -> None:
        """Unmount, also while in use, unless it is unmounted already."""
        poll = select.poll()
        poll.register(self._descriptor(), 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            self.left_open = mountpoints.is_stale(path)  # the connection was aborted
            return  # the kernel has ended the connection; whatever is mounted there now is not ours
        try:
            mountpoints.unmount_once(path, lazy=False)
        except (OSError, MountError):
            # In use: it goes away for new programs, and those that are inside get ENOTCONN when all is torn down.
            with contextlib.suppress(OSError, MountError):
                mountpoints.unmount_once(path, lazy=True)
            self.left_open = True
            time.sleep(_LAST_WORDS)
            self._exit()


def versioned(library: ctypes.CDLL, name: bytes, version: bytes) -> int:
    """The address of one of several functions of the same name: plain dlsym may find one of an older interface."""
    find = ctypes.CDLL(None).dlvsym
    find.restype = ctypes.c_void_p
    find.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
    address: int | None = find(library._handle, name, version)
    if not address:
        raise OSError(f"{name.decode()} of {version.decode()} is not in {library._name}")
    return address


def _escaped(option: str) -> str:
    """libfuse splits -o at commas; a backslash keeps the next character (fuse_opt.h)."""
    return option.replace("\\", "\\\\").replace(",", "\\,")


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines) if lines else "libfuse gave no reason"

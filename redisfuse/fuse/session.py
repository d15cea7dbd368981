"""One mount from INIT to its end.

The workers read requests, call the dispatcher and write replies. The main thread waits on a pipe into which signals
(`signal.set_wakeup_fd`), `stop()` and the end of a worker are written. It unmounts after any of these; the workers then
read ENODEV. This module has no lock.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import select
import signal
import threading
import time
from pathlib import Path

from redisfuse.errors import MountError
from redisfuse.fuse import mountpoint as mountpoints
from redisfuse.fuse import wire
from redisfuse.fuse.device import FuseDevice
from redisfuse.fuse.dispatch import Dispatcher
from redisfuse.fuse.init import negotiate
from redisfuse.fuse.interface import ConnectionInfo, FuseOperations, FuseSessionOptions
from redisfuse.fuse.notify import KernelNotifier
from redisfuse.fuse.request import Request
from redisfuse.fuse.signals import SelfPipe
from redisfuse.fuse.worker_pool import LeaderFollowerPool

log = logging.getLogger("redisfuse.fuse")

_MAX_LEADING_WAIT_MS = 100  # for which the leader waits for a reply of the server and for a request at once
_RELEASE_GRACE_SECONDS = 0.1  # seconds in which the RELEASE of a file closed just before arrives
_RETRY_ERRNOS = {errno.EINTR, errno.EAGAIN, errno.ENOENT}  # ENOENT: interrupted before it was read
_ENDED_ERRNOS = {errno.ENODEV, errno.ENOTCONN, errno.EPERM}  # unmounted or aborted
_THREAD_ENDED, _STOP_REQUESTED = b"\0", b"\xff"  # signal numbers lie between


class FuseSession:
    """One mount; `run` serves it in the foreground.

    A process has one session at a time. `notifier` may be used before `run`: its queue is written after INIT.
    """

    def __init__(self, device: FuseDevice) -> None:
        self.notifier = KernelNotifier()
        self.device = device
        self.busy_at_unmount = False  # set before `FuseOperations.destroy` is called
        self._workers: dict[int, RequestWorker] = {}  # by thread
        self._self_pipe: SelfPipe | None = None
        self._device_fd = -1  # replies are written to it; the library closes it
        self._reader_fd = -1  # a duplicate, from which requests are read
        self._init_called = False

    def run(self, operations: FuseOperations, options: FuseSessionOptions) -> None:
        """Mount, and serve until an unmount, `stop()`, SIGINT, SIGTERM or SIGHUP.

        Nothing is mounted any more when it returns or raises. Raises MountError (one line), or the exception of
        `FuseOperations.init`.
        """
        dispatcher = Dispatcher(operations, options.read_only)
        path = options.mountpoint
        with SelfPipe() as self_pipe:
            self._self_pipe = self_pipe
            self._device_fd = self.device.mount(path, options)
            os.set_blocking(self._device_fd, True)
            self._reader_fd = os.dup(self._device_fd)
            pool = LeaderFollowerPool(
                lambda pool: self._create_worker(pool, dispatcher),
                options.threads,
                lambda: self_pipe.wake(_THREAD_ENDED),
            )
            ended = False
            try:
                try:
                    if self._negotiate_init(operations, options):
                        pool.start()
                        while not self_pipe.wait(None):
                            pass
                finally:
                    self._unmount(path)
                    self.notifier.stop()
                    ended = pool.shut_down(options.stop_timeout, lambda: self._interrupt_reader(pool, self_pipe))
            finally:
                if ended:
                    self.notifier.detach()
                    self.device.unmount(path)
                    os.close(self._reader_fd)
                if self._init_called:
                    operations.destroy()
            self._self_pipe = None
        if not ended:
            raise MountError(f"{path} is unmounted, but a call did not end within {options.stop_timeout:.0f} s")

    def stop(self) -> None:
        """End the mount. Any thread may call it, also in an operation; never blocks."""
        self_pipe = self._self_pipe
        if self_pipe is not None:
            self_pipe.wake(_STOP_REQUESTED)

    def is_interrupted(self) -> bool:
        """Return whether the request that this thread serves was interrupted."""
        worker = self._workers.get(threading.get_ident())
        return worker is not None and worker.is_interrupted()

    def prepare_to_wait(self, descriptor: int) -> None:
        """Let another thread read requests if one arrives during a wait.

        The wait ends once `descriptor` is readable; -1: another thread is to read in any case. Without effect in a
        thread that does not lead.
        """
        worker = self._workers.get(threading.get_ident())
        if worker is None or not worker.is_leader:
            return
        if descriptor >= 0:  # a change of threads costs more than most replies take
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.register(self._reader_fd, select.POLLIN)
            for ready, _ in poll.poll(_MAX_LEADING_WAIT_MS):
                if ready == descriptor:
                    return
        worker.prepare_to_block()

    def get_caller_thread(self) -> int:
        """Return the thread of the program whose request this thread serves; 0: none."""
        worker = self._workers.get(threading.get_ident())
        return 0 if worker is None else worker.pid

    def _create_worker(self, pool: LeaderFollowerPool, dispatcher: Dispatcher) -> RequestWorker:
        worker = self._workers[threading.get_ident()] = RequestWorker(
            pool, dispatcher, self._reader_fd, self._device_fd
        )
        dispatcher.requests.append(worker)
        return worker

    def _negotiate_init(self, operations: FuseOperations, options: FuseSessionOptions) -> bool:
        """Reply to INIT and call `FuseOperations.init`; False if the mount has ended.

        Other requests wait in the kernel until this returns.
        """
        connection: ConnectionInfo | None = None
        while connection is None:
            try:
                request = memoryview(os.read(self._reader_fd, wire.MAX_REQUEST_BYTES))
            except OSError as error:
                if error.errno in _RETRY_ERRNOS:
                    continue
                return False
            (unique,) = wire.UINT64.unpack_from(request, wire.UNIQUE_OFFSET)
            body, connection = negotiate(request, options)
            with contextlib.suppress(OSError):
                os.write(self._device_fd, wire.OUT_HEADER.pack(wire.OUT_HEADER_SIZE + len(body), 0, unique) + body)
        self.notifier.attach(self._device_fd, connection)
        self._init_called = True
        operations.init(connection)
        return True

    def _unmount(self, path: Path) -> None:
        """Unmount, even while in use, unless the mount has ended."""
        poll = select.poll()
        poll.register(self._device_fd, 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            self.busy_at_unmount = mountpoints.is_stale(path)  # the connection was aborted
            return  # the connection has ended; a mount that is there now is not ours
        try:
            mountpoints.try_unmount(path, lazy=False)
        except (OSError, MountError):
            # In use: detached from the tree. Programs inside get ENOTCONN when the connection is closed.
            with contextlib.suppress(OSError, MountError):
                mountpoints.try_unmount(path, lazy=True)
            self.busy_at_unmount = True
            time.sleep(_RELEASE_GRACE_SECONDS)

    def _interrupt_reader(self, pool: LeaderFollowerPool, self_pipe: SelfPipe) -> None:
        """Let the leader read the end of a closed pipe: a busy connection has no end."""
        if not self.busy_at_unmount:
            return
        read_end, write_end = os.pipe()
        os.close(write_end)
        os.dup2(read_end, self._reader_fd, inheritable=False)
        os.close(read_end)
        if self_pipe.handles_signals:  # a signal interrupts its read(2), which Python retries on the pipe
            for thread in pool.threads:
                if thread.is_alive() and thread.ident is not None:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pthread_kill(thread.ident, signal.SIGTERM)


class RequestWorker(Request):
    """A worker thread: its request, and the loop that serves."""

    __slots__ = ("_device_fd", "_dispatcher", "_reader")

    def __init__(self, pool: LeaderFollowerPool, dispatcher: Dispatcher, reader_fd: int, device_fd: int) -> None:
        super().__init__(pool)
        self._dispatcher = dispatcher
        self._reader = io.FileIO(reader_fd, "r", closefd=False)
        self._device_fd = device_fd

    @property
    def is_leader(self) -> bool:
        """Whether this thread reads the next request."""
        return self._pool.leader is self

    def run(self) -> None:
        """Read requests while this thread leads, and reply, until the mount ends."""
        pool, buffer, device_fd = self._pool, self.buffer, self._device_fd
        read_into, process, write = self._reader.readinto, self._dispatcher.process, os.write
        while True:
            if pool.leader is not self:
                pool.follow(self)
            try:
                size = read_into(buffer)
            except OSError as error:
                if error.errno in _RETRY_ERRNOS:
                    continue
                return
            if not size:
                return
            reply = process(self, size)
            if reply is None:
                continue
            try:
                if isinstance(reply, bytes):
                    write(device_fd, reply)
                else:
                    os.writev(device_fd, reply)
            except OSError as error:
                self._handle_write_error(error)

    def _handle_write_error(self, error: OSError) -> None:
        """Reply EIO if the kernel rejected the reply; ENOENT: the request was aborted."""
        if error.errno == errno.ENOENT or error.errno in _ENDED_ERRNOS:
            return
        log.error("the kernel rejected the reply to a request for node %d: %s", self.node_id, error)
        with contextlib.suppress(OSError):
            os.write(self._device_fd, wire.OUT_HEADER.pack(wire.OUT_HEADER_SIZE, -errno.EIO, self.unique))

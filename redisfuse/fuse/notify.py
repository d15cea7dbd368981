"""Notifications to the kernel: changes pushed into its caches (fuse(4)).

Threading: every method may be called by any thread, also from an operation: it queues and returns. One thread writes,
because the kernel makes a notification wait for a request that is under way in the same inode: the writer must hold no
lock that an operation takes, and must not serve a request. Change the caches of this process first, then notify: what
the kernel asks for after a notification must be answered with the new state.

Lock: `_condition` guards the fields below it. It is a leaf, held for a few operations.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections import deque
from typing import NamedTuple

from redisfuse.fuse import wire
from redisfuse.fuse.interface import ConnectionInfo

log = logging.getLogger("redisfuse.fuse")

_DETACH_TIMEOUT_SECONDS = 5.0  # seconds that `detach` waits for a notification that waits for a request


class NotificationCounters(NamedTuple):
    """Since the mount began. `absent`: the kernel had nothing cached; `failed`: it refused."""

    written: int = 0
    absent: int = 0
    failed: int = 0


class KernelNotifier:
    """The notifications of one mount, written in the order in which they were queued; duplicates that wait are one."""

    def __init__(self) -> None:
        self._device_fd = -1
        self._thread: threading.Thread | None = None
        self.has_expire_only = self.has_inc_epoch = False  # known once attached
        self.unsupported_reason = "not mounted yet"  # empty while every change reaches the kernel
        self.counters = NotificationCounters()
        self._condition = threading.Condition(threading.Lock())
        self._queue: deque[bytes] = deque()
        self._queued: set[bytes] = set()  # the invalidations in the queue since the last STORE
        self._is_writing = False
        self._is_closed = False

    @property
    def is_supported(self) -> bool:
        """Whether every change reaches the kernel, so that long time-outs are safe."""
        return not self.unsupported_reason

    def invalidate_inode(self, node_id: int, offset: int = 0, length: int = 0) -> None:
        """Drop the attributes of a node and its pages from `offset` on (`length` 0: to the end), mapped ones too."""
        self._put(wire.pack_inval_inode(node_id, offset, length))

    def invalidate_attributes(self, node_id: int) -> None:
        """Drop the attributes of a node, and keep its pages."""
        self._put(wire.pack_inval_inode(node_id, -1))

    def invalidate_entry(self, parent_id: int, name: bytes, *, expire_only: bool = False) -> None:
        """Drop a name, found or not found.

        `expire_only`: look it up again, but leave it to the programs that use it: for a directory that continues to
        exist, whose getcwd(3) would fail otherwise. (Before Linux 6.2, without `has_expire_only`, it is dropped.)
        """
        self._put(wire.pack_inval_entry(parent_id, name, wire.EXPIRE_ONLY if expire_only else 0))

    def delete_entry(self, parent_id: int, child_id: int, name: bytes) -> None:
        """Remove a name as unlink(2) and rmdir(2) do, with the events for inotify(7)."""
        self._put(wire.pack_delete(parent_id, child_id, name))

    def store(self, node_id: int, offset: int, data: bytes) -> None:
        """Put bytes into the page cache of a node, which becomes at least so long."""
        self._put(wire.pack_store(node_id, offset, data), is_store=True)

    def expire_attributes_now(self, node_id: int) -> None:
        """Drop the attributes of a node before returning. Never blocks: it touches no page and no name."""
        self._write_now(wire.pack_inval_inode(node_id, -1))

    def store_now(self, node_id: int, offset: int, data: bytes) -> None:
        """Do what `store` does before returning. Only while no READ of the node is under way in this thread."""
        self._write_now(wire.pack_store(node_id, offset, data))

    def _write_now(self, notification: bytes) -> None:
        with contextlib.suppress(OSError):  # the kernel has evicted the node, or memory is short: it sends a READ
            os.write(self._device_fd, notification)

    def increment_epoch(self) -> None:
        """Let the kernel look up every name again (where `has_inc_epoch`)."""
        self._put(wire.pack_inc_epoch())

    def drain(self, timeout: float) -> bool:
        """Wait until all that was queued is written; False if it was not within `timeout` seconds."""
        with self._condition:
            return self._condition.wait_for(lambda: self._is_closed or not (self._queue or self._is_writing), timeout)

    def _put(self, notification: bytes, *, is_store: bool = False) -> None:
        with self._condition:
            if self._is_closed or notification in self._queued:
                return
            self._queue.append(notification)
            if is_store:
                self._queued.clear()  # an invalidation after it is not the one before it
            else:
                self._queued.add(notification)
            self._condition.notify_all()

    # -- its life --------------------------------------------------------------------------------------------------

    def attach(self, device_fd: int, connection: ConnectionInfo) -> None:
        """Start to write, on a duplicate of the descriptor, once INIT is answered."""
        self._device_fd = os.dup(device_fd)
        self.has_expire_only, self.has_inc_epoch = connection.has_expire_only, connection.has_inc_epoch
        self.unsupported_reason = ""
        self._thread = threading.Thread(target=self._run_writer, name="fuse-notifier", daemon=True)
        self._thread.start()

    def detach(self) -> None:
        """Write nothing from now on, and close the descriptor."""
        with self._condition:
            self._is_closed = True
            self.unsupported_reason = "not mounted any more"
            self._queue.clear()
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(_DETACH_TIMEOUT_SECONDS)

    def _run_writer(self) -> None:
        written = absent = failed = 0
        try:
            while True:
                with self._condition:
                    self._is_writing = False
                    self._condition.notify_all()
                    self._condition.wait_for(lambda: self._is_closed or self._queue)
                    if self._is_closed:
                        return
                    self._is_writing = True
                    batch = list(self._queue)
                    self._queue.clear()
                    self._queued.clear()
                for notification in batch:
                    if self._is_closed:
                        return
                    written += 1
                    try:
                        os.write(self._device_fd, notification)
                    except OSError as error:
                        if error.errno == errno.ENOENT:
                            absent += 1
                        elif error.errno in (errno.ENODEV, errno.ENOTCONN, errno.EPERM):  # unmounted; aborted
                            return
                        else:
                            failed += 1
                            log.debug("the kernel refused a notification: %s", error)
                    self.counters = NotificationCounters(written, absent, failed)
        except BaseException as error:
            self.unsupported_reason = f"the notifier failed: {error}"
            log.exception("the notifier failed")
        finally:
            with self._condition:
                self._is_closed = True
                self._is_writing = False
                self._condition.notify_all()
            self.unsupported_reason = self.unsupported_reason or "not mounted any more"
            os.close(self._device_fd)

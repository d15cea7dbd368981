"""Notifications, which invalidate or fill the caches of the kernel (fuse(4)).

Threads: any thread may call every method, also during an operation: the notification is queued. One thread writes,
because the kernel makes a notification wait for requests under way on the same inode: the writer must hold no lock that
an operation takes, and must not serve a request. Change the caches of this process before notifying the kernel: its
next request must be answered with the new state.

The queue is bounded. Instead of more notifications, everything is invalidated once, by a function of the caller in the
writer's thread, which writes each notification before it requests the next.

Lock: `_condition` guards the fields below it. It is a leaf, held for a few operations.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable

from redisfuse.fuse import wire
from redisfuse.fuse.interface import ConnectionInfo

log = logging.getLogger("redisfuse.fuse")

MAX_QUEUED_NOTIFICATIONS = 100_000
"""Of about 200 bytes. With more, everything is invalidated once instead."""

_EVERYTHING = b""  # in the queue: a call of `write_everything`
_STOP_TIMEOUT_SECONDS = 5.0  # seconds for which `stop` waits for a notification that waits for a request


class KernelNotifier:
    """The notifications of one mount, written in the order of queueing.

    An invalidation that is in the queue already is not queued again.
    """

    def __init__(self) -> None:
        self._device_fd = -1
        self._thread: threading.Thread | None = None
        self.has_inc_epoch = False  # set by `attach`
        self.unsupported_reason = "not mounted yet"  # empty while every change reaches the kernel
        self.write_everything: Callable[[], None] = lambda: None  # invalidates everything; set before the mount
        self._condition = threading.Condition(threading.Lock())
        self._queue: dict[bytes, None] = {}  # an ordered set, or _EVERYTHING alone
        self._is_writing = False
        self._is_closed = False

    @property
    def is_supported(self) -> bool:
        """Whether every change reaches the kernel, so that long time-outs are safe."""
        return not self.unsupported_reason

    def invalidate_inode(self, node_id: int) -> None:
        """Drop the attributes of a node and all its pages, mapped ones too."""
        self._put(wire.pack_inval_inode(node_id))

    def invalidate_attributes(self, node_id: int) -> None:
        """Drop the attributes of a node, and keep its pages."""
        self._put(wire.pack_inval_inode(node_id, keep_pages=True))

    def invalidate_entry(self, parent_id: int, name: bytes, *, expire_only: bool = False) -> None:
        """Drop a name, whether it is cached as present or as absent.

        With `expire_only` the kernel looks it up again, and programs keep using it meanwhile. Without that, getcwd(3)
        fails in a directory that continues to exist. Before Linux 6.2 the name is dropped.
        """
        self._put(wire.pack_inval_entry(parent_id, name, wire.EXPIRE_ONLY if expire_only else 0))

    def expire_attributes_now(self, node_id: int) -> None:
        """Drop a node's attributes before returning; blocks for no page and no name."""
        self._write_now(wire.pack_inval_inode(node_id, keep_pages=True))

    def store_now(self, node_id: int, offset: int, data: bytes) -> None:
        """Put bytes into the page cache of a node, which grows, before returning.

        Only while this thread serves no READ of the node.
        """
        self._write_now(wire.pack_store(node_id, offset, data))

    def _write_now(self, notification: bytes) -> None:
        with contextlib.suppress(OSError):  # the kernel has evicted the node or lacks memory: it will send a READ
            os.write(self._device_fd, notification)

    def increment_epoch(self) -> None:
        """Let the kernel look up every name again (where `has_inc_epoch`)."""
        self._put(wire.pack_inc_epoch())

    def invalidate_everything(self) -> None:
        """Have `write_everything` called by the writer, in place of all that is queued."""
        with self._condition:
            if not self._is_closed:
                self._queue = {_EVERYTHING: None}
                self._condition.notify_all()

    @property
    def queue_length(self) -> int:
        """The number of queued notifications; an invalidation of everything is one."""
        return len(self._queue)

    def drain(self, timeout: float) -> bool:
        """Wait until the queue is written; return False after `timeout` seconds."""
        with self._condition:
            return self._condition.wait_for(lambda: self._is_closed or not (self._queue or self._is_writing), timeout)

    def _put(self, notification: bytes) -> None:
        if threading.current_thread() is self._thread:  # in `write_everything`
            self._write(notification)
            return
        with self._condition:
            if self._is_closed or _EVERYTHING in self._queue:
                return
            self._queue[notification] = None
            if len(self._queue) > MAX_QUEUED_NOTIFICATIONS:
                self._queue = {_EVERYTHING: None}
            self._condition.notify_all()

    # -- start and end ---------------------------------------------------------------------------------------------

    def attach(self, device_fd: int, connection: ConnectionInfo) -> None:
        """Start to write on a duplicate of the descriptor, after the reply to INIT."""
        self._device_fd = os.dup(device_fd)
        self.has_inc_epoch = connection.has_inc_epoch
        self.unsupported_reason = ""
        self._thread = threading.Thread(target=self._run_writer, name="fuse-notifier", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop writing the queue, while the workers still serve.

        A notification that waits for a request would otherwise wait forever, uninterruptibly, for a worker to read it.
        """
        with self._condition:
            self._is_closed = True
            self.unsupported_reason = "not mounted any more"
            self._queue.clear()
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_SECONDS)

    def detach(self) -> None:
        """Stop, and close the descriptor; the workers have ended."""
        self.stop()
        if self._device_fd >= 0:
            os.close(self._device_fd)
            self._device_fd = -1

    def _run_writer(self) -> None:
        try:
            while True:
                with self._condition:
                    self._is_writing = False
                    self._condition.notify_all()
                    self._condition.wait_for(lambda: self._is_closed or self._queue)
                    if self._is_closed:
                        return
                    self._is_writing = True
                    batch, self._queue = list(self._queue), {}
                for notification in batch:
                    self._write(notification) if notification else self.write_everything()
        except ConnectionError:
            return
        except BaseException as error:
            self.unsupported_reason = f"the notifier failed: {error}"
            log.exception("the notifier failed")
        finally:
            with self._condition:
                self._is_closed = True
                self._is_writing = False
                self._condition.notify_all()
            self.unsupported_reason = self.unsupported_reason or "not mounted any more"

    def _write(self, notification: bytes) -> None:
        """Write one notification, in the writer's thread.

        Raises ConnectionError if the mount has ended.
        """
        if self._is_closed:
            raise ConnectionError
        try:
            os.write(self._device_fd, notification)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENOTCONN, errno.EPERM):  # unmounted or aborted
                raise ConnectionError from None
            if error.errno != errno.ENOENT:  # ENOENT: the kernel has nothing cached there
                log.debug("the kernel refused a notification: %s", error)

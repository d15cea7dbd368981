"""Notifications, which invalidate or fill the caches of the kernel (fuse(4)).

Threads: any thread may call every method, also during an operation: the notification is queued. One thread writes,
because the kernel makes a notification wait for requests under way on the same inode: the writer must hold no lock that
an operation takes, and must not serve a request. Change the caches of this process before notifying the kernel: its
next request must be answered with the new state.

The queue is bounded. Instead of more notifications, everything is invalidated once, in the writer's thread. The flags
of a notification are chosen when it is written.

Lock: `_lock` guards the fields below it. It is a leaf, held for a few operations.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from typing import Protocol

from redisfuse.fuse import wire
from redisfuse.fuse.interface import ConnectionInfo

log = logging.getLogger("redisfuse.fuse")

MAX_QUEUED_NOTIFICATIONS = 100_000
"""Of about 200 bytes. With more, everything is invalidated once instead."""

_Notification = tuple[int, bytes | bool]
"""The node id of a directory and a name in it, or a node id and whether its pages stay."""

_EVERYTHING: _Notification = (0, False)  # in the queue: a call of `CachedTree.write_everything`
_EPOCH: _Notification = (0, True)
_DRAIN_POLL_SECONDS = 0.002
_STOP_TIMEOUT_SECONDS = 5.0  # seconds for which `stop` waits for a notification that waits for a request


class CachedTree(Protocol):
    """The tree, as far as the kernel has cached it.

    The writer's thread calls it, without a lock.
    """

    def keeps_dentry(self, parent_id: int, name: bytes) -> bool:
        """Return whether an invalidated name must keep its dentry: it only expires."""

    def postpones_attributes(self, node_id: int) -> bool:
        """Return whether the attributes of a node are invalidated later."""

    def write_everything(self) -> None:
        """Invalidate all that the kernel knows; each notification is written at once."""


class KernelNotifier:
    """The notifications of one mount, written in the order of queueing.

    An invalidation that is in the queue already is not queued again.
    """

    def __init__(self) -> None:
        self._device_fd = -1
        self._thread: threading.Thread | None = None
        self._thread_id = 0
        self.has_inc_epoch = False  # set by `attach`
        self.unsupported_reason = "not mounted yet"  # empty while every change reaches the kernel
        self.cached_tree: CachedTree  # set before the mount
        self._lock = threading.Lock()
        self._wakeup = threading.Lock()  # the writer waits for it while `_is_waiting`
        self._wakeup.acquire()
        # In order, or _EVERYTHING alone; the value: whether a dentry stays, as of when its name was queued.
        self._queue: dict[_Notification, bool] = {}
        self._is_waiting = False
        self._is_writing = False
        self._is_closed = False

    @property
    def is_supported(self) -> bool:
        """Whether every change reaches the kernel, so that long time-outs are safe."""
        return not self.unsupported_reason

    def invalidate_inode(self, node_id: int) -> None:
        """Drop the attributes of a node and all its pages, mapped ones too."""
        self._put((node_id, False))

    def invalidate_attributes(self, node_id: int) -> None:
        """Drop the attributes of a node, and keep its pages."""
        self._put((node_id, True))

    def invalidate_entry(self, parent_id: int, name: bytes, *, keeps_dentry: bool = False) -> None:
        """Drop a name, whether it is cached as present or as absent.

        With `keeps_dentry`, or if its dentry must stay now or when this is written (`CachedTree.keeps_dentry`), the
        kernel looks the name up again, and programs keep using it meanwhile. Without that, getcwd(3) fails in a
        directory that continues to exist. Before Linux 6.2 the name is dropped.
        """
        keeps_dentry = keeps_dentry or self.cached_tree.keeps_dentry(parent_id, name)
        self._put((parent_id, name), keeps_dentry=keeps_dentry)

    def increment_epoch(self) -> None:
        """Let the kernel look up every name again (where `has_inc_epoch`)."""
        self._put(_EPOCH)

    def invalidate_everything(self) -> None:
        """Have the writer call `CachedTree.write_everything`, in place of the queue."""
        with self._lock:
            self._queue = {_EVERYTHING: False}
            self._wake_writer()

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

    @property
    def queue_length(self) -> int:
        """The number of queued notifications; an invalidation of everything is one."""
        return len(self._queue)

    def drain(self, timeout: float) -> bool:
        """Wait until the queue is written; return False after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not self._is_closed and (self._queue or self._is_writing):
            if time.monotonic() > deadline:
                return False
            time.sleep(_DRAIN_POLL_SECONDS)
        return True

    def _put(self, notification: _Notification, *, keeps_dentry: bool = False) -> None:
        if threading.get_ident() == self._thread_id:  # in `write_everything`
            self._write(notification, keeps_dentry)
            return
        with self._lock:
            if self._is_closed or _EVERYTHING in self._queue:
                return
            self._queue[notification] = keeps_dentry or self._queue.get(notification, False)
            if len(self._queue) > MAX_QUEUED_NOTIFICATIONS:
                self._queue = {_EVERYTHING: False}
            self._wake_writer()

    def _wake_writer(self) -> None:
        """Let the writer look at the queue. The lock is held."""
        if self._is_waiting:
            self._is_waiting = False
            self._wakeup.release()

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
        with self._lock:
            self._is_closed = True
            self.unsupported_reason = "not mounted any more"
            self._queue.clear()
            self._wake_writer()
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_SECONDS)

    def detach(self) -> None:
        """Stop, and close the descriptor; the workers have ended."""
        self.stop()
        if self._device_fd >= 0:
            os.close(self._device_fd)
            self._device_fd = -1

    def _run_writer(self) -> None:
        self._thread_id = threading.get_ident()
        try:
            while not self._is_closed:
                with self._lock:
                    batch, self._queue = self._queue, {}
                    self._is_writing = bool(batch)
                    self._is_waiting = not batch and not self._is_closed
                    is_waiting = self._is_waiting
                for notification, keeps_dentry in batch.items():
                    self._write(notification, keeps_dentry)
                if is_waiting:
                    self._wakeup.acquire()
        except ConnectionError:
            return
        except BaseException as error:
            self.unsupported_reason = f"the notifier failed: {error}"
            log.exception("the notifier failed")
        finally:
            self._is_closed = True
            self.unsupported_reason = self.unsupported_reason or "not mounted any more"

    def _write(self, notification: _Notification, keeps_dentry: bool) -> None:
        """Write one notification, in the writer's thread.

        Raises ConnectionError if the mount has ended.
        """
        if self._is_closed:
            raise ConnectionError
        if notification is _EVERYTHING:
            self.cached_tree.write_everything()
            return
        if notification[1] is True and self.cached_tree.postpones_attributes(notification[0]):
            return
        try:
            os.write(self._device_fd, self._pack(notification, keeps_dentry))
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENOTCONN, errno.EPERM):  # unmounted or aborted
                raise ConnectionError from None
            if error.errno != errno.ENOENT:  # ENOENT: the kernel has nothing cached there
                log.debug("the kernel refused a notification: %s", error)

    def _pack(self, notification: _Notification, keeps_dentry: bool) -> bytes:
        if notification is _EPOCH:
            return wire.pack_inc_epoch()
        node_id, name = notification
        if isinstance(name, bytes):
            # Meanwhile the name may have become that of a directory, or of an open file.
            keeps_dentry = keeps_dentry or self.cached_tree.keeps_dentry(node_id, name)
            return wire.pack_inval_entry(node_id, name, wire.EXPIRE_ONLY if keeps_dentry else 0)
        return wire.pack_inval_inode(node_id, keep_pages=name)

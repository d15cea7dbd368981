"""Pushes changes into the kernel's caches: notifications written to the connection's descriptor (fuse(4), MEASURED.md).

Threading: `invalidate` and `invalidate_all` may be called by any thread, also from a callback: they only queue. One
thread writes, because the kernel makes a notification wait for a request that is under way in the same place: whoever
writes must hold no lock that a callback takes, and must not be a callback. Tell the caches of this process first, then
the notifier: what the kernel asks again after a notification must be answered with what is new.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from redisfuse.fuse.dcache_probe import NEGATIVE_DENTRY, ROOT_NODE_ID, DcacheNode, DcacheProbe
from redisfuse.fuse.page_cache import PageCacheState
from redisfuse.fuse.wire import EXPIRE_ONLY, INC_EPOCH, inval_attributes, inval_entry, inval_inode

log = logging.getLogger("redisfuse.fuse")

_MAX_BATCH_PATHS = 1000  # paths looked up together before their notifications are written
_MAX_PENDING_PATHS = 200_000  # paths queued; past it all is invalidated
_MAX_RECENT_NODES = 20_000  # node ids remembered of names that were invalidated
_MIN_PUSH_INTERVAL_SECONDS = 0.2  # seconds between two notifications of one path
_COALESCE_DELAY_SECONDS = 0.005  # seconds that paths are let gather while they come thick and fast
_DETACH_TIMEOUT_SECONDS = 5.0  # seconds that `detach` waits for a notification that waits for a request

_KEEP_DENTRY, _ANCESTORS = 1, 2  # what is known of a queued path


class NotificationCounters(NamedTuple):
    """Since the mount began. `absent`: the kernel had nothing to forget; `failed`: it refused."""

    inodes: int = 0
    entries: int = 0
    epochs: int = 0
    absent: int = 0
    failed: int = 0


class InvalidationQueue:
    """One mount's way to tell the kernel. `Binding.run` attaches and detaches it; `start` begins its thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._pending: dict[bytes, int] = {}
        self._must_invalidate_all = False
        self._is_writing = False
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._device_fd = -1
        self._dcache_probe: DcacheProbe | None = None
        self._page_cache: PageCacheState | None = None
        self._recent_nodes: dict[bytes, DcacheNode] = {}
        self._lookup_results: dict[
            bytes, tuple[DcacheNode, bool]
        ] = {}  # paths that were looked up for what is being written now
        self._last_push_times: dict[bytes, float] = {}  # when each path was pushed last: time.monotonic()
        self._unsupported_reason = "not mounted yet"
        self._has_inc_epoch = False
        self._has_expire_only = False
        self._counts = [0] * len(NotificationCounters._fields)

    @property
    def is_supported(self) -> bool:
        """Whether every change reaches the kernel, so that it may believe for long what it was told."""
        return not self.unsupported_reason

    @property
    def unsupported_reason(self) -> str:
        """Why it does not; empty if it does."""
        if not self._unsupported_reason and self._page_cache is not None and self._page_cache.has_root_names_overflow:
            return "too many names at the top for a kernel that can't forget all at once (Linux 6.16 can)"
        return self._unsupported_reason

    @property
    def has_inc_epoch(self) -> bool:
        """Whether the kernel has INC_EPOCH (Linux 6.16). Without it `invalidate_all` goes name by name at the top."""
        return self._has_inc_epoch

    @property
    def counters(self) -> NotificationCounters:
        return NotificationCounters(*self._counts)

    # -- its life ----------------------------------------------------------------------------------------------------

    def attach(self, descriptor: int, mountpoint: Path, page_cache: PageCacheState) -> None:
        """The mount is there. Called by the binding, before the first request is answered."""
        self._page_cache = page_cache
        page_cache.invalidate_paths = self.invalidate
        self._device_fd = os.dup(descriptor)
        self._has_expire_only = _kernel_version() >= (6, 2)
        try:
            self._dcache_probe = DcacheProbe(mountpoint)
            self._has_inc_epoch = self._write_notification(INC_EPOCH) == 0
            if not self._has_inc_epoch:
                page_cache.root_names = set()
            self._unsupported_reason = ""
        except OSError as error:
            self._unsupported_reason = f"the kernel can't be told of changes: {error.strerror}"
        self._counts = [0] * len(self._counts)

    def start(self) -> None:
        """Begin to notify: after any fork."""
        if self._thread is None and self.is_supported:
            self._thread = threading.Thread(target=self._run_writer, name="fuse-notifier", daemon=True)
            self._thread.start()

    def detach(self) -> None:
        """The mount ends: nothing is written from now on."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._unsupported_reason = "not mounted any more"
            self._pending.clear()
            self._condition.notify_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_DETACH_TIMEOUT_SECONDS)
        if thread is None:
            self._close_device()

    def close(self) -> None:
        self.detach()

    def _close_device(self) -> None:
        descriptor, self._device_fd = self._device_fd, -1
        if descriptor >= 0:
            os.close(descriptor)
        if self._dcache_probe is not None:
            self._dcache_probe.close()

    # -- from everywhere ---------------------------------------------------------------------------------------------

    def invalidate(self, paths: Iterable[bytes], *, ancestors: bool = False, keep_dentry: bool = False) -> None:
        """What is at these paths may have changed, come or gone; returns at once.

        For each: attributes, pages and (of a directory) the listing, then the name in its directory, found or not
        found. `names_stand`: the names are as they were and what is there is of the same kind; only the rest has
        changed. A directory whose name stands keeps everything below it. `parents_too`: attributes and listings of
        the directories above as well.
        """
        told = [path.strip(b"/") for path in paths]
        if self._page_cache is None or not told:
            return
        self._page_cache.on_change(told)
        what = (_KEEP_DENTRY if keep_dentry else 0) | (_ANCESTORS if ancestors else 0)
        with self._lock:
            if self._is_closed:
                return
            pending = self._pending
            for path in told:
                before = pending.get(path)
                pending[path] = (
                    what if before is None else (what & before & _KEEP_DENTRY) | ((what | before) & _ANCESTORS)
                )
            if len(pending) > _MAX_PENDING_PATHS:
                self._queue_invalidate_all()
            self._condition.notify_all()

    def invalidate_all(self) -> None:
        """Anything may have changed: every name, attribute, page and listing; returns at once."""
        with self._lock:
            if not self._is_closed and self._page_cache is not None:
                self._queue_invalidate_all()
                self._condition.notify_all()

    def _queue_invalidate_all(self) -> None:
        self._pending.clear()
        self._must_invalidate_all = True

    def drain(self, timeout: float) -> bool:
        """Wait until all that was queued is written; False if it was not within `timeout` seconds."""
        with self._lock:
            return self._condition.wait_for(
                lambda: self._is_closed or not (self._pending or self._must_invalidate_all or self._is_writing), timeout
            )

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run_writer(self) -> None:
        try:
            while True:
                with self._lock:
                    self._is_writing = False
                    self._condition.notify_all()
                    due = self._wait_for_due_paths()
                    if self._is_closed:
                        return
                    self._is_writing = True
                    everything, self._must_invalidate_all = self._must_invalidate_all, False
                    pending = {path: self._pending.pop(path) for path in due}
                self._process_pending(everything, list(pending.items()))
                time.sleep(_COALESCE_DELAY_SECONDS)
        except BaseException as error:
            # Without it the kernel would go on believing: say so, so that nobody gives it long time-outs.
            if not self._is_closed:
                self._unsupported_reason = f"the notifier failed: {error}"
                log.exception("the notifier failed")
        finally:
            self._close_device()

    def _wait_for_due_paths(self) -> list[bytes]:
        """The paths to push now: where files are not opened, none again so soon that it would meet a read of what was
        pushed before."""
        while True:
            self._condition.wait_for(lambda: self._is_closed or self._pending or self._must_invalidate_all)
            if (
                self._is_closed
                or self._must_invalidate_all
                or self._page_cache is None
                or self._page_cache.rename_to_stale is None
            ):
                return list(self._pending)
            now, pushed = time.monotonic(), self._last_push_times
            due = [path for path in self._pending if now - pushed.get(path, 0.0) >= _MIN_PUSH_INTERVAL_SECONDS]
            if due:
                if len(pushed) > _MAX_RECENT_NODES:
                    self._last_push_times = pushed = {
                        path: when for path, when in pushed.items() if now - when < _MIN_PUSH_INTERVAL_SECONDS
                    }
                pushed.update(dict.fromkeys(due, now))
                return due
            self._condition.wait(_MIN_PUSH_INTERVAL_SECONDS / 4)

    def _process_pending(self, invalidate_all: bool, pending: list[tuple[bytes, int]]) -> None:
        if invalidate_all:
            self._process_invalidate_all()
        for start in range(0, len(pending), _MAX_BATCH_PATHS):
            if self._is_closed:
                return
            self._process_batch(pending[start : start + _MAX_BATCH_PATHS])

    def _process_batch(self, pending: list[tuple[bytes, int]]) -> None:
        """All are looked up before anything is written, since each notification makes its directory uncached."""
        assert self._page_cache is not None
        self._lookup_results.clear()
        retire = self._page_cache.rename_to_stale
        inodes: dict[int, bool] = {}
        entries: dict[tuple[int, bytes], int] = {}
        files: list[tuple[int, bytes]] = []
        for path, what in pending:
            node, cached = self._find_node(path)
            if node.node_id:
                inodes[node.node_id] = True
            if path and not (what & _KEEP_DENTRY and node.node_id and cached):
                parent = self._add_entry(path, node, entries)
                if (
                    retire
                    and parent
                    and node.node_id
                    and not node.is_directory
                    and self._page_cache.has_been_read(b"/" + path)
                ):
                    files.append((parent, path.rpartition(b"/")[2]))
                    inodes[node.node_id] = False  # its pages stay
            if what & _ANCESTORS:
                self._add_ancestors(path, inodes, entries)
        if retire is not None:
            for parent, name in files:
                retire(parent, name)
        for number, pages in inodes.items():
            self._inval_inode(number, drop_pages=pages)
        for (parent, name), flags in entries.items():
            self._inval_entry(parent, name, flags)

    def _add_entry(self, path: bytes, node: DcacheNode, entries: dict[tuple[int, bytes], int]) -> int:
        """The directory's node; 0 if it is not cached."""
        directory, _, name = path.rpartition(b"/")
        parent = self._find_directory(directory).node_id
        if parent:
            gentle = self._has_expire_only and node.node_id and not node.is_directory
            entries[parent, name] = EXPIRE_ONLY if gentle else 0
        return parent

    def _add_ancestors(
        self,
        path: bytes,
        inodes: dict[int, bool],
        entries: dict[tuple[int, bytes], int],
    ) -> None:
        while path:
            path = path.rpartition(b"/")[0]
            node = self._find_directory(path)
            if node.node_id:
                inodes[node.node_id] = True
            else:
                self._add_entry(path, node, entries)

    def _find_directory(self, path: bytes) -> DcacheNode:
        return self._find_node(path)[0] if path else DcacheNode(ROOT_NODE_ID, True)

    def _find_node(self, path: bytes) -> tuple[DcacheNode, bool]:
        """The node of a path, and whether that is what is cached now; else what it was when it was last found."""
        found = self._lookup_results.get(path)
        if found is None:
            found = self._lookup_results[path] = self._lookup_node(path)
        return found

    def _lookup_node(self, path: bytes) -> tuple[DcacheNode, bool]:
        assert self._dcache_probe is not None
        node = self._dcache_probe.lookup(path)
        remembered = self._recent_nodes
        if node is None:
            return remembered.get(path, NEGATIVE_DENTRY), False
        if node.node_id:
            remembered.pop(path, None)
            remembered[path] = node
            if len(remembered) > _MAX_RECENT_NODES:
                for old in list(remembered)[: _MAX_RECENT_NODES // 10]:
                    del remembered[old]
        return node, True

    def _process_invalidate_all(self) -> None:
        assert self._page_cache is not None
        self._lookup_results.clear()
        nodes = {self._find_node(path)[0].node_id: True for path in self._page_cache.on_change_all()}
        nodes.update(
            (node.node_id, node.is_directory or self._page_cache.rename_to_stale is None)
            for node in self._recent_nodes.values()
        )
        entries: list[tuple[int, bytes]] = []
        if self._page_cache.rename_to_stale is not None:
            entries = self._rename_all_to_stale(
                self._page_cache.rename_to_stale, self._page_cache.list_read_nodes(), nodes
            )
        if self._has_inc_epoch:
            self._count_result(2, self._write_notification(INC_EPOCH))
        else:
            for name in list(self._page_cache.root_names or ()):
                self._inval_entry(ROOT_NODE_ID, name, 0)  # takes everything below it along, but for what is open
            for parent, name in entries:
                self._inval_entry(parent, name, EXPIRE_ONLY if self._has_expire_only else 0)
        for number, pages in {**nodes, ROOT_NODE_ID: True}.items():
            if number:
                self._inval_inode(number, drop_pages=pages)

    def _rename_all_to_stale(
        self, rename_to_stale: Callable[[int, bytes], None], paths: Iterable[bytes], nodes: dict[int, bool]
    ) -> list[tuple[int, bytes]]:
        """Nobody who opens these files from now on reads what others read. Their names in their directories' nodes."""
        entries: list[tuple[int, bytes]] = []
        for path in paths:
            directory, _, name = path.strip(b"/").rpartition(b"/")
            nodes[self._find_node(path.strip(b"/"))[0].node_id] = False  # the pages may stay
            parent = self._find_directory(directory).node_id
            if parent:
                rename_to_stale(parent, name)
                entries.append((parent, name))
        return entries

    # -- notifications -----------------------------------------------------------------------------------------------

    def _inval_inode(self, node_id: int, *, drop_pages: bool) -> None:
        """Attributes, and all pages (from 0, a length of 0 being to the end)."""
        self._count_result(
            0, self._write_notification(inval_inode(node_id) if drop_pages else inval_attributes(node_id))
        )

    def _inval_entry(self, parent: int, name: bytes, flags: int) -> None:
        self._count_result(1, self._write_notification(inval_entry(parent, name, flags)))

    def _count_result(self, counter_index: int, error_number: int) -> None:
        if error_number == 0:
            self._counts[counter_index] += 1
        elif error_number == errno.ENOENT:
            self._counts[3] += 1
        else:
            self._counts[4] += 1
            if error_number in (errno.ENODEV, errno.ENOTCONN, errno.EPERM, errno.EBADF):
                self._is_closed = True  # unmounted
            else:
                log.warning("the kernel refused a notification: %s", os.strerror(error_number))

    def _write_notification(self, notification: bytes) -> int:
        """0, or the errno."""
        try:
            os.write(self._device_fd, notification)
        except OSError as error:
            return error.errno or errno.EIO
        return 0


def _kernel_version() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(digit for digit in minor if digit.isdigit()) or 0)

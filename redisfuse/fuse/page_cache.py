"""What the kernel may hold of this mount that only its callbacks tell: open files, kept pages, names at the top.

Pages. A file's pages in the kernel are shared by all who have it open, but each open file reads what its own open saw.
So pages are kept over an open only if they were read since the last change of that path, and by nobody who opened it
before the change; while such an older one is still open, new ones read past the page cache. A change may be seen before
it is told of: so, where the tree can say cheaply what is read, that is compared too.

The lock is held for a few dictionary operations, in callbacks and by whoever tells of a change; nothing waits under it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from redisfuse.fuse.interface import OpenReply

_MAX_CACHED_PATHS = 200_000  # paths whose pages are known to be right; past it all are dropped at their next open
_SIZE_CHANGE_WINDOW_SECONDS = 10.0  # seconds for which it is remembered that a length was another one before
_MAX_SIZE_CHANGES = 100_000
_MAX_ROOT_NAMES = 500_000  # names in the root, remembered only where the kernel can't forget all at once


class _OpenPath:
    """A path that somebody has open, or is opening."""

    __slots__ = ("content_hash", "opener_count", "stale_openers", "version")

    def __init__(self) -> None:
        self.opener_count = 0
        self.version = 0  # one more for each change told
        self.stale_openers = 0  # how many of `opener_count` began before the last change
        self.content_hash: int | None = None  # stands for what the first of them reads


class PageCacheState:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open_paths: dict[bytes, _OpenPath] = {}
        # path, its version when it was opened, and whether it ends where it ended then
        self._open_handles: dict[int, tuple[bytes, int, bool]] = {}
        # hashes of paths whose pages, if there are any, are right -> what stands for their content
        self._valid_pages: dict[int, int | None] = {}
        self._kernel_sizes: dict[int, int] = {}  # hashes of paths -> the length in bytes that the kernel was last told
        self._size_change_times: dict[
            int, float
        ] = {}  # hashes of paths -> when the kernel was told another length than before
        self.root_names: set[bytes] | None = None  # names at the top that the kernel was asked about, if that is needed
        self.invalidate_paths: Callable[[Sequence[bytes]], object] = (
            list  # what makes the kernel ask about paths again, soon
        )
        # Where files are not opened: what retires a name in a directory's node, and the paths that were read.
        self.rename_to_stale: Callable[[int, bytes], None] | None = None
        self.has_been_read: Callable[[bytes], bool] = bool
        self.list_read_nodes: Callable[[], Sequence[bytes]] = tuple

    # -- from callbacks ----------------------------------------------------------------------------------------------

    def begin_open(self, path: bytes) -> int:
        """Before the tree is asked. The answer goes to `finish_open` or `abort_open`."""
        with self._lock:
            file = self._open_paths.get(path)
            if file is None:
                file = self._open_paths[path] = _OpenPath()
            file.opener_count += 1
            return file.version

    def finish_open(self, path: bytes, version: int, reply: OpenReply) -> tuple[bool, bool]:
        """(direct_io, keep_cache) for the kernel, from what the tree said."""
        mark = hash(path)
        with self._lock:
            self._open_handles[reply.handle] = (path, version, reply.size is not None)
            file = self._open_paths[path]
            if reply.direct_io or not self._can_share_pages(file, version, reply):
                return True, False
            if reply.size is not None and self._kernel_sizes.get(mark) != reply.size:
                return True, False
            if version != file.version or not reply.keep_cache:
                self._valid_pages.pop(mark, None)
                return False, False
            if mark in self._valid_pages and self._valid_pages[mark] == reply.content_hash:
                return False, True
            self._mark_pages_valid(mark, reply.content_hash)
            return False, False

    def _can_share_pages(self, open_path: _OpenPath, version: int, reply: OpenReply) -> bool:
        """Whether who opens a file now may read the pages of those who have it open."""
        if open_path.opener_count == 1:
            open_path.content_hash = reply.content_hash
        if reply.shares_pages is not None:
            return reply.shares_pages
        return open_path.content_hash == reply.content_hash and not (
            open_path.stale_openers and version == open_path.version
        )

    def _mark_pages_valid(self, path_hash: int, content_hash: int | None = None) -> None:
        if len(self._valid_pages) >= _MAX_CACHED_PATHS:
            self._valid_pages.clear()
        self._valid_pages[path_hash] = content_hash

    def abort_open(self, path: bytes, version: int) -> None:
        self._close_path(path, version, has_fixed_size=False)

    def on_release(self, handle: int) -> None:
        found = self._open_handles.pop(handle, None)
        if found is not None:
            self._close_path(*found)

    def _close_path(self, path: bytes, version: int, has_fixed_size: bool) -> None:
        with self._lock:
            file = self._open_paths[path]
            file.opener_count -= 1
            older = version != file.version
            if older:
                file.stale_openers -= 1
                self._valid_pages.pop(hash(path), None)  # it may have read pages of what it had opened
                if has_fixed_size:
                    self._kernel_sizes.pop(
                        hash(path), None
                    )  # and where that ends, the kernel thinks that the file does
            if not file.opener_count:
                del self._open_paths[path]
        if older and has_fixed_size:
            self.invalidate_paths([path])

    def is_listing_cached(self, path: bytes) -> bool:
        """Whether the listing that the kernel may hold of a directory is right; from now on it is."""
        mark = hash(path)
        with self._lock:
            if mark in self._valid_pages:
                return True
            self._mark_pages_valid(mark)
            return False

    def on_getattr(self, path: bytes, size: int) -> None:
        """The kernel is told how long a file is."""
        with self._lock:
            if len(self._kernel_sizes) >= _MAX_CACHED_PATHS:
                self._kernel_sizes.clear()  # those files are read past the page cache until their length is asked again
            self._set_kernel_size(hash(path), size)

    def _set_kernel_size(self, path_hash: int, size: int) -> None:
        before = self._kernel_sizes.get(path_hash)
        if before != size:
            self._kernel_sizes[path_hash] = size
            if before is not None:
                if len(self._size_change_times) >= _MAX_SIZE_CHANGES:
                    now = time.monotonic()
                    self._size_change_times = {
                        mark: when
                        for mark, when in self._size_change_times.items()
                        if now - when <= _SIZE_CHANGE_WINDOW_SECONDS
                    }
                self._size_change_times[path_hash] = time.monotonic()

    def kernel_size(self, path: bytes) -> tuple[int | None, bool]:
        """The length that the kernel was last told, if that is remembered; and whether it was told no other lately.

        (It may not have taken the last, if a change was pushed at that moment.)
        """
        mark = hash(path)
        size = self._kernel_sizes.get(mark)
        return size, size is not None and time.monotonic() - self._size_change_times.get(
            mark, 0.0
        ) > _SIZE_CHANGE_WINDOW_SECONDS

    def on_readdirplus(self, sizes: dict[int, int]) -> None:
        """The same for many: hash of a path → length."""
        with self._lock:
            if len(self._kernel_sizes) >= _MAX_CACHED_PATHS:
                self._kernel_sizes.clear()
            for mark, size in sizes.items():
                self._set_kernel_size(mark, size)

    def on_write(self, handle: int, end: int) -> None:
        """A write made a file at least `end` bytes long, which the kernel knows without being told."""
        with self._lock:
            mark = hash(self._open_handles[handle][0])
            if end > self._kernel_sizes.get(mark, 0):
                self._kernel_sizes[mark] = end

    def on_truncate(self, path: bytes | None, handle: int | None, size: int) -> None:
        """A truncate gave a file this length."""
        with self._lock:
            if handle is not None:
                path = self._open_handles[handle][0]
            if path is not None:
                self._kernel_sizes[hash(path)] = size

    def on_lookup(self, path: bytes) -> None:
        """The kernel asks about a path."""
        top = self.root_names
        if top is not None and len(top) < _MAX_ROOT_NAMES:
            top.add(path[1:].partition(b"/")[0])

    # -- from the notifier -------------------------------------------------------------------------------------------

    @property
    def has_root_names_overflow(self) -> bool:
        """Whether there are more names at the top than are remembered."""
        return self.root_names is not None and len(self.root_names) >= _MAX_ROOT_NAMES

    def on_change(self, paths: Iterable[bytes]) -> None:
        """These paths (without leading slash) have changed."""
        with self._lock:
            for path in paths:
                path = b"/" + path
                self._valid_pages.pop(hash(path), None)
                file = self._open_paths.get(path)
                if file is not None:
                    file.version += 1
                    file.stale_openers = file.opener_count

    def on_change_all(self) -> list[bytes]:
        """All may have changed. The open paths, without leading slash."""
        with self._lock:
            self._valid_pages.clear()
            for file in self._open_paths.values():
                file.version += 1
                file.stale_openers = file.opener_count
            return [path[1:] for path in self._open_paths]

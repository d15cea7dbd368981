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

from redisfuse.fuse.interface import Opened

_MOST_KEPT = 200_000  # paths whose pages are known to be right; past it all are dropped at their next open
_VARIED = 10.0  # seconds for which it is remembered that a length was another one before
_MOST_VARIED = 100_000
_MOST_TOP = 500_000  # names in the root, remembered only where the kernel can't forget all at once


class _File:
    """A path that somebody has open, or is opening."""

    __slots__ = ("content", "count", "older", "version")

    def __init__(self) -> None:
        self.count = 0
        self.version = 0  # one more for each change told
        self.older = 0  # how many of `count` began before the last change
        self.content: int | None = None  # stands for what the first of them reads


class Known:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[bytes, _File] = {}
        # path, its version when it was opened, and whether it ends where it ended then
        self._handles: dict[int, tuple[bytes, int, bool]] = {}
        # hashes of paths whose pages, if there are any, are right -> what stands for their content
        self._kept: dict[int, int | None] = {}
        self._sizes: dict[int, int] = {}  # hashes of paths -> the length in bytes that the kernel was last told
        self._varied: dict[int, float] = {}  # hashes of paths -> when the kernel was told another length than before
        self.top: set[bytes] | None = None  # names at the top that the kernel was asked about, if that is needed
        self.ask_again: Callable[[Sequence[bytes]], object] = list  # what makes the kernel ask about paths again, soon
        # Where files are not opened: what retires a name in a directory's node, and the paths that were read.
        self.retire: Callable[[int, bytes], None] | None = None
        self.was_read: Callable[[bytes], bool] = bool
        self.read_nodes: Callable[[], Sequence[bytes]] = tuple

    # -- from callbacks ----------------------------------------------------------------------------------------------

    def opening(self, path: bytes) -> int:
        """Before the tree is asked. The answer goes to `opened` or `failed`."""
        with self._lock:
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = _File()
            file.count += 1
            return file.version

    def opened(self, path: bytes, version: int, opened: Opened) -> tuple[bool, bool]:
        """(direct_io, keep_cache) for the kernel, from what the tree said."""
        mark = hash(path)
        with self._lock:
            self._handles[opened.handle] = (path, version, opened.size is not None)
            file = self._files[path]
            if opened.direct_io or not self._shares(file, version, opened):
                return True, False
            if opened.size is not None and self._sizes.get(mark) != opened.size:
                return True, False
            if version != file.version or not opened.keep_cache:
                self._kept.pop(mark, None)
                return False, False
            if mark in self._kept and self._kept[mark] == opened.content:
                return False, True
            self._keep(mark, opened.content)
            return False, False

    def _shares(self, file: _File, version: int, opened: Opened) -> bool:
        """Whether who opens a file now may read the pages of those who have it open."""
        if file.count == 1:
            file.content = opened.content
        if opened.alike is not None:
            return opened.alike
        return file.content == opened.content and not (file.older and version == file.version)

    def _keep(self, mark: int, content: int | None = None) -> None:
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[mark] = content

    def failed(self, path: bytes, version: int) -> None:
        self._closed(path, version, ended=False)

    def released(self, handle: int) -> None:
        found = self._handles.pop(handle, None)
        if found is not None:
            self._closed(*found)

    def _closed(self, path: bytes, version: int, ended: bool) -> None:
        with self._lock:
            file = self._files[path]
            file.count -= 1
            older = version != file.version
            if older:
                file.older -= 1
                self._kept.pop(hash(path), None)  # it may have read pages of what it had opened
                if ended:
                    self._sizes.pop(hash(path), None)  # and where that ends, the kernel thinks that the file does
            if not file.count:
                del self._files[path]
        if older and ended:
            self.ask_again([path])

    def listing_kept(self, path: bytes) -> bool:
        """Whether the listing that the kernel may hold of a directory is right; from now on it is."""
        mark = hash(path)
        with self._lock:
            if mark in self._kept:
                return True
            self._keep(mark)
            return False

    def told(self, path: bytes, size: int) -> None:
        """The kernel is told how long a file is."""
        with self._lock:
            if len(self._sizes) >= _MOST_KEPT:
                self._sizes.clear()  # those files are read past the page cache until their length is asked again
            self._tell(hash(path), size)

    def _tell(self, mark: int, size: int) -> None:
        before = self._sizes.get(mark)
        if before != size:
            self._sizes[mark] = size
            if before is not None:
                if len(self._varied) >= _MOST_VARIED:
                    now = time.monotonic()
                    self._varied = {mark: when for mark, when in self._varied.items() if now - when <= _VARIED}
                self._varied[mark] = time.monotonic()

    def size(self, path: bytes) -> tuple[int | None, bool]:
        """The length that the kernel was last told, if that is remembered; and whether it was told no other lately.

        (It may not have taken the last, if a change was pushed at that moment.)
        """
        mark = hash(path)
        size = self._sizes.get(mark)
        return size, size is not None and time.monotonic() - self._varied.get(mark, 0.0) > _VARIED

    def told_many(self, sizes: dict[int, int]) -> None:
        """The same for many: hash of a path → length."""
        with self._lock:
            if len(self._sizes) >= _MOST_KEPT:
                self._sizes.clear()
            for mark, size in sizes.items():
                self._tell(mark, size)

    def wrote(self, handle: int, end: int) -> None:
        """A write made a file at least `end` bytes long, which the kernel knows without being told."""
        with self._lock:
            mark = hash(self._handles[handle][0])
            if end > self._sizes.get(mark, 0):
                self._sizes[mark] = end

    def cut(self, path: bytes | None, handle: int | None, size: int) -> None:
        """A truncate gave a file this length."""
        with self._lock:
            if handle is not None:
                path = self._handles[handle][0]
            if path is not None:
                self._sizes[hash(path)] = size

    def asked(self, path: bytes) -> None:
        """The kernel asks about a path."""
        top = self.top
        if top is not None and len(top) < _MOST_TOP:
            top.add(path[1:].partition(b"/")[0])

    # -- from the notifier -------------------------------------------------------------------------------------------

    @property
    def top_is_full(self) -> bool:
        """Whether there are more names at the top than are remembered."""
        return self.top is not None and len(self.top) >= _MOST_TOP

    def changed(self, paths: Iterable[bytes]) -> None:
        """These paths (without leading slash) have changed."""
        with self._lock:
            for path in paths:
                path = b"/" + path
                self._kept.pop(hash(path), None)
                file = self._files.get(path)
                if file is not None:
                    file.version += 1
                    file.older = file.count

    def changed_all(self) -> list[bytes]:
        """All may have changed. The open paths, without leading slash."""
        with self._lock:
            self._kept.clear()
            for file in self._files.values():
                file.version += 1
                file.older = file.count
            return [path[1:] for path in self._files]

"""Contents of files that are read without being opened.

All readers of one node read the same content. The first read of a node pins the content that it loads, as an open
would. When the key changes, the kernel is made to look up the path again and gets a new node. The old node is detached:
it continues under a stale name (paths/stale_names.py), so that programs that have it open keep reading what they began
to read.

A pinned content whose key has changed is *stale* until its node is detached, a moment later; until then it stays as it
was.

Threads: any. The lock is held for bookkeeping only; `detach`, `mark_keys_stale` and `drop_forgotten` never block.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from redisfuse.errors import ConflictError
from redisfuse.paths.stale_names import is_stale, parse_stale_number, strip_stale_marker
from redisfuse.vfs.content_types import FileContent, RangedContent, SpooledContent
from redisfuse.vfs.growing_content import inline_bytes, read_cached, unwrap_content

MAX_INLINE_NODES = 10_000  # nodes whose content is in memory
MAX_INLINE_BYTES = 32 * 1024 * 1024  # of all of them together
MAX_LARGE_NODES = 64  # other nodes: long strings, temporary files, renderings being streamed
RANGED_IDLE_SECONDS = 5.0  # after which an unused long string frees its memory
SPOOLED_IDLE_SECONDS = 60.0  # after which an unused field frees its temporary file
MAX_STALE_SECONDS = 0.5  # the most that the kernel takes to process an invalidation
MAX_REMEMBERED_NODES = 400_000  # nodes remembered as read
STREAM_CHUNK_BYTES = 128 * 1024  # by which a file of unknown length grows under its reader


@dataclass(slots=True, eq=False)
class PinnedContent:
    """The content that the first read of a node has loaded."""

    content: FileContent
    key: bytes
    mtime_ns: int
    version: int  # of the key, from before the content was loaded
    is_streamed: bool = False  # the length is unknown; the file is `streamed_bytes` long
    streamed_bytes: int = 0  # read so far
    stream_lock: threading.Lock = field(default_factory=threading.Lock)
    node_path: bytes = b""
    node_id: int = 0  # the kernel's; 0: preloaded, not read yet
    last_used: float = 0.0  # time.monotonic()
    memory_bytes: int = 0
    size_verified: bool = False  # whether the kernel has cached the same size
    stale_since: float = 0.0  # time.monotonic(); 0: not stale

    @property
    def is_expired(self) -> bool:
        """Whether it has been stale longer than any detach can be on its way."""
        return bool(self.stale_since) and time.monotonic() - self.stale_since > MAX_STALE_SECONDS


class InodeContentSource(Protocol):
    """The source of contents and their versions."""

    def load_content(self, path: bytes, expected_size: int | None) -> PinnedContent:
        """Return the content at a path.

        `expected_size`: the size last reported to the kernel, if it is known.
        """

    def load_cached_content(self, path: bytes) -> PinnedContent | None:
        """Return the same if it is cached, without blocking; else None."""

    def content_version(self, key: bytes) -> int:
        """Return a number that grows with each change of a key."""

    def is_recently_changed(self, key: bytes) -> bool:
        """Return whether the key changed less than a second ago."""

    def invalidate_paths(self, paths: Collection[bytes]) -> None:
        """Make the kernel look up these paths again; return at once."""

    def max_age(self) -> float:
        """Return the seconds that a content is valid if its change is not announced."""


class KernelInodes(Protocol):
    """The state of inodes in the kernel's cache."""

    def kernel_size(self, path: bytes, node_id: int) -> int | None:
        """Return the size that the kernel has cached for this inode, if it can be found."""

    def invalidate_size(self) -> None:
        """Make the kernel fetch the inode's size again.

        It does so before it assumes the end of the file that is being read.
        """

    def notify_store(self, offset: int, data: bytes) -> None:
        """Put bytes into the kernel's page cache of the inode being read."""

    def is_inode_cached(self, node_id: int) -> bool:
        """Return whether the kernel still holds an inode."""


class InodeContentCache:
    """Contents pinned for readers of files that are not opened, by node path."""

    def __init__(self, source: InodeContentSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        # Changed under `_lock` only:
        self._inline: OrderedDict[bytes, PinnedContent] = OrderedDict()  # by node path, least recently used first
        self._large: OrderedDict[bytes, PinnedContent] = OrderedDict()  # the same
        self._inline_bytes = 0  # in `_inline`
        self._by_node_id: dict[int, PinnedContent] = {}
        self._paths_by_key: dict[bytes, set[bytes]] = {}  # the paths of a key's nodes that are not detached
        self._stale: dict[bytes, PinnedContent] = {}
        self._read_path_hashes: set[int] = set()  # of nodes that were read, whether their contents are pinned or not
        self._read_overflowed = False  # `_read_path_hashes` was full and cleared: any node may have been read
        self._evicted: set[bytes] = (
            set()
        )  # stale names of detached nodes that were read and whose contents were evicted
        self._evicted_up_to = 0  # nodes detached up to this number may be evicted too
        self._sweep_timer: threading.Timer | None = None
        self._unverified_paths: list[bytes] = []  # to be revalidated soon, as changes are not announced
        self._revalidate_timer: threading.Timer | None = None
        self._closed = False

    # -- reading -----------------------------------------------------------------------------------------------------

    def read_cached(
        self, node_path: bytes, node_id: int, size: int, offset: int, kernel_size: int | None, size_is_exact: bool
    ) -> bytes | None:
        """Return the same as `read`, or None.

        None if the content is not in memory or has another size than the kernel's.
        """
        pinned = self._inline.get(node_path)
        if pinned is None:
            if is_stale(node_path) or node_path in self._large:
                return None
            cached = self._source.load_cached_content(node_path)
            if cached is None:
                return None
            pinned = self._insert(node_path, node_id, cached)
        if pinned.stale_since or (kernel_size is not None and pinned.content.size != kernel_size):
            return None
        if not pinned.size_verified:
            if not size_is_exact and self._source.is_recently_changed(pinned.key):
                return None
            pinned.size_verified = True
        self._touch(pinned, node_id)
        return read_cached(pinned.content, offset, size)

    def read(
        self,
        node_path: bytes,
        node_id: int,
        size: int,
        offset: int,
        kernel_size: int | None,
        size_is_exact: bool,
        kernel: KernelInodes,
    ) -> bytes:
        """Return the bytes; fewer than `size` only at the end.

        `kernel_size`: the size last reported to the kernel, if it is known; unless `size_is_exact`, the kernel is
        queried for the size that it has cached. If the content is longer, the kernel is made to fetch the size again.
        Raises the errors of loading and reading; ConflictError if the file changed and can't be read on.
        """
        pinned = self._lookup(node_path, node_id)
        if pinned is None:
            loaded = self._source.load_content(strip_stale_marker(node_path), kernel_size)
            pinned = self._insert(node_path, node_id, loaded)
            if pinned.is_streamed and offset:
                raise ConflictError("too many files are being read at once; reopen this one")
        data = pinned.content.read(offset, size)
        if not pinned.size_verified and not pinned.is_streamed:
            # While an invalidation is on its way, the kernel ignores some of the sizes reported to it.
            if (
                not size_is_exact
                and self._source.is_recently_changed(pinned.key)
                and (kernel_size := kernel.kernel_size(strip_stale_marker(node_path), node_id)) is None
            ):
                raise ConflictError("the file is changing")
            pinned.size_verified = True
        if not pinned.is_streamed and kernel_size is not None and pinned.content.size != kernel_size:
            if pinned.content.size < kernel_size:
                raise ConflictError("the file was changed since its size was fetched")
            kernel.invalidate_size()
        return data

    def _touch(self, pinned: PinnedContent, node_id: int) -> None:
        pinned.last_used = time.monotonic()
        if not pinned.node_id:  # it was preloaded
            pinned.node_id = node_id
            self._by_node_id[node_id] = pinned

    def _lookup(self, node_path: bytes, node_id: int) -> PinnedContent | None:
        with self._lock:
            for table in (self._inline, self._large):
                pinned = table.get(node_path)
                if pinned is None:
                    continue
                if pinned.is_expired:
                    self._remove(pinned)  # the node was not detached
                    return None
                table.move_to_end(node_path)
                self._touch(pinned, node_id)
                return pinned
            if is_stale(node_path) and (
                node_path in self._evicted or parse_stale_number(node_path) <= self._evicted_up_to
            ):
                raise ConflictError("the file was changed since it was read")
            return None

    def _insert(self, node_path: bytes, node_id: int, pinned: PinnedContent) -> PinnedContent:
        data = inline_bytes(pinned.content)
        is_detached = is_stale(node_path)
        with self._lock:
            table = self._large if data is None else self._inline
            if node_path in table:
                return table[node_path]  # another thread was first
            pinned.node_path, pinned.node_id, pinned.last_used = node_path, node_id, time.monotonic()
            pinned.memory_bytes = len(data or b"")
            self._put(pinned, table)
            needs_invalidation = pinned.is_streamed  # the next open starts a stream of its own
            if not is_detached:
                self._paths_by_key.setdefault(pinned.key, set()).add(node_path)
                self._record_read(node_path)
                if self._source.content_version(pinned.key) != pinned.version:
                    # The kernel may have processed the invalidation of this change before the content was loaded.
                    self._mark_stale(pinned)
                    needs_invalidation = True
            self._enforce_limits()
            if data is None and self._sweep_timer is None:
                self._sweep_timer = self._start_timer(RANGED_IDLE_SECONDS, self._release_idle)
        if not is_detached:
            if needs_invalidation:
                self._source.invalidate_paths([node_path[1:]])
            elif not math.isinf(max_age := self._source.max_age()):
                self._revalidate_later(node_path, max_age)
        return pinned

    def _put(self, pinned: PinnedContent, table: OrderedDict[bytes, PinnedContent]) -> None:
        table[pinned.node_path] = pinned
        if pinned.node_id:
            self._by_node_id[pinned.node_id] = pinned
        if table is self._inline:
            self._inline_bytes += pinned.memory_bytes

    def _record_read(self, node_path: bytes) -> None:
        if len(self._read_path_hashes) >= MAX_REMEMBERED_NODES:
            self._read_path_hashes.clear()
            self._read_overflowed = True
        self._read_path_hashes.add(hash(node_path))

    def preload(self, node_path: bytes, pinned: PinnedContent) -> PinnedContent:
        """Pin a content for the first read of a node.

        Return the content that is pinned now.
        """
        return self._insert(node_path, 0, pinned)

    def get_or_load(self, node_path: bytes, node_id: int) -> PinnedContent:
        """Return the content pinned for a node; if there is none, load and pin it."""
        return self._lookup(node_path, node_id) or self._insert(
            node_path, node_id, self._source.load_content(strip_stale_marker(node_path), None)
        )

    def stream_more(self, pinned: PinnedContent, kernel: KernelInodes, *, until_end: bool = False) -> None:
        """Read the next chunk of a file of unknown length, or all to the end.

        The chunk is stored in the kernel's page cache.

        The kernel discards a reply to a GETATTR from before the store that has a smaller size; a reply to a later
        GETATTR must not have one.
        """
        with pinned.stream_lock:
            while data := pinned.content.read(end := pinned.streamed_bytes, STREAM_CHUNK_BYTES):
                pinned.streamed_bytes = end + len(data)
                kernel.notify_store(end, data)
                if not until_end:
                    break

    # -- attributes --------------------------------------------------------------------------------------------------

    def get_pinned(self, node_path: bytes) -> PinnedContent | None:
        """Return the content pinned for a node, if any.

        Its size is the node's, so that size and content agree.
        """
        pinned = self._peek(node_path)
        return None if pinned is None or pinned.is_expired else pinned

    def _peek(self, node_path: bytes) -> PinnedContent | None:
        return self._inline.get(node_path) or self._large.get(node_path)

    def has_stale_content(self, key: bytes) -> bool:
        """Return whether the kernel may still have a key's old content.

        Its new size must not be reported yet.
        """
        return bool(self._stale) and key in self._paths_by_key

    def was_read(self, node_path: bytes) -> bool:
        """Return whether a node that is not detached may have been read."""
        return self._read_overflowed or hash(node_path) in self._read_path_hashes

    def list_read_paths(self) -> Sequence[bytes]:
        """Return the paths of the nodes with pinned contents that are not detached."""
        with self._lock:
            return [path for paths in self._paths_by_key.values() for path in paths]

    # -- changes -----------------------------------------------------------------------------------------------------

    def mark_keys_stale(self, keys: Collection[bytes]) -> None:
        """Mark the contents of changed keys; the kernel will detach their nodes."""
        if not self._paths_by_key:
            return
        with self._lock:
            for key in keys if len(keys) < len(self._paths_by_key) else self._paths_by_key.keys() & set(keys):
                self._mark_paths_stale(self._paths_by_key.get(key, ()))

    def mark_all_stale(self) -> None:
        """Mark all contents: anything may have changed."""
        with self._lock:
            for paths in self._paths_by_key.values():
                self._mark_paths_stale(paths)

    def _mark_paths_stale(self, node_paths: Iterable[bytes]) -> None:
        for node_path in node_paths:
            pinned = self._peek(node_path)
            if pinned is not None:
                self._mark_stale(pinned)

    def _mark_stale(self, pinned: PinnedContent) -> None:
        if not pinned.stale_since:
            pinned.stale_since = time.monotonic()
            self._stale[pinned.node_path] = pinned

    def detach(self, node_path: bytes, stale_path: bytes) -> None:
        """Let a node's content continue under its stale name. A new node takes its path."""
        with self._lock:
            for table in (self._inline, self._large):
                pinned = table.get(node_path)
                if pinned is not None:
                    self._remove(pinned)
                    self._read_path_hashes.discard(hash(node_path))
                    pinned.node_path, pinned.stale_since = stale_path, 0.0
                    self._put(pinned, table)
                    return
            if self._read_overflowed or hash(node_path) in self._read_path_hashes:
                self._read_path_hashes.discard(hash(node_path))
                self._record_evicted(stale_path)

    def drop_forgotten(self, node_ids: Iterable[int], kernel: KernelInodes) -> None:
        """Drop the contents of those nodes that the kernel no longer has.

        No program has them open.
        """
        for node_id in node_ids:
            if node_id in self._by_node_id and not kernel.is_inode_cached(node_id):
                with self._lock:
                    pinned = self._by_node_id.get(node_id)
                    if pinned is not None:
                        self._remove(pinned)
                        self._read_path_hashes.discard(hash(pinned.node_path))

    # -- eviction ----------------------------------------------------------------------------------------------------

    def _remove(self, pinned: PinnedContent) -> None:
        node_path = pinned.node_path
        if self._inline.pop(node_path, None) is not None:
            self._inline_bytes -= pinned.memory_bytes
        self._large.pop(node_path, None)
        self._stale.pop(node_path, None)
        self._by_node_id.pop(pinned.node_id, None)
        paths = self._paths_by_key.get(pinned.key)
        if paths is not None:
            paths.discard(node_path)
            if not paths:
                del self._paths_by_key[pinned.key]

    def _enforce_limits(self) -> None:
        while len(self._inline) > MAX_INLINE_NODES or (self._inline_bytes > MAX_INLINE_BYTES and len(self._inline) > 1):
            self._evict_oldest(self._inline)
        while len(self._large) > MAX_LARGE_NODES:
            self._evict_oldest(self._large)

    def _evict_oldest(self, table: OrderedDict[bytes, PinnedContent]) -> None:
        oldest = next(iter(table.values()))
        self._remove(oldest)
        if is_stale(oldest.node_path):
            self._record_evicted(oldest.node_path)

    def _record_evicted(self, stale_path: bytes) -> None:
        self._evicted.add(stale_path)
        if len(self._evicted) > MAX_REMEMBERED_NODES:
            self._evicted_up_to = max(map(parse_stale_number, self._evicted))
            self._evicted.clear()

    def _release_idle(self) -> None:
        """Free the memory of unused long strings and the files of unused fields.

        They are fetched again if needed.
        """
        now = time.monotonic()
        idle: list[FileContent] = []
        with self._lock:
            self._sweep_timer = None
            for pinned in list(self._large.values()):
                content = unwrap_content(pinned.content)
                if isinstance(content, RangedContent) and now - pinned.last_used > RANGED_IDLE_SECONDS:
                    idle.append(content)
                elif (
                    isinstance(content, SpooledContent)
                    and now - pinned.last_used > SPOOLED_IDLE_SECONDS
                    and not is_stale(pinned.node_path)
                ):
                    self._remove(pinned)
                    idle.append(content)
            if self._large:
                self._sweep_timer = self._start_timer(RANGED_IDLE_SECONDS, self._release_idle)
        for content in idle:
            content.close()

    # -- revalidation, while changes are not announced ---------------------------------------------------------------

    def _revalidate_later(self, node_path: bytes, seconds: float) -> None:
        with self._lock:
            self._unverified_paths.append(node_path[1:])
            if self._revalidate_timer is None:
                self._revalidate_timer = self._start_timer(seconds, self._revalidate)

    def _revalidate(self) -> None:
        with self._lock:
            paths, self._unverified_paths, self._revalidate_timer = self._unverified_paths, [], None
        self._source.invalidate_paths(paths)

    # -- timers ------------------------------------------------------------------------------------------------------

    def _start_timer(self, seconds: float, callback: Callable[[], None]) -> threading.Timer | None:
        if self._closed:
            return None
        timer = threading.Timer(seconds, callback)
        timer.daemon = True
        timer.start()
        return timer

    def close(self) -> None:
        """Stop the timers."""
        with self._lock:
            self._closed = True
            timers = [timer for timer in (self._sweep_timer, self._revalidate_timer) if timer is not None]
        for timer in timers:
            timer.cancel()

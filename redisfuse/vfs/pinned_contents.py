"""The contents of files that the kernel opens without a request.

The first read of an inode loads its content and pins it, so that all readers of the inode read the same bytes. When the
key changes, the next lookup of the name gets a new inode; the old one keeps its content for the programs that have it
open. An evicted content is loaded again if it is still the current version; otherwise reads raise ConflictError
(ESTALE).

Threads: any. The lock guards the tables and is held for bookkeeping only; `forget` never blocks.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from redisfuse.errors import ConflictError
from redisfuse.vfs.coherence import Coherence
from redisfuse.vfs.content_types import FileContent, InlineContent, RangedContent, SpooledContent
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.growing_content import GrowingContent, inline_bytes, read_cached, unwrap_content
from redisfuse.vfs.inodes import Inode
from redisfuse.vfs.nodes import KeyNode, RefreshNode

MAX_INLINE_INODES = 10_000  # inodes whose content is in memory
MAX_INLINE_BYTES = 32 * 1024 * 1024  # of them together
MAX_LARGE_INODES = 64  # other inodes: long strings, temporary files, renderings being streamed
RANGED_IDLE_SECONDS = 5.0  # after which a long string that is not read frees its memory
SPOOLED_IDLE_SECONDS = 60.0  # after which a field that is not read frees its temporary file
STREAM_CHUNK_BYTES = 128 * 1024  # by which a file of unknown length grows while it is read
_STREAMED_VERSION = -1  # differs from every version of a key: each lookup begins a new stream


@dataclass(slots=True, eq=False)
class PinnedContent:
    """The content of an inode, loaded by its first read."""

    content: FileContent
    key: bytes
    mtime_ns: int
    version: int  # of the key before the content was loaded
    is_streamed: bool = False  # of unknown length; the reported size is `streamed_bytes`
    streamed_bytes: int = 0  # stored in the kernel's pages so far
    stream_lock: threading.Lock = field(default_factory=threading.Lock)
    last_used: float = 0.0  # time.monotonic()
    expired_at: float = -math.inf  # time.monotonic() when the kernel's attributes were expired for its size
    is_postponed: bool = False  # the next invalidation of the attributes (`KernelCache`)

    @property
    def size(self) -> int:
        """The size in bytes; of a stream, that of the bytes stored so far."""
        return self.streamed_bytes if self.is_streamed else self.content.size


class PinnedContents:
    """The pinned contents of a mount, least recently used first."""

    def __init__(self, filesystem: Filesystem, coherence: Coherence) -> None:
        self._filesystem = filesystem
        self._coherence = coherence
        self._lock = threading.Lock()
        # Guarded by `_lock`:
        self._inline: OrderedDict[int, Inode] = OrderedDict()  # by node id, least recently used first
        self._large: OrderedDict[int, Inode] = OrderedDict()  # the same
        self._inline_bytes = 0  # in `_inline`
        self._sweep_timer: threading.Timer | None = None
        self._is_closed = False

    # -- reading -----------------------------------------------------------------------------------------------------

    def read_cached(self, inode: Inode, pinned: PinnedContent, offset: int, size: int) -> bytes | None:
        """Return the bytes without blocking.

        None if the content is not in memory, or the kernel may have another size than its size.
        """
        if pinned.is_streamed or not inode.has_size(pinned.content.size):
            return None
        pinned.last_used = time.monotonic()
        return read_cached(pinned.content, offset, size)

    def read(self, inode: Inode, pinned: PinnedContent, offset: int, size: int) -> bytes:
        """Return the bytes; fewer than `size` only at the end.

        If the kernel may have a smaller size than that of the content, its attributes are invalidated. Raises the
        errors of reading; ConflictError if the file has changed and can't be read any further.
        """
        pinned.last_used = time.monotonic()
        data = pinned.content.read(offset, size)
        if not pinned.is_streamed and not inode.has_size(pinned.content.size):
            if pinned.content.size < inode.size:
                self._coherence.kernel_cache.invalidate([inode.path])  # the next open looks it up
                raise ConflictError("the file was changed since its size was fetched")
            pinned.expired_at = time.monotonic()
            self._coherence.kernel_cache.expire_attributes_now(inode, pinned.content.size)
        return data

    def load_at(self, inode: Inode, offset: int, node: KeyNode | None) -> PinnedContent:
        """Load and pin the content of an inode that is read from `offset`, as `load`."""
        pinned = self.load(inode, node)
        if pinned.is_streamed and offset:
            raise ConflictError("too many files are being read at once; reopen this one")
        return pinned

    def load(self, inode: Inode, node: KeyNode | None = None) -> PinnedContent:
        """Load and pin the content of an inode.

        `node` is the one to which its path leads now, if known. Raises the errors of fetching the content;
        ConflictError if an evicted content is no longer the current one.
        """
        was_evicted = bool(inode.version) and inode.content is None
        loaded = self._load_key(node, None) if node is not None else self._load(inode.path, inode.size)
        if was_evicted and inode.content is None and inode.is_outdated(loaded.version):
            raise ConflictError("the file was changed since it was read")
        return self._pin(inode, loaded)

    def _load(self, path: bytes, expected_size: int) -> PinnedContent:
        node = self._filesystem.resolver.resolve(path)
        if isinstance(node, RefreshNode):
            return PinnedContent(InlineContent(b""), b"", self._filesystem.mount_time_ns, 1)
        if not isinstance(node, KeyNode):
            raise ConflictError("the file was replaced by a directory")
        return self._load_key(node, expected_size)

    def _load_key(self, node: KeyNode, expected_size: int | None) -> PinnedContent:
        key = node.target.key
        version, mtime_ns = self.current_version(key), self._filesystem.get_mtime_ns(node.target)
        content, is_streamed = self._filesystem.content_loader.open_content(node, expected_size)
        if node.is_editable and content.size != node.length:
            # The key changed after it was resolved; the server's message has yet to arrive.
            self._filesystem.metadata.invalidate([key])
            self._filesystem.keyspace.mark_dirty(key)
        return PinnedContent(content, key, mtime_ns, version, is_streamed)

    def is_current(self, node: KeyNode) -> bool:
        """Return whether a listed node is certain not to have changed since."""
        return self._coherence.is_coherent and self.current_version(node.target.key) == node.version

    def current_version(self, key: bytes) -> int:
        """Return a number that grows with each change of a key."""
        return self._filesystem.keyspace.get_version(key)

    def stream_more(self, inode: Inode, pinned: PinnedContent, *, until_end: bool) -> None:
        """Store the next chunk of a file of unknown length in the kernel's pages.

        `until_end` stores all chunks. The kernel discards the smaller size in a reply to a GETATTR from before the
        store; a reply to a later GETATTR must not have a smaller size.
        """
        with pinned.stream_lock:
            while data := pinned.content.read(end := pinned.streamed_bytes, STREAM_CHUNK_BYTES):
                pinned.streamed_bytes = end + len(data)
                self._coherence.kernel_cache.store_now(inode, end, data)
                if not until_end:
                    break

    def refresh(self, inode: Inode, pinned: PinnedContent) -> bool:
        """Fetch bytes appended to the content of an outdated inode.

        Returns whether the inode is outdated or streamed.
        """
        if pinned.is_streamed or not inode.is_outdated(self.current_version(pinned.key)):
            return pinned.is_streamed
        if isinstance(pinned.content, GrowingContent):
            before = pinned.content.size
            pinned.content.refresh()
            if pinned.content.size != before:
                pinned.mtime_ns = time.time_ns()
        return True

    # -- pinning and eviction ----------------------------------------------------------------------------------------

    def _pin(self, inode: Inode, pinned: PinnedContent) -> PinnedContent:
        data = inline_bytes(pinned.content)
        pinned.last_used = time.monotonic()
        with self._lock:
            if inode.content is not None:
                return inode.content  # by another thread
            inode.content = pinned
            inode.version = _STREAMED_VERSION if pinned.is_streamed else pinned.version
            max_age = self._coherence.max_age()
            inode.valid_until = math.inf if math.isinf(max_age) else time.monotonic() + max_age
            if data is None:
                self._large[inode.node_id] = inode
            else:
                self._inline[inode.node_id] = inode
                self._inline_bytes += len(data)
            self._enforce_limits()
            if data is None and self._sweep_timer is None and not self._is_closed:
                self._start_sweep()
        if pinned.is_streamed or self.current_version(pinned.key) != pinned.version:
            # The invalidation of this change may have reached the kernel before the content was loaded.
            self._coherence.kernel_cache.invalidate([inode.path])
        return pinned

    def _unpin(self, inode: Inode) -> None:
        pinned, inode.content = inode.content, None
        self._large.pop(inode.node_id, None)
        if self._inline.pop(inode.node_id, None) is not None and pinned is not None:
            self._inline_bytes -= len(inline_bytes(pinned.content) or b"")

    def _enforce_limits(self) -> None:
        while len(self._inline) > MAX_INLINE_INODES or (
            self._inline_bytes > MAX_INLINE_BYTES and len(self._inline) > 1
        ):
            self._evict_oldest(self._inline)
        while len(self._large) > MAX_LARGE_INODES:
            self._evict_oldest(self._large)

    def _evict_oldest(self, table: OrderedDict[int, Inode]) -> None:
        self._unpin(next(iter(table.values())))

    def forget(self, inodes: Iterable[Inode]) -> None:
        """Drop the contents of forgotten inodes, which no program has open."""
        for inode in inodes:
            if inode.content is not None:
                with self._lock:
                    self._unpin(inode)

    def _start_sweep(self) -> None:
        self._sweep_timer = threading.Timer(RANGED_IDLE_SECONDS, self._release_idle)
        self._sweep_timer.daemon = True
        self._sweep_timer.start()

    def _release_idle(self) -> None:
        """Free the memory of idle long strings and the temporary files of idle fields.

        The next read fetches them again.
        """
        now = time.monotonic()
        idle: list[FileContent] = []
        with self._lock:
            self._sweep_timer = None
            for inode in list(self._large.values()):
                pinned = inode.content
                if pinned is None:
                    continue
                content = unwrap_content(pinned.content)
                if isinstance(content, RangedContent) and now - pinned.last_used > RANGED_IDLE_SECONDS:
                    idle.append(content)
                elif (
                    isinstance(content, SpooledContent)
                    and now - pinned.last_used > SPOOLED_IDLE_SECONDS
                    and not inode.is_outdated(self.current_version(pinned.key))
                ):
                    self._unpin(inode)
                    idle.append(content)
            if self._large and not self._is_closed:
                self._start_sweep()
        for content in idle:
            content.close()

    def close(self) -> None:
        """Stop the timer."""
        with self._lock:
            self._is_closed = True
            timer = self._sweep_timer
        if timer is not None:
            timer.cancel()

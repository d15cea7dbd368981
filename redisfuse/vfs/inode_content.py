"""Files that are read without being opened: everybody who reads one node reads the same (paths/stale_names.py).

What is read is what the first read of a node saw, as if that had opened it. When the file changes, the kernel is told
to look again and finds a new node; who has the old one open, which is retired then, goes on with what he began to read.

A node that was read before a change is *superseded* until it is retired, a moment later; so long it is what it was.

Threads: any. The lock is held for bookkeeping only; nothing waits in `detach`, `mark_keys_stale` and `drop_forgotten`.
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

MAX_INLINE_NODES = 10_000  # nodes whose content is in memory, and
MAX_INLINE_BYTES = 32 * 1024 * 1024  # all of them
MAX_LARGE_NODES = 64  # others: long strings, temporary files, renderings under way
RANGED_IDLE_SECONDS = 5.0  # seconds after which a long string that nobody reads gives back its memory
SPOOLED_IDLE_SECONDS = 60.0  # and a field its temporary file
MAX_STALE_SECONDS = 0.5  # seconds that the kernel may take to be told of a change
MAX_REMEMBERED_NODES = 400_000  # nodes remembered as read
STREAM_CHUNK_BYTES = 128 * 1024  # bytes by which what has no length beforehand grows under its reader


@dataclass(slots=True, eq=False)
class PinnedContent:
    """What the first read of a node has found."""

    content: FileContent
    key: bytes
    mtime_ns: int
    version: int  # change count of the key before it was found
    is_streamed: bool = False  # its length is not known beforehand: it is
    streamed_bytes: int = 0  # as long as it was read until now, in bytes
    stream_lock: threading.Lock = field(default_factory=threading.Lock)
    node_path: bytes = b""
    node_id: int = 0  # the kernel's
    last_used: float = 0.0  # time.monotonic()
    memory_bytes: int = 0  # bytes in memory
    size_verified: bool = False  # whether the kernel believes that it is as long
    stale_since: float = 0.0  # since when, by time.monotonic()

    @property
    def is_expired(self) -> bool:
        """Whether it was superseded so long ago that nobody can be about to retire it."""
        return bool(self.stale_since) and time.monotonic() - self.stale_since > MAX_STALE_SECONDS


class InodeContentSource(Protocol):
    """Where the cache finds contents, and how old they are."""

    def load_content(self, path: bytes, expected_size: int | None) -> PinnedContent:
        """Return what is at a path. `expected_size`: the length that the kernel was given last, if it is known."""

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
    """What the kernel holds of the inode that the current request reads."""

    def kernel_size(self, path: bytes, node_id: int) -> int | None:
        """Return the size that the kernel has cached for this inode, if it can be found."""

    def invalidate_size(self) -> None:
        """Make the kernel ask for the size again before it assumes the end of the file."""

    def notify_store(self, offset: int, data: bytes) -> None:
        """Put bytes into the kernel's page cache of this inode."""

    def is_inode_cached(self, node_id: int) -> bool:
        """Return whether the kernel still holds an inode."""


class InodeContentCache:
    """Contents pinned for readers of files that are not opened, by node path."""

    def __init__(self, source: InodeContentSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._inline: OrderedDict[bytes, PinnedContent] = OrderedDict()
        self._large: OrderedDict[bytes, PinnedContent] = OrderedDict()
        self._inline_bytes = 0  # in `_inline`
        self._by_node_id: dict[int, PinnedContent] = {}
        self._paths_by_key: dict[bytes, set[bytes]] = {}  # key -> its nodes that are not retired
        self._stale: dict[bytes, PinnedContent] = {}
        self._read_path_hashes: set[int] = (
            set()
        )  # hashes of nodes that were read, whether or not it is known any more what
        self._read_overflowed = False  # there were more
        self._evicted: set[bytes] = set()  # retired nodes that were read, of which nothing is known any more
        self._evicted_up_to = 0  # retirements up to this one may be too
        self._sweep_timer: threading.Timer | None = None
        self._unverified_paths: list[bytes] = []  # nodes that are to be looked at again soon, as nobody will tell
        self._revalidate_timer: threading.Timer | None = None
        self._closed = False

    # -- reading -----------------------------------------------------------------------------------------------------

    def read_cached(
        self, node_path: bytes, node_id: int, size: int, offset: int, kernel_size: int | None, size_is_exact: bool
    ) -> bytes | None:
        """As `read`, if it is in memory and as long as the kernel believes; else None."""
        found = self._inline.get(node_path)
        if found is None:
            new = (
                None if is_stale(node_path) or node_path in self._large else self._source.load_cached_content(node_path)
            )
            if new is None:
                return None
            found = self._insert(node_path, node_id, new)
        if found.stale_since or (kernel_size is not None and found.content.size != kernel_size):
            return None
        if not found.size_verified:
            if not size_is_exact and self._source.is_recently_changed(found.key):
                return None
            found.size_verified = True
        self._touch(found, node_id)
        return read_cached(found.content, offset, size)

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
        """The bytes; short only at the end. `outdated` is called if there are more than `told`; or, if that is not
        `sure`, than are `believed`, which is None if it can't be found out.

        Raises what finding and reading raise; ConflictError if the file has changed so that it can't be gone on with.
        """
        found = self._lookup(node_path, node_id)
        if found is None:
            found = self._insert(
                node_path, node_id, self._source.load_content(strip_stale_marker(node_path), kernel_size)
            )
            if found.is_streamed and offset:
                raise ConflictError("so many files are read at once that it is not known any more how this one began")
        data = found.content.read(offset, size)
        if not found.size_verified and not found.is_streamed:
            # While a change is being pushed, the kernel takes not every answer that tells a length.
            if (
                not size_is_exact
                and self._source.is_recently_changed(found.key)
                and (kernel_size := kernel.kernel_size(strip_stale_marker(node_path), node_id)) is None
            ):
                raise ConflictError("the file is changing")
            found.size_verified = True
        if not found.is_streamed and kernel_size is not None and found.content.size != kernel_size:
            if found.content.size < kernel_size:
                raise ConflictError("the file has changed since its length was asked for")
            kernel.invalidate_size()
        return data

    def _touch(self, pinned: PinnedContent, node_id: int) -> None:
        pinned.last_used = time.monotonic()
        if not pinned.node_id:  # it was prepared
            pinned.node_id = node_id
            self._by_node_id[node_id] = pinned

    def _lookup(self, node_path: bytes, node_id: int) -> PinnedContent | None:
        with self._lock:
            for table in (self._inline, self._large):
                found = table.get(node_path)
                if found is None:
                    continue
                if found.is_expired:
                    self._remove(found)  # nobody came to retire it
                    return None
                table.move_to_end(node_path)
                self._touch(found, node_id)
                return found
            if is_stale(node_path) and (
                node_path in self._evicted or parse_stale_number(node_path) <= self._evicted_up_to
            ):
                raise ConflictError("the file has changed since it was read")
            return None

    def _insert(self, node_path: bytes, node_id: int, pinned: PinnedContent) -> PinnedContent:
        content = inline_bytes(pinned.content)
        retired = is_stale(node_path)
        with self._lock:
            table = self._large if content is None else self._inline
            if node_path in table:
                return table[node_path]  # somebody else was first
            pinned.node_path, pinned.node_id, pinned.last_used = node_path, node_id, time.monotonic()
            pinned.memory_bytes = len(content or b"")
            self._put(pinned, table)
            again = pinned.is_streamed  # who opens it next begins anew
            if not retired:
                self._paths_by_key.setdefault(pinned.key, set()).add(node_path)
                self._record_read(node_path)
                if (
                    self._source.content_version(pinned.key) != pinned.version
                ):  # of which the kernel may have been told before this was read
                    self._mark_stale(pinned)
                    again = True
            self._enforce_limits()
            if content is None and self._sweep_timer is None:
                self._sweep_timer = self._start_timer(RANGED_IDLE_SECONDS, self._release_idle)
        if not retired:
            if again:
                self._source.invalidate_paths([node_path[1:]])
            elif not math.isinf(trust := self._source.max_age()):
                self._revalidate_later(node_path, trust)
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
        """What a first read of a node that was not read yet shall find; the answer is what it will."""
        return self._insert(node_path, 0, pinned)

    def get_or_load(self, node_path: bytes, node_id: int) -> PinnedContent:
        """What is read of a node, beginning to read it if nobody has."""
        return self._lookup(node_path, node_id) or self._insert(
            node_path, node_id, self._source.load_content(strip_stale_marker(node_path), None)
        )

    def stream_more(self, pinned: PinnedContent, kernel: KernelInodes, *, until_end: bool = False) -> None:
        """Read on, by a chunk, in what has no length beforehand; `store` gives the kernel the bytes.

        Any description of the file that was asked for before it was stored, and says that it ends earlier, the kernel
        then takes for out of date; one that is asked for afterwards must not say so.
        """
        with pinned.stream_lock:
            while data := pinned.content.read(end := pinned.streamed_bytes, STREAM_CHUNK_BYTES):
                pinned.streamed_bytes = end + len(data)
                kernel.notify_store(end, data)
                if not until_end:
                    break

    # -- describing --------------------------------------------------------------------------------------------------

    def get_pinned(self, node_path: bytes) -> PinnedContent | None:
        """What a node is to be described by, if it was read, so that a length and a content never part."""
        found = self._peek(node_path)
        return None if found is None or found.is_expired else found

    def _peek(self, node_path: bytes) -> PinnedContent | None:
        return self._inline.get(node_path) or self._large.get(node_path)

    def has_stale_content(self, key: bytes) -> bool:
        """Whether the kernel may still hold what a key was, and must not be told yet what it is."""
        return bool(self._stale) and key in self._paths_by_key

    def was_read(self, node_path: bytes) -> bool:
        """Whether a node that is not retired may have been read."""
        return self._read_overflowed or hash(node_path) in self._read_path_hashes

    def list_read_paths(self) -> Sequence[bytes]:
        """Those that were read lately and are not retired."""
        with self._lock:
            return [node for nodes in self._paths_by_key.values() for node in nodes]

    # -- changes -----------------------------------------------------------------------------------------------------

    def mark_keys_stale(self, keys: Collection[bytes]) -> None:
        """These keys have changed; the kernel will be told."""
        if not self._paths_by_key:
            return
        with self._lock:
            for key in keys if len(keys) < len(self._paths_by_key) else self._paths_by_key.keys() & set(keys):
                self._mark_paths_stale(self._paths_by_key.get(key, ()))

    def mark_all_stale(self) -> None:
        """Anything may have changed."""
        with self._lock:
            for nodes in self._paths_by_key.values():
                self._mark_paths_stale(nodes)

    def _mark_paths_stale(self, node_paths: Iterable[bytes]) -> None:
        for node in node_paths:
            found = self._peek(node)
            if found is not None:
                self._mark_stale(found)

    def _mark_stale(self, pinned: PinnedContent) -> None:
        if not pinned.stale_since:
            pinned.stale_since = time.monotonic()
            self._stale[pinned.node_path] = pinned

    def detach(self, node_path: bytes, stale_path: bytes) -> None:
        """What was read as `node_path` goes on as `retired`."""
        with self._lock:
            for table in (self._inline, self._large):
                found = table.get(node_path)
                if found is not None:
                    self._remove(found)
                    self._read_path_hashes.discard(hash(node_path))
                    found.node_path, found.stale_since = stale_path, 0.0
                    self._put(found, table)
                    return
            if self._read_overflowed or hash(node_path) in self._read_path_hashes:
                self._read_path_hashes.discard(hash(node_path))
                self._record_evicted(stale_path)

    def drop_forgotten(self, node_ids: Iterable[int], kernel: KernelInodes) -> None:
        """The kernel may have forgotten these nodes, so that nobody has them open: `has_node` says so."""
        for number in node_ids:
            if number in self._by_node_id and not kernel.is_inode_cached(number):
                with self._lock:
                    found = self._by_node_id.get(number)
                    if found is not None:
                        self._remove(found)
                        self._read_path_hashes.discard(hash(found.node_path))

    # -- room --------------------------------------------------------------------------------------------------------

    def _remove(self, pinned: PinnedContent) -> None:
        node = pinned.node_path
        if self._inline.pop(node, None) is not None:
            self._inline_bytes -= pinned.memory_bytes
        self._large.pop(node, None)
        self._stale.pop(node, None)
        self._by_node_id.pop(pinned.node_id, None)
        nodes = self._paths_by_key.get(pinned.key)
        if nodes is not None:
            nodes.discard(node)
            if not nodes:
                del self._paths_by_key[pinned.key]

    def _enforce_limits(self) -> None:
        while len(self._inline) > MAX_INLINE_NODES or (self._inline_bytes > MAX_INLINE_BYTES and len(self._inline) > 1):
            self._evict_oldest(self._inline)
        while len(self._large) > MAX_LARGE_NODES:
            self._evict_oldest(self._large)

    def _evict_oldest(self, table: OrderedDict[bytes, PinnedContent]) -> None:
        found = next(iter(table.values()))
        self._remove(found)
        if is_stale(found.node_path):
            self._record_evicted(found.node_path)

    def _record_evicted(self, stale_path: bytes) -> None:
        self._evicted.add(stale_path)
        if len(self._evicted) > MAX_REMEMBERED_NODES:
            self._evicted_up_to = max(map(parse_stale_number, self._evicted))
            self._evicted.clear()

    def _release_idle(self) -> None:
        """Long strings that rest give back their memory; fields their file, which is fetched again if need be."""
        now = time.monotonic()
        resting: list[FileContent] = []
        with self._lock:
            self._sweep_timer = None
            for found in list(self._large.values()):
                inner = unwrap_content(found.content)
                if isinstance(inner, RangedContent) and now - found.last_used > RANGED_IDLE_SECONDS:
                    resting.append(inner)
                elif (
                    isinstance(inner, SpooledContent)
                    and now - found.last_used > SPOOLED_IDLE_SECONDS
                    and not is_stale(found.node_path)
                ):
                    self._remove(found)
                    resting.append(inner)
            if self._large:
                self._sweep_timer = self._start_timer(RANGED_IDLE_SECONDS, self._release_idle)
        for snapshot in resting:
            snapshot.close()

    # -- where nobody tells of changes -------------------------------------------------------------------------------

    def _revalidate_later(self, node_path: bytes, seconds: float) -> None:
        with self._lock:
            self._unverified_paths.append(node_path[1:])
            if self._revalidate_timer is None:
                self._revalidate_timer = self._start_timer(seconds, self._revalidate)

    def _revalidate(self) -> None:
        with self._lock:
            doubtful, self._unverified_paths, self._revalidate_timer = self._unverified_paths, [], None
        self._source.invalidate_paths(doubtful)

    # -- its end -----------------------------------------------------------------------------------------------------

    def _start_timer(self, seconds: float, callback: Callable[[], None]) -> threading.Timer | None:
        if self._closed:
            return None
        timer = threading.Timer(seconds, callback)
        timer.daemon = True
        timer.start()
        return timer

    def close(self) -> None:
        """No timer runs on."""
        with self._lock:
            self._closed = True
            timers = [each for each in (self._sweep_timer, self._revalidate_timer) if each is not None]
        for timer in timers:
            timer.cancel()

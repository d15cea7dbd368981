"""How the bytes of a file are come by: whole and cached when small, in pieces when not, rendered for collections.

Sizes (DESIGN.md 2): a string's or field's is its length. A collection's is the length of its rendering as long as it
has at most `render_limit` elements and is not longer than RENDER_BYTES; beyond that it is 0, and the file streams.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from redisfuse.client.client import RedisClient
from redisfuse.errors import AccessError, ConflictError, NotFoundError, TooLargeError
from redisfuse.keyspace.listener import Freshness
from redisfuse.keyspace.metadata import UNREADABLE, MetadataStore
from redisfuse.keyspace.monitor import KeyspaceMonitor
from redisfuse.paths.grammar import KeyRef
from redisfuse.rendering.dump import fetch_dump
from redisfuse.rendering.json_document import render_json_document
from redisfuse.rendering.registry import join_within, render_text
from redisfuse.transactions.precondition import Precondition
from redisfuse.vfs.content_types import FileContent, InlineContent, RangedContent, SpooledContent, StreamedContent
from redisfuse.vfs.growing_content import GrowingContent
from redisfuse.vfs.nodes import KeyNode

MAX_RENDERED_BYTES = 4 * 1024 * 1024  # a longer rendering streams, however few its elements are
MAX_OPEN_ATTEMPTS = 8  # at a large value that keeps changing; then its edit may be refused for no reason
MAX_CACHED_BYTES = 32 * 1024 * 1024  # renderings kept so that a size and the content agree

STREAM_ONLY = None  # in the cache of renderings: it is too long to be kept


class ContentLoader:
    """Measures and opens files. Thread-safe; asks the server outside its lock."""

    def __init__(
        self,
        client: RedisClient,
        metadata: MetadataStore,
        keyspace: KeyspaceMonitor,
        freshness: Freshness,
        *,
        render_limit: int,
        dump_limit: int,
    ) -> None:
        self._client = client
        self._metadata = metadata
        self._keyspace = keyspace
        self._freshness = freshness  # for how many seconds a rendering may be believed
        self._render_limit = render_limit
        self._dump_limit = dump_limit
        self._lock = threading.Lock()
        self._renderings: OrderedDict[tuple[bytes, str | None], tuple[int, float, bytes | None]] = OrderedDict()
        self._cached_bytes = 0  # bytes

    # -- strings and fields ------------------------------------------------------------------------------------------

    def open_with_precondition(self, target: KeyRef) -> tuple[FileContent, Precondition]:
        """What a string or field holds, and what an edit of it will be checked against.

        Raises NotFoundError, WrongTypeError.
        """
        content = self._metadata.get_content(target)
        if content is not None:
            return InlineContent(content), Precondition.from_bytes(content)
        for _ in range(MAX_OPEN_ATTEMPTS):
            before = self._keyspace.get_version(target.key)
            snapshot = self._open_large(target)
            self._keyspace.wait_for_invalidations()
            if self._keyspace.get_version(target.key) == before:  # else it was an older change, or one in between
                break
        return snapshot, Precondition.size_equals(snapshot.size, _KeyUnchanged(self._keyspace, target.key, before))

    def _open_large(self, target: KeyRef) -> FileContent:
        length = self._fetch_length(target)
        if target.field is None:
            return RangedContent(self._client, target.key, length)
        return SpooledContent(self._client, target.key, target.field, length)

    def _fetch_length(self, target: KeyRef) -> int:
        if target.field is None:
            return self._metadata.get_with_content(target.key).length
        [length] = self._metadata.get_field_lengths(target.key, [target.field])
        if length is None:
            raise NotFoundError("the field is gone")
        return length

    # -- everything --------------------------------------------------------------------------------------------------

    def open_content(self, node: KeyNode, expected_size: int | None = None) -> tuple[FileContent, bool]:
        """A file's bytes to read, and whether they stream (then they are read to their end, whatever the size says).

        `told`: a length that the program was told a moment ago; the rendering that had it is taken if it is kept.
        Raises NotFoundError, WrongTypeError, TooLargeError (`%dump`).
        """
        if node.type == UNREADABLE.type:
            raise AccessError("the server's ACL does not let this user read the key")
        if node.is_editable:
            return self.open_growing(node.target), False
        text = self._find_rendering_of_size(node, expected_size)
        if text is STREAM_ONLY:
            text = self._get_rendering(node)
        if text is not STREAM_ONLY:
            return InlineContent(text), False
        return StreamedContent(_Rendering(self._client, node)), True

    def open_growing(self, target: KeyRef) -> FileContent:
        """What a string or field holds, for a reader that may hold on to its file. Raises as `open_with_precondition` does."""
        version = self._keyspace.get_version(target.key)
        return GrowingContent(self._open_current(target), version, target, self)

    def open_cached(self, target: KeyRef) -> FileContent | None:
        """As `open_growing` of a string, if its content is known without asking; else None."""
        version = self._keyspace.get_version(target.key)
        content = self._metadata.get_cached_content(target.key)
        return None if content is None else GrowingContent(InlineContent(content), version, target, self)

    def current_version(self, target: KeyRef) -> int:
        """A number that grows whenever the target may have changed."""
        return self._keyspace.get_version(target.key)

    def reload(self, target: KeyRef) -> FileContent:
        """What it holds now."""
        return self._open_current(target)

    def _open_current(self, target: KeyRef) -> FileContent:
        content = self._metadata.get_content(target)
        return self._open_large(target) if content is None else InlineContent(content)

    def measure_size(self, node: KeyNode) -> tuple[int, bool]:
        """A file's size in bytes, and whether it streams (its size is 0 then)."""
        if node.is_editable:
            return node.length, False
        try:
            text = self._get_rendering(node)
        except (NotFoundError, TooLargeError, ConflictError):
            return 0, True  # `stat` must not fail because `cat` will
        return (0, True) if text is STREAM_ONLY else (len(text), False)

    def _get_rendering(self, node: KeyNode) -> bytes | None:
        key, view = node.target.key, node.view
        if node.length > self._render_limit and view != "dump":
            return STREAM_ONLY
        if view == "json" and self._may_expire(key):
            return STREAM_ONLY  # the document tells the time to live, which is never the same twice
        count = self._keyspace.get_version(key)
        now = time.monotonic()
        with self._lock:
            found = self._renderings.get((key, view))
            if found is not None and found[0] == count and now - found[1] < self._freshness.max_age():
                self._renderings.move_to_end((key, view))
                return found[2]
        text = self._render_within_limit(node)
        with self._lock:
            self._cache_rendering((key, view), (count, now, text))
        return text

    def _find_rendering_of_size(self, node: KeyNode, expected_size: int | None) -> bytes | None:
        with self._lock:
            found = self._renderings.get((node.target.key, node.view))
        return found[2] if found is not None and found[2] is not None and len(found[2]) == expected_size else None

    def _may_expire(self, key: bytes) -> bool:
        known = self._metadata.get_cached(key)
        return known is None or known.expires_at is not None

    def _cache_rendering(self, cache_key: tuple[bytes, str | None], entry: tuple[int, float, bytes | None]) -> None:
        old = self._renderings.pop(cache_key, None)
        self._cached_bytes += _entry_cost(entry) - (0 if old is None else _entry_cost(old))
        self._renderings[cache_key] = entry
        while self._cached_bytes > MAX_CACHED_BYTES and len(self._renderings) > 1:
            _, dropped = self._renderings.popitem(last=False)
            self._cached_bytes -= _entry_cost(dropped)

    def _render_within_limit(self, node: KeyNode) -> bytes | None:
        if node.view == "dump":
            return fetch_dump(self._client, node.target.key, self._dump_limit)
        return join_within(_Rendering(self._client, node), MAX_RENDERED_BYTES)

    def clear_renderings(self) -> None:
        """Drop every rendering."""
        with self._lock:
            self._renderings.clear()
            self._cached_bytes = 0


def _entry_cost(entry: tuple[int, float, bytes | None]) -> int:
    return 200 + len(entry[2] or b"")


@dataclass(frozen=True, slots=True)
class _Rendering:
    """The text of a collection or view. Each iteration fetches it again."""

    client: RedisClient
    node: KeyNode

    def __iter__(self) -> Iterator[bytes]:
        if self.node.view is None:
            return render_text(self.client, self.node.target.key, self.node.type)
        return render_json_document(self.client, self.node.target.key)


class _KeyUnchanged:
    """Whether a key was not heard of since a big value of it was opened."""

    def __init__(self, keyspace: KeyspaceMonitor, key: bytes, change_count: int) -> None:
        self._keyspace = keyspace
        self._key = key
        self._change_count = change_count

    def __call__(self) -> bool:
        return self._keyspace.get_version(self._key) == self._change_count

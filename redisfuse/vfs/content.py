"""Opening and measuring files.

Files are whole and cached if small, in chunks if large, rendered for collections and views. The size of a string or
field is its length. The size of a collection or view is the length of its rendering, if it has at most `render_limit`
elements and its rendering at most `MAX_RENDERED_BYTES`; otherwise the size is 0, and the file streams (docs/limits.md).
"""

from __future__ import annotations

import time
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
from redisfuse.vfs.growing_content import GrowingContent, inline_bytes
from redisfuse.vfs.known_versions import UnchangedByOthers
from redisfuse.vfs.nodes import KeyNode
from redisfuse.vfs.rendering_cache import CachedRendering, RenderingCache

MAX_RENDERED_BYTES = 4 * 1024 * 1024  # a longer rendering streams, however few its elements are
MAX_OPEN_ATTEMPTS = 8  # for a large value that keeps changing; after the last one its edit may conflict needlessly


class ContentLoader:
    """Opens and measures files. Thread-safe; it has no lock of its own."""

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
        self._freshness = freshness
        self._render_limit = render_limit
        self._dump_limit = dump_limit
        self._renderings = RenderingCache()

    # -- strings and fields ------------------------------------------------------------------------------------------

    def open_with_precondition(self, target: KeyRef) -> tuple[FileContent, Precondition]:
        """Return the content of a string or field, and the precondition of an edit of it.

        Raises NotFoundError, WrongTypeError.
        """
        data = self._metadata.get_content(target)
        if data is not None:
            return InlineContent(data), Precondition.from_bytes(data)
        for _ in range(MAX_OPEN_ATTEMPTS):
            version = self._keyspace.get_version(target.key)
            content = self._open_large(target)
            self._keyspace.wait_for_invalidations()
            if self._keyspace.get_version(target.key) == version:  # else a change was announced: before or since
                break
        return content, Precondition.size_equals(content.size, _KeyUnchanged(self._keyspace, target.key, version))

    def open_growing(self, target: KeyRef) -> FileContent:
        """Return the content of a string or field, which grows as bytes are appended.

        Raises NotFoundError, WrongTypeError.
        """
        version = self._keyspace.get_version(target.key)
        return GrowingContent(self.reload(target), version, target, self)

    def precondition_of(self, content: FileContent, target: KeyRef) -> Precondition | None:
        """Return the precondition that a target has a content.

        `open_growing` has just returned it. Of a large string, which is still to be read, it is that no other client
        was seen to change the key. None: of a large field, as the server announces changes of whole keys.
        """
        data = inline_bytes(content)
        if data is not None:
            return Precondition.from_bytes(data)
        if target.field is not None or not isinstance(content, GrowingContent):
            return None
        self._keyspace.wait_for_invalidations()
        version = self._keyspace.get_version(target.key)
        return Precondition.unchanged(UnchangedByOthers(self._keyspace, target.key, version, is_exact=True))

    def open_cached(self, target: KeyRef) -> FileContent | None:
        """Return the same as `open_growing` for a string whose content is cached.

        Returns None otherwise. Doesn't block.
        """
        version = self._keyspace.get_version(target.key)
        data = self._metadata.get_cached_content(target.key)
        return None if data is None else GrowingContent(InlineContent(data), version, target, self)

    def current_version(self, target: KeyRef) -> int:
        """Return a number that grows whenever the target may have changed."""
        return self._keyspace.get_version(target.key)

    def reload(self, target: KeyRef) -> FileContent:
        """Return the current content of a string or field.

        Raises NotFoundError, WrongTypeError.
        """
        data = self._metadata.get_content(target)
        return self._open_large(target) if data is None else InlineContent(data)

    def _open_large(self, target: KeyRef) -> FileContent:
        if target.field is None:
            return RangedContent(self._client, target.key, self._metadata.get_with_content(target.key).length)
        [length] = self._metadata.get_field_lengths(target.key, [target.field])
        if length is None:
            raise NotFoundError("the field no longer exists")
        return SpooledContent(self._client, target.key, target.field, length)

    # -- files of any type -------------------------------------------------------------------------------------------

    def open_content(self, node: KeyNode, expected_size: int | None = None) -> tuple[FileContent, bool]:
        """Return a file's content, and whether it streams.

        Then it is read to its end, whatever its size is.

        `expected_size`: the size reported to the program a moment ago; a cached rendering of that size is used, even an
        outdated one. Raises NotFoundError, WrongTypeError, AccessError, TooLargeError (`%dump`).
        """
        if node.type == UNREADABLE.type:
            raise AccessError("the server's ACL does not let this user read the key")
        if node.is_editable:
            return self.open_growing(node.target), False
        text = self._find_rendering_of_size(node, expected_size)
        if text is None:
            text = self._get_rendering(node)
        if text is not None:
            return InlineContent(text), False
        return StreamedContent(_Rendering(self._client, node)), True

    def measure_size(self, node: KeyNode) -> tuple[int, bool]:
        """Return a file's size in bytes, and whether it streams; then its size is 0."""
        if node.is_editable:
            return node.length, False
        try:
            text = self._get_rendering(node)
        except (NotFoundError, TooLargeError, ConflictError):
            return 0, True  # reading will fail, but `stat` must not
        return (0, True) if text is None else (len(text), False)

    # -- renderings --------------------------------------------------------------------------------------------------

    def _get_rendering(self, node: KeyNode) -> bytes | None:
        """Return the text of a collection or view, cached or rendered now.

        Returns None if it streams.
        """
        key, view = node.target.key, node.view
        if node.length > self._render_limit and view != "dump":
            return None
        if view == "json" and self._may_expire(key):
            return None  # the document contains the TTL, which differs each time
        version = self._keyspace.get_version(key)
        now = time.monotonic()
        cached = self._renderings.get(key, view)
        if cached is not None and cached.version == version and now - cached.rendered_at < self._freshness.max_age():
            return cached.text
        text = self._render_within_limit(node)
        self._renderings.put(key, view, CachedRendering(version, now, text))
        return text

    def _find_rendering_of_size(self, node: KeyNode, size: int | None) -> bytes | None:
        cached = self._renderings.get(node.target.key, node.view)
        if cached is None or cached.text is None or len(cached.text) != size:
            return None
        return cached.text

    def _may_expire(self, key: bytes) -> bool:
        metadata = self._metadata.get_cached(key)
        return metadata is None or metadata.expires_at is not None

    def _render_within_limit(self, node: KeyNode) -> bytes | None:
        if node.view == "dump":
            return fetch_dump(self._client, node.target.key, self._dump_limit)
        return join_within(_Rendering(self._client, node), MAX_RENDERED_BYTES)

    def clear_renderings(self) -> None:
        """Drop every cached rendering."""
        self._renderings.clear()


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
    """Whether a key has not changed since a large value of it was opened.

    A change counts when it is announced.
    """

    def __init__(self, keyspace: KeyspaceMonitor, key: bytes, version: int) -> None:
        self._keyspace = keyspace
        self._key = key
        self._version = version

    def __call__(self) -> bool:
        return self._keyspace.get_version(self._key) == self._version

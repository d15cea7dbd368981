"""Opening and measuring files.

Files are whole and cached if small, in chunks if large, rendered for collections and views. The size of a string or
field is its length. The size of a collection or view is the length of its rendering, if it has at most `render_limit`
elements and its rendering at most `MAX_RENDERED_BYTES`; otherwise the size is 0, and the file streams (docs/limits.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from redisfuse.client.client import RedisClient
from redisfuse.errors import AccessError, ConflictError, NotFoundError, ServerReplyError, TooLargeError
from redisfuse.keyspace.listener import Freshness
from redisfuse.keyspace.metadata import UNREADABLE, MetadataStore
from redisfuse.keyspace.monitor import KeyspaceMonitor
from redisfuse.paths.grammar import KeyRef
from redisfuse.rendering.decoding.limits import DecodeLimits
from redisfuse.rendering.dump import fetch_dump
from redisfuse.rendering.json_document import render_json_document
from redisfuse.rendering.registry import join_within, render_text
from redisfuse.rendering.strings import fetch_length
from redisfuse.rendering.text_view import decode_target, render_decoded_text
from redisfuse.transactions.block_digests import BlockDigests
from redisfuse.transactions.precondition import Precondition
from redisfuse.vfs.content_types import (
    FileContent,
    InlineContent,
    RangedContent,
    SpooledContent,
    StreamedContent,
    sha256_of_content,
)
from redisfuse.vfs.growing_content import GrowingContent, inline_bytes
from redisfuse.vfs.known_versions import UnchangedByOthers
from redisfuse.vfs.nodes import KeyNode
from redisfuse.vfs.observed_content import MAX_OBSERVED_BYTES, ObservedContent
from redisfuse.vfs.rendering_cache import CachedRendering, RenderingCache

MAX_RENDERED_BYTES = 4 * 1024 * 1024  # a longer rendering streams, however few its elements are
_MEMORY_ENTRY = "memory"  # in place of a view: what MEMORY USAGE reported


class ContentStamp(NamedTuple):
    """When a content was fetched."""

    version: int  # of the key
    fetched_at: float  # time.monotonic()


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
        decode_limits: DecodeLimits,
    ) -> None:
        self._client = client
        self._metadata = metadata
        self._keyspace = keyspace
        self._freshness = freshness
        self._render_limit = render_limit
        self._dump_limit = dump_limit
        self._decode_limits = decode_limits
        self._renderings = RenderingCache()

    # -- strings and fields ------------------------------------------------------------------------------------------

    def open_with_precondition(self, target: KeyRef) -> tuple[FileContent, Precondition]:
        """Return the content of a string or field, and the precondition of an edit of it.

        The precondition of a large string covers what is read through the content returned, now or later. A large field
        is fetched whole. Raises NotFoundError, WrongTypeError.
        """
        data = self._metadata.get_content(target)
        if data is not None:
            return InlineContent(data), Precondition.from_bytes(data)
        if target.field is not None:
            # If another client changed the field, its bytes could not be read any more; and the server announces
            # changes of the key only, which may concern another field.
            field = self._open_large(target)
            return field, Precondition.content_equals(field.size, sha256_of_content(field))
        is_unchanged = None
        if self._keyspace.wait_for_invalidations():  # a change from before must not count as one from now on
            is_unchanged = _KeyUnchanged(self._keyspace, target.key)
        blocks = BlockDigests(fetch_length(self._client, target.key))
        content = ObservedContent(self._client, target.key, blocks, is_unchanged)
        if is_unchanged is None and blocks.size <= MAX_OBSERVED_BYTES:
            content.observe(0, blocks.size)  # later it could not be determined whether they are as they were
        return content, Precondition.blocks_equal(blocks, is_unchanged)

    def stamp(self, target: KeyRef) -> ContentStamp:
        """Return the stamp of a content that is fetched after this call."""
        return ContentStamp(self._keyspace.get_version(target.key), time.monotonic())

    def is_current(self, target: KeyRef, stamp: ContentStamp) -> bool:
        """Return whether no change of the key was seen since a stamp.

        A change of another field of a hash counts, too.
        """
        return (
            self._keyspace.get_version(target.key) == stamp.version
            and time.monotonic() - stamp.fetched_at <= self._freshness.max_age()
        )

    def open_saved(self, target: KeyRef, blocks: BlockDigests) -> tuple[FileContent, Precondition]:
        """Return a large string that was just saved, and the precondition of an edit.

        `blocks`: what is known of the string.
        """
        is_unchanged = None
        if self._keyspace.wait_for_invalidations():  # among them is the one of the save
            is_unchanged = _KeyUnchanged(self._keyspace, target.key)
        content = ObservedContent(self._client, target.key, blocks, is_unchanged)
        return content, Precondition.blocks_equal(blocks, is_unchanged)

    def open_growing(self, target: KeyRef) -> FileContent:
        """Return the content of a string or field, which grows as bytes are appended.

        Raises NotFoundError, WrongTypeError.
        """
        version = self._keyspace.get_version(target.key)
        return GrowingContent(self.reload(target), version, target, self)

    def precondition_of(self, content: FileContent, target: KeyRef) -> Precondition | None:
        """Return the precondition that a target has a content.

        `open_growing` has just returned it. Of a large string, which is still to be read, it is that no other client
        was seen to change the key. None: the content is not compared.
        """
        data = inline_bytes(content)
        if data is not None:
            return Precondition.from_bytes(data)
        if target.field is not None:  # the server announces changes of whole keys; the content is in a temporary file
            return Precondition.content_equals(content.size, sha256_of_content(content))
        if not isinstance(content, GrowingContent):
            return None
        self._keyspace.wait_for_invalidations()
        version = self._keyspace.get_version(target.key)
        return Precondition.unchanged(UnchangedByOthers(self._keyspace, target.key, version, is_exact=True))

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
        max_sorted = self._render_limit if node.length <= self._render_limit else 0
        return StreamedContent(_Rendering(self._client, node, self._decode_limits, max_sorted)), True

    def measure_size(self, node: KeyNode) -> tuple[int, bool]:
        """Return a file's size in bytes, and whether it streams; then its size is 0."""
        if node.is_editable:
            return node.length, False
        try:
            text = self._get_rendering(node)
        except (NotFoundError, TooLargeError, ConflictError):
            return 0, True  # reading will fail, but `stat` must not
        return (0, True) if text is None else (len(text), False)

    def measure_memory(self, node: KeyNode) -> int | None:
        """Return the bytes of memory that a collection of unknown size takes in Redis.

        The server estimates them from a sample of the elements (MEMORY USAGE). Returns None for other files, and if
        the server does not report it.
        """
        if node.is_editable or node.view is not None:
            return None
        key = node.target.key
        version, now = self._keyspace.get_version(key), time.monotonic()
        cached = self._renderings.get(node.target, _MEMORY_ENTRY)
        if cached is None or not self._is_current(cached, version, now):
            try:
                reply = self._client.execute(b"MEMORY", b"USAGE", key)
            except (AccessError, NotFoundError, ServerReplyError):
                reply = None
            cached = CachedRendering(version, now, None, reply if isinstance(reply, int) else None)
            self._renderings.put(node.target, _MEMORY_ENTRY, cached)
        return cached.memory_bytes

    def describe_unmeasured(self, node: KeyNode) -> str:
        """Return the type and number of elements of a collection that shows size 0.

        Returns "" for other files. Sends nothing.
        """
        if node.is_editable or node.view is not None or not node.length:
            return ""
        cached = self._renderings.get(node.target, None)
        if node.length <= self._render_limit and (cached is None or cached.text is not None):
            return ""
        return f"{node.type.decode('ascii', 'backslashreplace')} of {node.length} elements"

    # -- renderings --------------------------------------------------------------------------------------------------

    def _get_rendering(self, node: KeyNode) -> bytes | None:
        """Return the text of a collection or view, cached or rendered now.

        Returns None if it streams.
        """
        key, view = node.target.key, node.view
        if node.length > self._render_limit and view != "dump" and (view != "text" or node.is_collection):
            return None
        if view == "json" and (node.type == b"stream" or self._may_expire(key)):
            # The document contains the TTL, which differs each time, or the groups, whose changes are not announced.
            return None
        version = self._keyspace.get_version(key)
        now = time.monotonic()
        cached = self._renderings.get(node.target, view)
        if cached is not None and self._is_current(cached, version, now):
            return cached.text
        text = self._render_within_limit(node)
        self._renderings.put(node.target, view, CachedRendering(version, now, text))
        return text

    def _is_current(self, cached: CachedRendering, version: int, now: float) -> bool:
        return cached.version == version and now - cached.rendered_at < self._freshness.max_age()

    def _find_rendering_of_size(self, node: KeyNode, size: int | None) -> bytes | None:
        cached = self._renderings.get(node.target, node.view)
        if cached is None or cached.text is None or len(cached.text) != size:
            return None
        return cached.text

    def _may_expire(self, key: bytes) -> bool:
        metadata = self._metadata.get_cached(key)
        return metadata is None or metadata.expires_at is not None

    def _render_within_limit(self, node: KeyNode) -> bytes | None:
        if node.view == "dump":
            return fetch_dump(self._client, node.target.key, self._dump_limit)
        max_seconds = self._decode_limits.seconds if node.view == "text" and node.is_collection else None
        chunks = _Rendering(self._client, node, self._decode_limits, self._render_limit)
        return join_within(chunks, MAX_RENDERED_BYTES, max_seconds)

    def describe_encoding(self, node: KeyNode) -> str | None:
        """Return how a string or field is encoded, such as `gzip > msgpack`.

        None for a collection.

        Raises NotFoundError, WrongTypeError, ConflictError.
        """
        if node.is_collection:
            return None
        return decode_target(self._client, node.target, self._decode_limits).summary

    def clear_renderings(self) -> None:
        """Drop every cached rendering."""
        self._renderings.clear()


@dataclass(frozen=True, slots=True)
class _Rendering:
    """The text of a collection or view. Each iteration fetches it again."""

    client: RedisClient
    node: KeyNode
    decode_limits: DecodeLimits
    max_sorted: int = 0  # elements of a set or hash that are sorted; of more, none is

    def __iter__(self) -> Iterator[bytes]:
        if self.node.view is None:
            return render_text(self.client, self.node.target.key, self.node.type, max_sorted=self.max_sorted)
        if self.node.view == "text":
            return render_decoded_text(
                self.client, self.node.target, self.node.type, self.decode_limits, max_sorted=self.max_sorted
            )
        return render_json_document(
            self.client, self.node.target.key, decode_limits=self.decode_limits, max_sorted=self.max_sorted
        )


class _KeyUnchanged:
    """Whether a key has not changed since this object was created.

    False if that is uncertain.
    """

    def __init__(self, keyspace: KeyspaceMonitor, key: bytes) -> None:
        self._keyspace = keyspace
        self._key = key
        self._version = keyspace.get_version(key)

    def __call__(self) -> bool:
        if self._keyspace.get_version(self._key) != self._version:
            return False
        return self._keyspace.wait_for_invalidations() and self._keyspace.get_version(self._key) == self._version

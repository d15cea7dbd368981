"""Content for a reader that keeps its file open while the value in Redis grows.

Such a reader is `tail -F`, or a pager in follow mode. A reader keeps seeing the content as of its open, whatever
happens to the value. Bytes that were appended since are returned too, as in any filesystem. A replaced value is visible
only to a new open.
"""

from __future__ import annotations

import threading
from typing import Protocol

from redisfuse.errors import RedisFuseError
from redisfuse.paths.grammar import KeyRef
from redisfuse.vfs.content_types import FileContent, InlineContent

TAIL_COMPARE_BYTES = 4096  # bytes before the old end that must be unchanged for a longer value to count as appended to


class ContentSource(Protocol):
    """The source of current values, which `ContentLoader` implements."""

    def current_version(self, target: KeyRef) -> int:
        """Return a number that grows whenever the target may have changed."""
        ...

    def reload(self, target: KeyRef) -> FileContent:
        """Return the target's current content."""
        ...


class GrowingContent:
    """A content that grows with its target. Thread-safe."""

    def __init__(self, content: FileContent, version: int, target: KeyRef, source: ContentSource) -> None:
        """`version` is the target's, from before `content` was loaded."""
        self._target = target
        self._source = source
        self._lock = threading.Lock()  # guards writes to the three below; held while the server is queried
        self._content = content
        self._version = version
        self._is_closed = False
        self.is_replaced = False  # whether the target had another content when it was last loaded
        self._tail = b""  # the last bytes of a content that isn't inline, once they were read

    @property
    def size(self) -> int:
        """The length in bytes of the content being read."""
        return self._content.size

    @property
    def data(self) -> bytes | None:
        """The content being read, if it is in memory."""
        return self._content.data

    @property
    def current_content(self) -> FileContent:
        """The content being read."""
        return self._content

    @property
    def is_current(self) -> bool:
        """Whether the target has not changed since it was last loaded."""
        return self._version == self._source.current_version(self._target)

    def refresh(self) -> None:
        """Add the bytes that were appended since."""
        version = self._source.current_version(self._target)
        if version != self._version:
            self._reload_if_appended(version)

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes. Raises the errors of reading the value."""
        if offset + size > self._content.size:
            self.refresh()
        content = self._content
        data = content.read(offset, size)
        if data and offset + len(data) == content.size and not isinstance(content, InlineContent):
            self._tail = data[-TAIL_COMPARE_BYTES:]
        return data

    def _reload_if_appended(self, version: int) -> None:
        with self._lock:
            old = self._content
            if version == self._version or self._is_closed:
                return
            self._version = version
            try:
                new = self._source.reload(self._target)
                is_appended = new.size > old.size and self._is_appended(old, new)
                self.is_replaced = not is_appended and not _have_same_bytes(old, new)
            except RedisFuseError:
                self.is_replaced = True
                return  # deleted, of another type, or unavailable: the reader reads the old content to its end
            if is_appended:
                self._content = new
            (old if is_appended else new).close()

    def _is_appended(self, old: FileContent, new: FileContent) -> bool:
        tail = old.data[-TAIL_COMPARE_BYTES:] if isinstance(old, InlineContent) else self._tail
        return (bool(tail) or not old.size) and new.read(old.size - len(tail), len(tail)) == tail

    def close(self) -> None:
        """Close the content being read."""
        with self._lock:
            self._is_closed = True
            self._content.close()


def _have_same_bytes(old: FileContent, new: FileContent) -> bool:
    return isinstance(old, InlineContent) and isinstance(new, InlineContent) and old.data == new.data


def unwrap_content(content: FileContent | None) -> FileContent | None:
    """Return the content that a growing content reads now; any other content itself."""
    return content.current_content if isinstance(content, GrowingContent) else content


def inline_bytes(content: FileContent | None) -> bytes | None:
    """Return the bytes of a content that is in memory; None for any other content."""
    return None if content is None else content.data


def read_cached(content: FileContent, offset: int, size: int) -> bytes | None:
    """Return the same as `content.read`, if that needs no query.

    The bytes are in memory and current; else None.
    """
    data = content.data
    if data is None:
        return None
    if offset + size > len(data) and isinstance(content, GrowingContent) and not content.is_current:
        return None
    return data[offset : offset + size]

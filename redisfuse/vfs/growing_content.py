"""A reader that holds on to its file while the value in Redis grows: `tail -F`, a viewer that waits for more.

What `open` saw is what is read, whatever becomes of the value; but what was appended to it since is given too, as in
any filesystem. A value that was replaced is seen by whoever opens the file again.
"""

from __future__ import annotations

import threading
from typing import Protocol

from redisfuse.errors import RedisFuseError
from redisfuse.paths.grammar import KeyRef
from redisfuse.vfs.content_types import FileContent, InlineContent

TAIL_COMPARE_BYTES = 4096  # bytes before the old end that must be the same for a longer value to count as appended to


class ContentSource(Protocol):
    """Where values come from: `reading.Reader`."""

    def current_version(self, target: KeyRef) -> int:
        """A number that grows whenever the target may have changed."""
        ...

    def reload(self, target: KeyRef) -> FileContent:
        """What it holds now."""
        ...


class GrowingContent:
    """A snapshot that grows with its target. Thread-safe."""

    def __init__(self, content: FileContent, version: int, target: KeyRef, source: ContentSource) -> None:
        self._content = content
        self._version = version  # before the snapshot was made
        self._target = target
        self._source = source
        self._tail = b""  # the last bytes of a large value, once they were read
        self._lock = threading.Lock()
        self._closed = False

    @property
    def size(self) -> int:
        """Bytes of what is being read."""
        return self._content.size

    @property
    def current_content(self) -> FileContent:
        """What it reads from at this moment."""
        return self._content

    @property
    def is_current(self) -> bool:
        """Whether the value was not heard of since it was last looked at."""
        return self._version == self._source.current_version(self._target)

    def refresh(self) -> None:
        """Take in what was appended since."""
        version = self._source.current_version(self._target)
        if version != self._version:
            self._reload_if_appended(version)

    def read(self, offset: int, size: int) -> bytes:
        """The bytes; raises what reading the value raises."""
        if offset + size > self._content.size:
            self.refresh()
        snapshot = self._content
        data = snapshot.read(offset, size)
        if data and offset + len(data) == snapshot.size and not isinstance(snapshot, InlineContent):
            self._tail = data[-TAIL_COMPARE_BYTES:]
        return data

    def _reload_if_appended(self, version: int) -> FileContent:
        with self._lock:
            old = self._content
            if version == self._version or self._closed:
                return old
            self._version = version
            try:
                new = self._source.reload(self._target)
                appended = new.size > old.size and self._is_appended(old, new)
            except RedisFuseError:
                return old  # it is gone, or of another type now, or can't be had: who has it open reads it to its end
            if appended:
                self._content = new
            (old if appended else new).close()
            return self._content

    def _is_appended(self, old: FileContent, new: FileContent) -> bool:
        end = old.data[-TAIL_COMPARE_BYTES:] if isinstance(old, InlineContent) else self._tail
        return (bool(end) or not old.size) and new.read(old.size - len(end), len(end)) == end

    def close(self) -> None:
        """Let go of what it holds."""
        with self._lock:
            self._closed = True
            self._content.close()


def unwrap_content(content: FileContent | None) -> FileContent | None:
    """What is read from at this moment."""
    return content.current_content if isinstance(content, GrowingContent) else content


def inline_bytes(content: FileContent | None) -> bytes | None:
    """What a snapshot that is held in memory holds; None of any other."""
    content = unwrap_content(content)
    return content.data if isinstance(content, InlineContent) else None


def read_cached(content: FileContent, offset: int, size: int) -> bytes | None:
    """The bytes from `offset`, as reading gives them, if they are held in memory and nothing need be asked."""
    if isinstance(content, GrowingContent):
        inner = content.current_content
        if not isinstance(inner, InlineContent) or not (offset + size <= inner.size or content.is_current):
            return None
        return inner.read(offset, size)
    return content.read(offset, size) if isinstance(content, InlineContent) else None

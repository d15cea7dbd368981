"""Cached renderings of collections and views.

With the cache, the size and the content of a file agree.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from redisfuse.paths.grammar import KeyRef

MAX_CACHED_BYTES = 32 * 1024 * 1024
ENTRY_OVERHEAD_BYTES = 200


class CachedRendering(NamedTuple):
    """The text of a file, and the version of the key that it was rendered from."""

    version: int
    rendered_at: float  # time.monotonic()
    text: bytes | None  # None: too long to be cached, so the file streams
    memory_bytes: int | None = None  # that the key takes in Redis

    @property
    def cost_bytes(self) -> int:
        """The memory that it takes, about."""
        return ENTRY_OVERHEAD_BYTES + len(self.text or b"")


class RenderingCache:
    """The most recently used renderings, by key or field, and view.

    Thread-safe: nothing is called under its lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by `_lock`:
        self._renderings: OrderedDict[tuple[KeyRef, str | None], CachedRendering] = OrderedDict()
        self._cached_bytes = 0

    def get(self, target: KeyRef, view: str | None) -> CachedRendering | None:
        """Return the cached rendering, however old, and mark it as used."""
        with self._lock:
            rendering = self._renderings.get((target, view))
            if rendering is not None:
                self._renderings.move_to_end((target, view))
            return rendering

    def put(self, target: KeyRef, view: str | None, rendering: CachedRendering) -> None:
        """Cache a rendering.

        Evicts the least recently used ones beyond `MAX_CACHED_BYTES`.
        """
        with self._lock:
            replaced = self._renderings.pop((target, view), None)
            self._cached_bytes += rendering.cost_bytes - (0 if replaced is None else replaced.cost_bytes)
            self._renderings[target, view] = rendering
            while self._cached_bytes > MAX_CACHED_BYTES and len(self._renderings) > 1:
                _, evicted = self._renderings.popitem(last=False)
                self._cached_bytes -= evicted.cost_bytes

    def clear(self) -> None:
        """Drop every rendering."""
        with self._lock:
            self._renderings.clear()
            self._cached_bytes = 0

"""Complete directory listings, cached until a key below the directory changes.

Used only while every change is announced. A change of a key invalidates the listings of all directories above it: the
key may have been created, deleted or changed to another type, and so may have the directories. A listing holds names
only: attributes are checked when they are reported to the kernel (`mount/adapter.py`).

The lock is held for a few dictionary operations; nothing is called under it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")

DirectoryComponents = tuple[bytes, ...]

MAX_CACHED_NAMES = 50_000  # names in all cached listings, at about 300 bytes each


class ReaddirCache(Generic[_T]):
    """The entries of directories, least recently used first. Thread-safe."""

    def __init__(self, split_key: Callable[[bytes], DirectoryComponents], max_names: int = MAX_CACHED_NAMES) -> None:
        """`split_key` returns the components of a key; all but the last are directories."""
        self._split_key = split_key
        self._max_names = max_names
        self._lock = threading.Lock()
        # Guarded by `_lock`:
        self._listings: OrderedDict[DirectoryComponents, list[_T]] = OrderedDict()
        self._name_count = 0  # in all of `_listings`
        # One token for each listing being built, until a change invalidates it.
        self._fill_tokens: dict[DirectoryComponents, set[object]] = {}

    def get_or_build(self, directory: DirectoryComponents, build: Callable[[], Iterable[_T]]) -> Iterator[_T]:
        """Return the cached listing, or yield from `build`.

        The new listing is cached if it is iterated to its end.
        """
        with self._lock:
            cached = self._listings.get(directory)
            if cached is not None:
                self._listings.move_to_end(directory)
        return self._build(directory, build) if cached is None else iter(cached)

    def _build(self, directory: DirectoryComponents, build: Callable[[], Iterable[_T]]) -> Iterator[_T]:
        token = object()
        with self._lock:
            self._fill_tokens.setdefault(directory, set()).add(token)
        try:
            entries: list[_T] = []
            for entry in build():
                if len(entries) <= self._max_names:
                    entries.append(entry)
                yield entry
            self._store(directory, entries, token)
        finally:
            with self._lock:
                self._end_fill(directory, token)

    def _store(self, directory: DirectoryComponents, entries: list[_T], token: object) -> None:
        with self._lock:
            if len(entries) > self._max_names or token not in self._fill_tokens.get(directory, ()):
                return
            self._evict(directory)
            self._listings[directory] = entries
            self._name_count += len(entries)
            while self._name_count > self._max_names:
                self._evict(next(iter(self._listings)))

    def _end_fill(self, directory: DirectoryComponents, token: object) -> None:
        tokens = self._fill_tokens.get(directory)
        if tokens is not None:
            tokens.discard(token)
            if not tokens:
                del self._fill_tokens[directory]

    def _evict(self, directory: DirectoryComponents) -> None:
        self._name_count -= len(self._listings.pop(directory, ()))

    def invalidate_keys(self, keys: Collection[bytes]) -> None:
        """Drop the listings of all directories above changed keys.

        The keys were created, changed or deleted.
        """
        if not self._listings and not self._fill_tokens:
            return
        directories = {directory for key in keys for directory in self._ancestors(key)}
        with self._lock:
            for directory in directories:
                self._fill_tokens.pop(directory, None)
                if directory in self._listings:
                    self._evict(directory)

    def _ancestors(self, key: bytes) -> Iterator[DirectoryComponents]:
        components = self._split_key(key)
        return (components[:depth] for depth in range(len(components)))

    def invalidate_all(self) -> None:
        """Drop every listing."""
        with self._lock:
            self._listings.clear()
            self._fill_tokens.clear()
            self._name_count = 0

"""Listings that were made before and are still right, so that listing a directory again costs little.

Kept only while every change is told. A change of a key ends the listings of all directories above it: it may have come,
gone, or become another type, and so may the directories. What the kernel is told of a name's attributes is checked when
it is told (`mount/adapter.py`), so a listing is about names.

The lock is held for a few dictionary operations; nothing is called under it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")

DirectoryComponents = tuple[bytes, ...]

MAX_CACHED_NAMES = 50_000  # names in all listings that are kept, at about 300 bytes each


class ReaddirCache(Generic[_T]):
    """The names of directories, as lists of whatever the caller makes of a name. Thread-safe."""

    def __init__(self, split_key: Callable[[bytes], DirectoryComponents], max_names: int = MAX_CACHED_NAMES) -> None:
        self._split_key = split_key  # a key into its components
        self._max_names = max_names
        self._lock = threading.Lock()
        self._listings: OrderedDict[DirectoryComponents, list[_T]] = OrderedDict()
        self._name_count = 0  # in all of `_listings`
        self._fill_tokens: dict[
            DirectoryComponents, set[object]
        ] = {}  # listings under way in which nothing has changed so far

    def get_or_build(self, directory: DirectoryComponents, build: Callable[[], Iterable[_T]]) -> Iterator[_T]:
        """The listing that is kept, or the one that `make` gives, which is then kept if it gets to its end."""
        with self._lock:
            kept = self._listings.get(directory)
            if kept is not None:
                self._listings.move_to_end(directory)
        return self._build(directory, build) if kept is None else iter(kept)

    def _build(self, directory: DirectoryComponents, build: Callable[[], Iterable[_T]]) -> Iterator[_T]:
        mark = object()
        with self._lock:
            self._fill_tokens.setdefault(directory, set()).add(mark)
        try:
            made: list[_T] = []
            for item in build():
                if len(made) <= self._max_names:
                    made.append(item)
                yield item
            self._store(directory, made, mark)
        finally:
            with self._lock:
                self._end_fill(directory, mark)

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
        marks = self._fill_tokens.get(directory)
        if marks is not None:
            marks.discard(token)
            if not marks:
                del self._fill_tokens[directory]

    def _evict(self, directory: DirectoryComponents) -> None:
        self._name_count -= len(self._listings.pop(directory, ()))

    def invalidate_keys(self, keys: Collection[bytes]) -> None:
        """These keys were made, altered or removed."""
        if not self._listings and not self._fill_tokens:
            return
        above = {directory for key in keys for directory in self._ancestors(key)}
        with self._lock:
            for directory in above:
                self._fill_tokens.pop(directory, None)
                if directory in self._listings:
                    self._evict(directory)

    def _ancestors(self, key: bytes) -> Iterator[DirectoryComponents]:
        components = self._split_key(key)
        return (components[:depth] for depth in range(len(components)))

    def invalidate_all(self) -> None:
        """Anything may have changed."""
        with self._lock:
            self._listings.clear()
            self._fill_tokens.clear()
            self._name_count = 0

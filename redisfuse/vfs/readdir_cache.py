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

Directory = tuple[bytes, ...]

MOST = 50_000  # names in all listings that are kept, at about 300 bytes each


class Listings(Generic[_T]):
    """The names of directories, as lists of whatever the caller makes of a name. Thread-safe."""

    def __init__(self, split: Callable[[bytes], Directory], most: int = MOST) -> None:
        self._split = split  # a key into its components
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[Directory, list[_T]] = OrderedDict()
        self._names = 0  # in all of `_kept`
        self._making: dict[Directory, set[object]] = {}  # listings under way in which nothing has changed so far

    def of(self, directory: Directory, make: Callable[[], Iterable[_T]]) -> Iterator[_T]:
        """The listing that is kept, or the one that `make` gives, which is then kept if it gets to its end."""
        with self._lock:
            kept = self._kept.get(directory)
            if kept is not None:
                self._kept.move_to_end(directory)
        return self._made(directory, make) if kept is None else iter(kept)

    def _made(self, directory: Directory, make: Callable[[], Iterable[_T]]) -> Iterator[_T]:
        mark = object()
        with self._lock:
            self._making.setdefault(directory, set()).add(mark)
        try:
            made: list[_T] = []
            for item in make():
                if len(made) <= self._most:
                    made.append(item)
                yield item
            self._keep(directory, made, mark)
        finally:
            with self._lock:
                self._end(directory, mark)

    def _keep(self, directory: Directory, made: list[_T], mark: object) -> None:
        with self._lock:
            if len(made) > self._most or mark not in self._making.get(directory, ()):
                return
            self._drop(directory)
            self._kept[directory] = made
            self._names += len(made)
            while self._names > self._most:
                self._drop(next(iter(self._kept)))

    def _end(self, directory: Directory, mark: object) -> None:
        marks = self._making.get(directory)
        if marks is not None:
            marks.discard(mark)
            if not marks:
                del self._making[directory]

    def _drop(self, directory: Directory) -> None:
        self._names -= len(self._kept.pop(directory, ()))

    def changed(self, keys: Collection[bytes]) -> None:
        """These keys were made, altered or removed."""
        if not self._kept and not self._making:
            return
        above = {directory for key in keys for directory in self._above(key)}
        with self._lock:
            for directory in above:
                self._making.pop(directory, None)
                if directory in self._kept:
                    self._drop(directory)

    def _above(self, key: bytes) -> Iterator[Directory]:
        components = self._split(key)
        return (components[:depth] for depth in range(len(components)))

    def forget(self) -> None:
        """Anything may have changed."""
        with self._lock:
            self._kept.clear()
            self._making.clear()
            self._names = 0

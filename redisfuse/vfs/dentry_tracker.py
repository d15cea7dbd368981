"""What the kernel was told and may believe for long, so that each change can be pushed to it (DESIGN.md 4).

Only what was asked about is remembered, in bounded memory; past the bound everything is invalidated at once. A name is
noted *before* the server is asked about it: a change that comes in between is pushed once too often, not too seldom.

Threads: any. Locks are held only for bookkeeping; `push` and `push_all` must return at once (fuse/notify.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable

from redisfuse.errors import NotFoundError
from redisfuse.keyspace.index import Index
from redisfuse.paths.grammar import VIEWS, Grammar, Reading, Root, Updater

MOST = 400_000  # keys and names remembered, at about 100 bytes each
AT_ONCE = 5_000  # changed keys for which single names are pushed; beyond, everything is


class Told:
    """Names that the kernel may have cached, and the pushing of changes to them."""

    def __init__(
        self,
        grammar: Grammar,
        index: Callable[[], Index],
        push: Callable[[Iterable[bytes]], None],
        push_listings: Callable[[Iterable[bytes]], None],
        push_all: Callable[[], None],
    ) -> None:
        self._grammar = grammar
        self._index = index
        self._push = push
        self._push_listings = push_listings  # of directories whose own names stand
        self._push_all = push_all
        self._lock = threading.Lock()
        self._keys: set[int] = set()  # hashes of keys whose own name was listed or asked about
        self._marked: set[int] = set()  # hashes of paths that were asked about and have a `%` in the last name
        self._fields: dict[int, set[bytes]] = {}  # hash of a key -> names that read as its fields
        self._directories: dict[int, bool] = {}  # hash of a prefix -> whether it existed when it was last looked at
        self._count = 0

    def note(self, path: bytes) -> None:
        """A program asks about a path (without its leading slash): the kernel will remember the answer."""
        try:
            meaning = self._grammar.parse(path)
        except NotFoundError:
            return  # no key can ever have this name
        if isinstance(meaning, Reading):
            with self._lock:
                self._note(path, meaning)
                full = self._count > MOST
            if full:
                self.forget()
        elif not isinstance(meaning, Root | Updater):
            with self._lock:
                self._keys.add(_ODD)

    def note_keys(self, keys: Iterable[bytes]) -> None:
        """These keys are about to be listed, with attributes that the kernel may remember."""
        with self._lock:
            before = len(self._keys)
            self._keys.update(map(hash, keys))
            self._count += len(self._keys) - before
            full = self._count > MOST
        if full:
            self.forget()

    def _note(self, path: bytes, reading: Reading) -> None:
        grammar = self._grammar
        before = len(self._keys) + len(self._directories) + len(self._marked)
        if reading.as_key is not None:
            self._keys.add(hash(grammar.join((*reading.directory, reading.as_key))))
            if b"%" in reading.name:
                self._marked.add(hash(path))
        if reading.as_directory is not None:
            directory = (*reading.directory, reading.as_directory)
            self._directories[hash(grammar.prefix(directory))] = self._index().is_directory(directory)
        if reading.as_field is not None:
            names = self._fields.setdefault(hash(grammar.join((*reading.directory, reading.as_field[0]))), set())
            self._count -= len(names)
            names.add(path)
            self._count += len(names)
        self._count += len(self._keys) + len(self._directories) + len(self._marked) - before

    def changed(self, keys: Collection[bytes]) -> None:
        """These keys were made, altered or removed: push what the kernel knows of them."""
        if len(keys) > AT_ONCE:
            self.forget()
            return
        paths: set[bytes] = set()
        listings: set[bytes] = set()
        for key in keys:
            if not self._collect(key, paths, listings):
                self.forget()
                return
        if listings:
            self._push_listings(listings)
        if paths:
            self._push(paths)

    def _collect(self, key: bytes, paths: set[bytes], listings: set[bytes]) -> bool:
        """Add what is to be pushed for one key; False if all must be."""
        grammar = self._grammar
        *directory, leaf = grammar.split(key)
        mark = hash(key)
        with self._lock:
            known = mark in self._keys
            if known:
                self._keys.discard(mark)
                self._count -= 1
            names = self._fields.pop(mark, ())
            self._count -= len(names)
            odd = _ODD in self._keys
        if odd and (grammar.key_is_long(key) or any(len(component) > 80 for component in (*directory, leaf))):
            return False
        paths.update(names)
        if known:
            paths.update(self._spellings(directory, leaf))
        self._collect_directories(directory, paths, listings)
        return True

    def _collect_directories(self, directory: list[bytes], paths: set[bytes], listings: set[bytes]) -> None:
        """The directory that lists a key, and those that appeared or vanished with it."""
        grammar, index = self._grammar, self._index()
        if not directory or hash(grammar.prefix(directory)) in self._directories:
            listings.add(grammar.directory_path(directory))
        for depth in range(len(directory), 0, -1):
            above = tuple(directory[:depth])
            mark = hash(grammar.prefix(above))
            known = self._directories.get(mark)
            if known is None:
                continue
            exists = index.is_directory(above)
            if exists != known:
                with self._lock:
                    self._directories[mark] = exists
                paths.add(grammar.directory_path(above))
                paths.update(self._spellings(list(above[:-1]), above[-1]))
                listings.add(grammar.directory_path(above[:-1]))

    def _spellings(self, directory: list[bytes], leaf: bytes) -> set[bytes]:
        """Every path at which a program may have found a key."""
        grammar, root = self._grammar, not directory
        names = {grammar.key_name(leaf, dots=dots, root=root) for dots in (False, True)}
        if not self._marked:
            return {grammar.path(directory, name) for name in names}
        marked = {grammar.mark(name) for name in names} | {name + view for name in names for view in VIEWS}
        found = {grammar.path(directory, name) for name in names}
        for path in (grammar.path(directory, name) for name in marked - names):
            if hash(path) in self._marked:
                found.add(path)
        return found

    def forget(self) -> None:
        """Anything may have changed: let the kernel forget all."""
        with self._lock:
            self._keys.clear()
            self._fields.clear()
            self._directories.clear()
            self._marked.clear()
            self._count = 0
        self._push_all()


_ODD = 0  # stands for names that are cut or are digests: too rare to be told apart

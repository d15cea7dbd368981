"""What the kernel was told and may believe for long, so that each change can be pushed to it (DESIGN.md 4).

Only what was asked about is remembered, in bounded memory; past the bound everything is invalidated at once. A name is
noted *before* the server is asked about it: a change that comes in between is pushed once too often, not too seldom.

Threads: any. Locks are held only for bookkeeping; `push` and `push_all` must return at once (fuse/notify.py).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from redisfuse.errors import NotFoundError
from redisfuse.keyspace.monitor import KeyspaceMonitor
from redisfuse.paths.grammar import VIEW_SUFFIXES, PathCandidates, PathCodec, RefreshFile, RootDir

if TYPE_CHECKING:
    from redisfuse.vfs.coherence import KernelCache

MAX_TRACKED_NAMES = 400_000  # keys and names remembered, at about 100 bytes each
MAX_CHANGED_KEYS = 5_000  # changed keys for which single names are pushed; beyond, everything is


class DentryTracker:
    """Names that the kernel may have cached, and the pushing of changes to them."""

    def __init__(
        self,
        grammar: PathCodec,
        keyspace: KeyspaceMonitor,
        kernel_cache: KernelCache,
    ) -> None:
        self._grammar = grammar
        self._keyspace = keyspace
        self._kernel_cache = kernel_cache
        self._lock = threading.Lock()
        self._key_hashes: set[int] = set()  # hashes of keys whose own name was listed or asked about
        self._marked_path_hashes: set[int] = (
            set()
        )  # hashes of paths that were asked about and have a `%` in the last name
        self._field_paths: dict[int, set[bytes]] = {}  # hash of a key -> names that read as its fields
        self._directory_existence: dict[
            int, bool
        ] = {}  # hash of a prefix -> whether it existed when it was last looked at
        self._tracked_count = 0

    def track_path(self, path: bytes) -> None:
        """A program asks about a path (without its leading slash): the kernel will remember the answer."""
        try:
            meaning = self._grammar.parse(path)
        except NotFoundError:
            return  # no key can ever have this name
        if isinstance(meaning, PathCandidates):
            with self._lock:
                self._track_candidates(path, meaning)
                full = self._tracked_count > MAX_TRACKED_NAMES
            if full:
                self.invalidate_all()
        elif not isinstance(meaning, RootDir | RefreshFile):
            with self._lock:
                self._key_hashes.add(_SPLIT_OR_DIGEST_NAMES)

    def track_keys(self, keys: Iterable[bytes]) -> None:
        """These keys are about to be listed, with attributes that the kernel may remember."""
        with self._lock:
            before = len(self._key_hashes)
            self._key_hashes.update(map(hash, keys))
            self._tracked_count += len(self._key_hashes) - before
            full = self._tracked_count > MAX_TRACKED_NAMES
        if full:
            self.invalidate_all()

    def _track_candidates(self, path: bytes, candidates: PathCandidates) -> None:
        grammar = self._grammar
        before = len(self._key_hashes) + len(self._directory_existence) + len(self._marked_path_hashes)
        if candidates.as_key is not None:
            self._key_hashes.add(hash(grammar.join_key((*candidates.directory, candidates.as_key))))
            if b"%" in candidates.name:
                self._marked_path_hashes.add(hash(path))
        if candidates.as_directory is not None:
            directory = (*candidates.directory, candidates.as_directory)
            self._directory_existence[hash(grammar.key_prefix(directory))] = self._keyspace.index.is_directory(
                directory
            )
        if candidates.as_field is not None:
            names = self._field_paths.setdefault(
                hash(grammar.join_key((*candidates.directory, candidates.as_field[0]))), set()
            )
            self._tracked_count -= len(names)
            names.add(path)
            self._tracked_count += len(names)
        self._tracked_count += (
            len(self._key_hashes) + len(self._directory_existence) + len(self._marked_path_hashes) - before
        )

    def invalidate_keys(self, keys: Collection[bytes]) -> None:
        """These keys were made, altered or removed: push what the kernel knows of them."""
        if len(keys) > MAX_CHANGED_KEYS:
            self.invalidate_all()
            return
        paths: set[bytes] = set()
        listings: set[bytes] = set()
        for key in keys:
            if not self._collect_key(key, paths, listings):
                self.invalidate_all()
                return
        if listings:
            self._kernel_cache.invalidate(listings, keep_dentry=True)
        if paths:
            self._kernel_cache.invalidate(paths)

    def _collect_key(self, key: bytes, paths: set[bytes], listing_paths: set[bytes]) -> bool:
        """Add what is to be pushed for one key; False if all must be."""
        grammar = self._grammar
        *directory, leaf = grammar.split_key(key)
        mark = hash(key)
        with self._lock:
            known = mark in self._key_hashes
            if known:
                self._key_hashes.discard(mark)
                self._tracked_count -= 1
            names = self._field_paths.pop(mark, ())
            self._tracked_count -= len(names)
            odd = _SPLIT_OR_DIGEST_NAMES in self._key_hashes
        if odd and (grammar.key_needs_digest(key) or any(len(component) > 80 for component in (*directory, leaf))):
            return False
        paths.update(names)
        if known:
            paths.update(self._possible_paths(directory, leaf))
        self._collect_directories(directory, paths, listing_paths)
        return True

    def _collect_directories(self, directory: list[bytes], paths: set[bytes], listing_paths: set[bytes]) -> None:
        """The directory that lists a key, and those that appeared or vanished with it."""
        grammar, index = self._grammar, self._keyspace.index
        if not directory or hash(grammar.key_prefix(directory)) in self._directory_existence:
            listing_paths.add(grammar.directory_path(directory))
        for depth in range(len(directory), 0, -1):
            above = tuple(directory[:depth])
            mark = hash(grammar.key_prefix(above))
            known = self._directory_existence.get(mark)
            if known is None:
                continue
            exists = index.is_directory(above)
            if exists != known:
                with self._lock:
                    self._directory_existence[mark] = exists
                paths.add(grammar.directory_path(above))
                paths.update(self._possible_paths(list(above[:-1]), above[-1]))
                listing_paths.add(grammar.directory_path(above[:-1]))

    def _possible_paths(self, directory: list[bytes], leaf: bytes) -> set[bytes]:
        """Every path at which a program may have found a key."""
        grammar, root = self._grammar, not directory
        names = {grammar.key_name(leaf, escape_dots=dots, in_root=root) for dots in (False, True)}
        if not self._marked_path_hashes:
            return {grammar.join_path(directory, name) for name in names}
        marked = {grammar.add_file_mark(name) for name in names} | {
            name + view for name in names for view in VIEW_SUFFIXES
        }
        found = {grammar.join_path(directory, name) for name in names}
        for path in (grammar.join_path(directory, name) for name in marked - names):
            if hash(path) in self._marked_path_hashes:
                found.add(path)
        return found

    def invalidate_all(self) -> None:
        """Anything may have changed: let the kernel forget all."""
        with self._lock:
            self._key_hashes.clear()
            self._field_paths.clear()
            self._directory_existence.clear()
            self._marked_path_hashes.clear()
            self._tracked_count = 0
        self._kernel_cache.invalidate_all()


_SPLIT_OR_DIGEST_NAMES = 0  # stands for names that are cut or are digests: too rare to be told apart

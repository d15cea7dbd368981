"""Names that the kernel may have cached with long time-outs.

They are invalidated when keys change.

Only names that were looked up or listed are tracked, in bounded memory; beyond the bound, everything is invalidated at
once. A name is tracked *before* the server is queried about it. A reply may be cached only if no tracked name was
invalidated until its inode, or that there is none, is recorded. Keys and paths are stored as hashes.

Threads: any. The lock is held for bookkeeping only. `KernelCache` returns at once.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from redisfuse.errors import NotFoundError
from redisfuse.keyspace.monitor import KeyspaceMonitor
from redisfuse.paths.grammar import VIEW_SUFFIXES, NameSegment, PathCandidates, PathCodec, RefreshFile, RootDir

if TYPE_CHECKING:
    from redisfuse.vfs.kernel_cache import KernelCache
    from redisfuse.vfs.nodes import KeyNode

MAX_TRACKED_NAMES = 400_000  # keys and names, at about 100 bytes each
MAX_CHANGED_KEYS = 5_000  # changed keys whose names are invalidated one by one; beyond, everything is invalidated

_SPLIT_OR_DIGEST_NAMES = 0  # in `_key_hashes`: any name that is a segment or digest; too rare to be tracked one by one
_LONG_COMPONENT_BYTES = 80  # a longer component may be written as segments: an escaped byte takes 3


class DentryTracker:
    """Tracks cached names of the kernel, and invalidates those of changed keys."""

    def __init__(self, grammar: PathCodec, keyspace: KeyspaceMonitor, kernel_cache: KernelCache) -> None:
        self._grammar = grammar
        self._keyspace = keyspace
        self._kernel_cache = kernel_cache
        self._lock = threading.Lock()
        # Changed under `_lock` only:
        self._key_hashes: set[int] = set()  # of keys whose own name was listed or looked up
        self._shadowing_hashes: set[int] = set()  # of keys that did not exist, and whose fields could hide listed keys
        self._marked_path_hashes: set[int] = set()  # of paths looked up that have a `%` in the last name
        self._field_paths: dict[int, set[bytes]] = {}  # hash of a key -> paths looked up that may name its fields
        self._directory_existence: dict[int, bool] = {}  # hash of a prefix -> whether it existed at the last look-up
        self._tracked_count = 0
        self._invalidation_count = 0  # incremented before names are invalidated
        self.reset_count = 0  # the same, of all names
        # Single operations are atomic: hash of a prefix -> its time when its attributes were last invalidated
        self._listing_times: dict[int, int] = {}

    def track_path(self, path: bytes) -> int:
        """Track a path (without its leading slash) that is being looked up.

        Returns a token for `is_current`.
        """
        token = self._invalidation_count
        try:
            parsed_path = self._grammar.parse(path)
        except NotFoundError:
            return token  # no key can ever have this name
        if isinstance(parsed_path, PathCandidates):
            with self._lock:
                self._track_candidates(path, parsed_path)
                is_full = self._tracked_count > MAX_TRACKED_NAMES
            if is_full:
                self.invalidate_all()
        elif not isinstance(parsed_path, RootDir | RefreshFile):
            with self._lock:
                self._key_hashes.add(_SPLIT_OR_DIGEST_NAMES)
                if isinstance(parsed_path, NameSegment):
                    self._track_field_path(self._grammar.find_hash_of_segment(parsed_path), path)
        return token

    def is_current(self, token: int) -> bool:
        """Return whether no tracked name was invalidated since `track_path`."""
        return token == self._invalidation_count

    def track_listed(self, nodes: Sequence[KeyNode]) -> list[bool]:
        """Track keys of a directory that are about to be listed with attributes.

        Returns which of their names lead to them now, and not to a directory or possibly to a field. The kernel may
        cache these if `reset_count` is the same once their inodes are recorded.
        """
        if not nodes:
            return []
        index, grammar = self._keyspace.index, self._grammar
        keys = [node.target.key for node in nodes]
        hash_keys = [self._find_shadowing_key(key) if b"." in key else None for key in keys]
        missing = index.find_missing([hash_key for hash_key in hash_keys if hash_key is not None])
        with self._lock:
            count_before = len(self._key_hashes) + len(self._shadowing_hashes)
            self._key_hashes.update(map(hash, keys))
            self._shadowing_hashes.update(map(hash, missing))
            self._tracked_count += len(self._key_hashes) + len(self._shadowing_hashes) - count_before
            is_full = self._tracked_count > MAX_TRACKED_NAMES
        if is_full:
            self.invalidate_all()
        still_missing = {None, *index.find_missing(missing)}
        changed_at = self._keyspace.changed_at(grammar.key_prefix(grammar.split_key(keys[0])[:-1]))
        return [
            hash_key in still_missing
            and (node.listed_at == changed_at or not index.is_directory(tuple(grammar.split_key(key))))
            for node, key, hash_key in zip(nodes, keys, hash_keys, strict=True)
        ]

    def _find_shadowing_key(self, key: bytes) -> bytes | None:
        """Return the hash of which a field could have the name of a listed key."""
        *directory, component = self._grammar.split_key(key)
        field = self._grammar.shadowing_field(component)
        return None if field is None else self._grammar.join_key((*directory, field[0]))

    def _track_candidates(self, path: bytes, candidates: PathCandidates) -> None:
        grammar = self._grammar
        count_before = len(self._key_hashes) + len(self._directory_existence) + len(self._marked_path_hashes)
        if candidates.as_key is not None:
            self._key_hashes.add(hash(grammar.join_key((*candidates.directory, candidates.as_key))))
            if b"%" in candidates.name:
                self._marked_path_hashes.add(hash(path))
        if candidates.as_directory is not None:
            directory = (*candidates.directory, candidates.as_directory)
            exists = self._keyspace.index.is_directory(directory)
            self._directory_existence[hash(grammar.key_prefix(directory))] = exists
        if candidates.as_field is not None:
            hash_key = grammar.join_key((*candidates.directory, candidates.as_field[0]))
            self._track_field_path(hash_key, path)
        count_after = len(self._key_hashes) + len(self._directory_existence) + len(self._marked_path_hashes)
        self._tracked_count += count_after - count_before

    def _track_field_path(self, hash_key: bytes | None, path: bytes) -> None:
        if hash_key is not None:
            paths = self._field_paths.setdefault(hash(hash_key), set())
            self._tracked_count -= len(paths)
            paths.add(path)
            self._tracked_count += len(paths)

    def invalidate_keys(self, keys: Collection[bytes]) -> None:
        """Invalidate the cached names of keys that were created, changed or deleted."""
        if len(keys) > MAX_CHANGED_KEYS:
            self.invalidate_all()
            return
        paths: set[bytes] = set()
        existing_paths: set[bytes] = set()
        listing_paths: set[bytes] = set()
        for key in keys:
            if not self._collect_key(key, paths, existing_paths, listing_paths):
                self.invalidate_all()
                return
        if listing_paths:
            self._kernel_cache.invalidate(listing_paths, keep_dentry=True)
        if paths:
            self._kernel_cache.invalidate(paths)
        if existing_paths:
            self._kernel_cache.invalidate(existing_paths, still_exist=True)

    def _collect_key(
        self, key: bytes, paths: set[bytes], existing_paths: set[bytes], listing_paths: set[bytes]
    ) -> bool:
        """Add the paths and listings to invalidate for one key.

        `existing_paths`: those of the key itself, if it still exists.
        Return False if everything must be invalidated.
        """
        grammar = self._grammar
        *directory, leaf = grammar.split_key(key)
        key_hash = hash(key)
        with self._lock:
            is_tracked = key_hash in self._key_hashes
            if is_tracked:
                self._key_hashes.discard(key_hash)
                self._tracked_count -= 1
            field_paths = self._field_paths.pop(key_hash, ())
            self._invalidation_count += is_tracked or bool(field_paths)
            self._tracked_count -= len(field_paths)
            has_long_names = _SPLIT_OR_DIGEST_NAMES in self._key_hashes
            may_shadow = key_hash in self._shadowing_hashes
        if may_shadow and not self._keyspace.index.find_missing((key,)):
            return False  # its fields may hide listed keys: too rare to track these one by one
        if has_long_names and (
            grammar.key_needs_digest(key)
            or any(len(component) > _LONG_COMPONENT_BYTES for component in (*directory, leaf))
        ):
            return False
        paths.update(field_paths)
        if is_tracked:
            is_missing = self._keyspace.index.find_missing((key,))
            (paths if is_missing else existing_paths).update(self._possible_paths(directory, leaf))
        self._collect_directories(directory, paths, listing_paths)
        return True

    def _collect_directories(self, directory: list[bytes], paths: set[bytes], listing_paths: set[bytes]) -> None:
        """Add the directories that a change of a key affects.

        They are the directory that lists the key, and those that appeared or vanished with it.
        """
        grammar, index = self._grammar, self._keyspace.index
        if self._has_moved(b""):
            listing_paths.add(b"")
        for depth in range(len(directory), 0, -1):
            ancestor = tuple(directory[:depth])
            prefix = grammar.key_prefix(ancestor)
            prefix_hash = hash(prefix)
            existed = self._directory_existence.get(prefix_hash)
            if existed is None:
                if hash(grammar.join_key(ancestor)) not in self._key_hashes:
                    continue
                existed = False  # a listed key had its name
            if self._has_moved(prefix):
                listing_paths.add(grammar.directory_path(ancestor))  # its times, and its number of subdirectories
            exists = index.is_directory(ancestor)
            if exists != existed:
                with self._lock:
                    self._invalidation_count += 1
                    self._tracked_count += prefix_hash not in self._directory_existence
                    self._directory_existence[prefix_hash] = exists
                paths.add(grammar.directory_path(ancestor))
                paths.update(self._possible_paths(list(ancestor[:-1]), ancestor[-1]))
                listing_paths.add(grammar.directory_path(ancestor[:-1]))

    def _has_moved(self, prefix: bytes) -> bool:
        """Return whether a directory's time has changed since the last call.

        It changes whenever a key below is created or deleted.
        """
        changed_at, prefix_hash = self._keyspace.changed_at(prefix), hash(prefix)
        if self._listing_times.get(prefix_hash) == changed_at:
            return False
        self._listing_times[prefix_hash] = changed_at
        return True

    def _possible_paths(self, directory: list[bytes], leaf: bytes) -> set[bytes]:
        """Return every path at which a program may have looked up a key."""
        grammar, in_root = self._grammar, not directory
        names = {grammar.key_name(leaf, escape_dots=False, in_root=in_root)}
        if b"." in leaf:
            names.add(grammar.key_name(leaf, escape_dots=True, in_root=in_root))
        paths = {grammar.join_path(directory, name) for name in names}
        if self._marked_path_hashes:
            marked_names = {grammar.add_file_mark(name) for name in names}
            marked_names |= {name + view for name in names for view in VIEW_SUFFIXES}
            for path in (grammar.join_path(directory, name) for name in marked_names - names):
                if hash(path) in self._marked_path_hashes:
                    paths.add(path)
        return paths

    def invalidate_all(self) -> None:
        """Invalidate everything that the kernel has cached, and track nothing any more."""
        with self._lock:
            self._invalidation_count += 1
            self.reset_count += 1
            self._key_hashes.clear()
            self._shadowing_hashes.clear()
            self._field_paths.clear()
            self._directory_existence.clear()
            self._listing_times.clear()
            self._marked_path_hashes.clear()
            self._tracked_count = 0
        self._kernel_cache.invalidate_all()

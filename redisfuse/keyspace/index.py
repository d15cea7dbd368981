"""The index: which keys exist, and so which directories and names.

It has two forms: in memory and on disk. Redis has no directories: without an index, listing one would take a scan of
all keys. The index knows names only, no types and no values. A directory is a tuple of components (a key split at its
separators); the root is the empty tuple. A directory exists while a key lies below it. A key and a directory may have
the same name.

Thread-safe. One lock, which is held for one operation, one batch of keys or one batch of a listing at a time; only the
form's methods and `KeyLayout` are called under it. It is a leaf.

In memory: trie.py, 10 to 110 bytes for a key of 26 bytes. On disk: sqlite_index.py. An index that outgrows its memory
moves to disk while it is in use.
"""

import threading
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypeVar

from redisfuse.errors import NotFoundError, RedisFuseError
from redisfuse.keyspace.index_backend import Child, KeyLayout
from redisfuse.keyspace.sqlite_index import SqliteIndex
from redisfuse.keyspace.trie import PackedTrie
from redisfuse.paths.grammar import PathCodec

T = TypeVar("T")

__all__ = ["Child", "Index"]

_SPILL_BATCH_KEYS = 20_000  # keys that are written to disk at a time
_MAX_LOCKED_REPLAY_CHANGES = 1000  # changes that are replayed on disk while the lock is held


class Index:
    """The names of the keys of one database, or of those that start with a prefix."""

    def __init__(
        self,
        layout: KeyLayout | None = None,
        *,
        max_memory_bytes: int | None = None,
        on_disk: bool = False,
    ) -> None:
        """Create an empty index.

        Beyond `max_memory_bytes` it `is_full`. `on_disk`: never use the form in memory.
        """
        self._layout: KeyLayout = layout or PathCodec()
        self._max_memory_bytes = max_memory_bytes
        self._lock = threading.Lock()  # guards all below
        self._backend: PackedTrie | SqliteIndex = SqliteIndex(self._layout) if on_disk else PackedTrie(self._layout)
        # While the index moves to disk: the keys that changed meanwhile, and whether they exist, to be replayed there.
        self._changes_during_spill: dict[bytes, bool] | None = None

    def __len__(self) -> int:
        """Return the number of keys."""
        with self._lock:
            return len(self._backend)

    @property
    def memory_bytes(self) -> int:
        """The memory in use, in bytes, estimated to within a fifth."""
        with self._lock:
            return self._estimate_memory()

    def _estimate_memory(self) -> int:
        return (
            self._backend.measured_memory_bytes if isinstance(self._backend, PackedTrie) else self._backend.memory_bytes
        )

    @property
    def on_disk(self) -> bool:
        """Whether the index is on disk."""
        return self._backend.on_disk

    # -- changes -----------------------------------------------------------------------------------------------------

    def add(self, key: bytes) -> bool:
        """Add a key; return whether it is new. Raises NoSpaceError if the disk is full."""
        return self.add_many((key,)) == 1

    def add_many(self, keys: Sequence[bytes]) -> int:
        """Add keys; return how many were new. Raises NoSpaceError if the disk is full."""
        with self._lock:
            if self._changes_during_spill is not None:
                self._changes_during_spill.update(dict.fromkeys(keys, True))
            return self._backend.add_many(keys)

    def discard(self, key: bytes) -> bool:
        """Remove a key and the directories that become empty.

        Returns whether the key was present.
        """
        with self._lock:
            if self._changes_during_spill is not None:
                self._changes_during_spill[key] = False
            return self._backend.discard(key)

    @property
    def is_full(self) -> bool:
        """Whether the index has outgrown its memory: call `spill_to_disk` then."""
        with self._lock:
            limit = self._max_memory_bytes
            if limit is None or self._backend.on_disk or self._changes_during_spill is not None:
                return False
            return (
                self._backend.memory_bytes > 0.8 * limit and self._estimate_memory() > limit
            )  # the fast estimate first

    def spill_to_disk(self) -> None:
        """Move the index to disk, in the calling thread; other threads keep using it.

        Raises NoSpaceError if the disk is full: the index stays in memory, and is never `is_full` again.
        """
        with self._lock:
            if self._changes_during_spill is not None or self._backend.on_disk:
                return
            self._changes_during_spill = {}
            trie = self._backend
        sqlite_index = SqliteIndex(self._layout)
        try:
            pending: list[bytes] = []
            for batches in (trie.iter_key_batches_below(()), trie.iter_long_key_batches()):
                for batch in self._iter_locked(batches):
                    pending += batch
                    if len(pending) >= _SPILL_BATCH_KEYS:
                        sqlite_index.add_many(pending)
                        pending = []
            sqlite_index.add_many(pending)
            # Changes made meanwhile are replayed in rounds, so that the lock is held for the few of the last one only.
            # The rounds end when they do not halve the changes: other threads may change keys as fast as this replays.
            previous_count = 2 * len(self._changes_during_spill)
            while _MAX_LOCKED_REPLAY_CHANGES < len(self._changes_during_spill) <= previous_count / 2:
                with self._lock:
                    changes, self._changes_during_spill = self._changes_during_spill, {}
                _replay_changes(changes, sqlite_index)
                previous_count = len(changes)
            with self._lock:
                _replay_changes(self._changes_during_spill, sqlite_index)
                self._backend = sqlite_index
        except RedisFuseError:
            self._max_memory_bytes = None
            raise
        finally:
            with self._lock:
                self._changes_during_spill = None

    def _iter_locked(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the same batches, each taken under the lock and consumed outside it."""
        while True:
            with self._lock:
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    # -- queries -----------------------------------------------------------------------------------------------------

    def __contains__(self, key: bytes) -> bool:
        with self._lock:
            return key in self._backend

    def find_missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Return those of the keys that are not in the index."""
        with self._lock:
            return [key for key in keys if key not in self._backend]

    def get_child(self, directory: tuple[bytes, ...], component: bytes) -> Child | None:
        """Return what `component` is in `directory`.

        None if it is neither a key nor a directory.
        """
        with self._lock:
            return self._backend.get_child(directory, component)

    def is_directory(self, directory: tuple[bytes, ...]) -> bool:
        """Return whether a key lies below; the root is always a directory."""
        with self._lock:
            return self._backend.is_directory(directory)

    def iter_children(self, directory: tuple[bytes, ...]) -> Iterator[Child]:
        """Return an iterator over the children of a directory.

        Raises NotFoundError, at once. Lists the present children, each once; a child that is removed during the
        iteration may be missing. No lock is held between two children, and memory grows by at most 8 bytes for each.
        """
        return chain.from_iterable(self.iter_child_batches(directory))

    def iter_child_batches(self, directory: tuple[bytes, ...]) -> Iterator[list[Child]]:
        """Return the same children in batches of up to 1000."""
        with self._lock:
            backend = self._backend
            if not backend.is_directory(directory):
                raise NotFoundError(f"no such directory: {self._layout.separator.join(directory)!r}")
            batches = backend.iter_child_batches(directory)
        return self._iter_locked(batches)

    def iter_keys_below(self, directory: tuple[bytes, ...]) -> Iterator[bytes]:
        """Return an iterator over the keys below a directory, like `iter_children`.

        Long keys are in no directory.
        """
        with self._lock:
            batches = self._backend.iter_key_batches_below(directory)
        return chain.from_iterable(self._iter_locked(batches))

    def sample_keys(self, count: int) -> list[bytes]:
        """Return some keys, up to `count`, in no particular order."""
        with self._lock:
            return self._backend.sample_keys(count)

    def symmetric_difference(self, other: "Index", max_keys: int) -> set[bytes] | None:
        """Return the keys that are in exactly one of the two indexes.

        Returns None if there are more than `max_keys`, or if an index is on disk, where the comparison would take too
        long. Holds no lock; changes made meanwhile may be in the result or not.
        """
        trie, other_trie = self._backend, other._backend
        if isinstance(trie, PackedTrie) and isinstance(other_trie, PackedTrie):
            return trie.symmetric_difference(other_trie, max_keys)
        return None

    def get_long_key(self, digest: str) -> bytes | None:
        """Return the long key with this SHA-256, in hex; None if there is none."""
        try:
            raw_digest = bytes.fromhex(digest)
        except ValueError:
            return None
        with self._lock:
            return self._backend.get_long_key(raw_digest)

    def iter_long_keys(self) -> Iterator[bytes]:
        """Return an iterator over the keys whose paths would be too long."""
        with self._lock:
            batches = self._backend.iter_long_key_batches()
        return chain.from_iterable(self._iter_locked(batches))


def _replay_changes(changes: dict[bytes, bool], sqlite_index: SqliteIndex) -> None:
    """Apply changes, which say whether each key exists, to the index on disk."""
    sqlite_index.add_many([key for key, exists in changes.items() if exists])
    sqlite_index.discard_many([key for key, exists in changes.items() if not exists])

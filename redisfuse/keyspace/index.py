"""The index: which keys there are, and so which directories and names. One face over a memory form and a disk form.

Redis has no folders, so finding the children of one is a scan of everything; hence this. It knows names only: no
types, no values. Directories are tuples of components (a key split at its separators); the root is the empty tuple. A
directory exists because a key lies below it, and vanishes with its last key. A key and a directory may share a name.

Thread-safe. One lock, held for one operation, one batch of keys or one piece of a listing at a time; nothing is called
while it is held but the form's own methods and `is_long`.

Memory form: tree.py, 10 to 110 bytes a key of 26 bytes. Disk form: disk_index.py. An index that outgrows its memory
can move to disk while it is used.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from redisfuse.errors import NotFoundError, RedisFuseError
from redisfuse.keyspace.sqlite_index import SqliteIndex
from redisfuse.keyspace.trie import Child, PackedTrie

T = TypeVar("T")

__all__ = ["Child", "Index"]

MIN_LONG_KEY_BYTES = 256  # a key of fewer bytes never has a path that is too long; `is_long` is not asked about it
_SPILL_BATCH_KEYS = 20_000  # keys that go to disk in one go
_MAX_LOCKED_REPLAY_CHANGES = 1000  # changes that are done on disk while the lock is held


class Index:
    """The names of the keys of one database, or of those that start with a prefix."""

    def __init__(
        self,
        separator: bytes = b":",
        is_long_key: Callable[[bytes], bool] = lambda _key: False,
        *,
        max_memory_bytes: int | None = None,
        on_disk: bool = False,
    ) -> None:
        """`is_long` says that a key's path would be too long: such keys are found by their digest only, and are in no
        directory. `memory_limit`, in bytes, is what makes it `is_full`; `on_disk`: it is there from the start."""
        self._separator = separator
        self._is_long_key = is_long_key
        self._max_memory_bytes = max_memory_bytes
        self._lock = threading.Lock()
        self._backend: PackedTrie | SqliteIndex = (
            self._create_sqlite_index() if on_disk else PackedTrie(separator, is_long_key, MIN_LONG_KEY_BYTES)
        )
        # While the index moves to disk: the keys that changed meanwhile, and whether they exist, to be done there too.
        self._changes_during_spill: dict[bytes, bool] | None = None

    def _create_sqlite_index(self) -> SqliteIndex:
        return SqliteIndex(self._separator, self._is_long_key, MIN_LONG_KEY_BYTES)

    def __len__(self) -> int:
        """How many keys."""
        with self._lock:
            return len(self._backend)

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory, estimated to within a fifth."""
        with self._lock:
            return self._estimate_memory()

    def _estimate_memory(self) -> int:
        return (
            self._backend.measured_memory_bytes if isinstance(self._backend, PackedTrie) else self._backend.memory_bytes
        )

    @property
    def on_disk(self) -> bool:
        """Whether the keys are on disk."""
        return self._backend.on_disk

    # -- changing ----------------------------------------------------------------------------------------------------

    def add(self, key: bytes) -> bool:
        """Add a key; answer whether it is new. Raises NoSpaceError if the disk form is out of room."""
        return self.add_many((key,)) == 1

    def add_many(self, keys: Sequence[bytes]) -> int:
        """Add keys; answer how many were new. Raises NoSpaceError if the disk form is out of room."""
        with self._lock:
            if self._changes_during_spill is not None:
                self._changes_during_spill.update(dict.fromkeys(keys, True))
            return self._backend.add_many(keys)

    def discard(self, key: bytes) -> bool:
        """Remove a key, and the directories that it leaves empty; answer whether it was there."""
        with self._lock:
            if self._changes_during_spill is not None:
                self._changes_during_spill[key] = False
            return self._backend.discard(key)

    @property
    def is_full(self) -> bool:
        """Whether it has outgrown its memory, and `spill_to_disk` should be called."""
        with self._lock:
            limit = self._max_memory_bytes
            if limit is None or self._backend.on_disk or self._changes_during_spill is not None:
                return False
            return self._backend.memory_bytes > 0.8 * limit and self._estimate_memory() > limit  # the quick look first

    def spill_to_disk(self) -> None:
        """Change to the disk form, in the calling thread; others go on using the index meanwhile.

        Raises NoSpaceError if the disk has no room: the index stays in memory, and is not `is_full` any more.
        """
        with self._lock:
            if self._changes_during_spill is not None or self._backend.on_disk:
                return
            self._changes_during_spill = {}
            tree = self._backend
        table = self._create_sqlite_index()
        try:
            poured: list[bytes] = []
            for pieces in (tree.iter_key_batches_below(()), tree.iter_long_key_batches()):
                for piece in self._iter_locked(pieces):
                    poured += piece
                    if len(poured) >= _SPILL_BATCH_KEYS:
                        table.add_many(poured)
                        poured = []
            table.add_many(poured)
            # What changed meanwhile is done in rounds, so that the lock is held for the few changes of the last one;
            # as long as that gets them fewer, for others may change as much as is done.
            before = 2 * len(self._changes_during_spill)
            while _MAX_LOCKED_REPLAY_CHANGES < len(self._changes_during_spill) <= before / 2:
                with self._lock:
                    changes, self._changes_during_spill = self._changes_during_spill, {}
                _replay_changes(changes, table)
                before = len(changes)
            with self._lock:
                _replay_changes(self._changes_during_spill, table)
                self._backend = table
        except RedisFuseError:
            self._max_memory_bytes = None
            raise
        finally:
            with self._lock:
                self._changes_during_spill = None

    def _iter_locked(self, batches: Iterator[T]) -> Iterator[T]:
        """The same pieces, each taken under the lock and consumed outside it."""
        while True:
            with self._lock:
                piece = next(batches, None)
            if piece is None:
                return
            yield piece

    # -- asking ------------------------------------------------------------------------------------------------------

    def __contains__(self, key: bytes) -> bool:
        with self._lock:
            return key in self._backend

    def find_missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of the keys that are not in it."""
        with self._lock:
            return [key for key in keys if key not in self._backend]

    def get_child(self, directory: tuple[bytes, ...], component: bytes) -> Child | None:
        """What `component` is in `directory`; None if there is no such thing."""
        with self._lock:
            return self._backend.get_child(directory, component)

    def is_directory(self, directory: tuple[bytes, ...]) -> bool:
        """Whether a key lies below; the root is always a directory."""
        with self._lock:
            return self._backend.is_directory(directory)

    def iter_children(self, directory: tuple[bytes, ...]) -> Iterator[Child]:
        """The children of a directory; NotFoundError, at once, if it is none.

        What is there now is listed, each child once; one that vanishes while the listing is consumed may be left
        out. No lock is held between two children, and memory grows by 8 bytes a child at most.
        """
        return self._flatten(self.iter_child_batches(directory))

    def iter_child_batches(self, directory: tuple[bytes, ...]) -> Iterator[list[Child]]:
        """The same, up to 1000 at a time."""
        with self._lock:
            form = self._backend
            if not form.is_directory(directory):
                raise NotFoundError(f"no such directory: {self._separator.join(directory)!r}")
            pieces = form.iter_child_batches(directory)
        return self._iter_locked(pieces)

    def iter_keys_below(self, directory: tuple[bytes, ...]) -> Iterator[bytes]:
        """The keys below a directory, on the terms of `iter_children`. Long keys are below no directory."""
        with self._lock:
            pieces = self._backend.iter_key_batches_below(directory)
        return self._flatten(self._iter_locked(pieces))

    def sample_keys(self, count: int) -> list[bytes]:
        """Some keys, up to `count`, whichever come first."""
        with self._lock:
            return self._backend.sample_keys(count)

    def symmetric_difference(self, other: "Index", max_keys: int) -> set[bytes] | None:
        """The keys that only one of the two has. None if they are more than `limit`, or if one of the two is on disk,
        where finding them would take too long. Holds no lock; what changes meanwhile may be in the answer or not."""
        mine, its = self._backend, other._backend
        return (
            mine.symmetric_difference(its, max_keys)
            if isinstance(mine, PackedTrie) and isinstance(its, PackedTrie)
            else None
        )

    def get_long_key(self, digest: str) -> bytes | None:
        """The long key with this SHA-256, in hex; None if there is none."""
        try:
            raw = bytes.fromhex(digest)
        except ValueError:
            return None
        with self._lock:
            return self._backend.get_long_key(raw)

    def iter_long_keys(self) -> Iterator[bytes]:
        """The keys whose paths would be too long."""
        with self._lock:
            pieces = self._backend.iter_long_key_batches()
        return self._flatten(self._iter_locked(pieces))

    @staticmethod
    def _flatten(batches: Iterator[list[T]]) -> Iterator[T]:
        for piece in batches:
            yield from piece


def _replay_changes(changes: dict[bytes, bool], sqlite_index: SqliteIndex) -> None:
    """Do to a table what was done to the keys: each exists, or it doesn't."""
    sqlite_index.add_many([key for key, exists in changes.items() if exists])
    sqlite_index.discard_many([key for key, exists in changes.items() if not exists])

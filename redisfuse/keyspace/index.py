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
from redisfuse.keyspace.sqlite_index import Table
from redisfuse.keyspace.trie import Child, Tree

T = TypeVar("T")

__all__ = ["Child", "Index"]

SHORT = 256  # a key of fewer bytes never has a path that is too long; `is_long` is not asked about it
_POURED = 20_000  # keys that go to disk in one go
_FEW = 1000  # changes that are done on disk while the lock is held


class Index:
    """The names of the keys of one database, or of those that start with a prefix."""

    def __init__(
        self,
        separator: bytes = b":",
        is_long: Callable[[bytes], bool] = lambda _key: False,
        *,
        memory_limit: int | None = None,
        on_disk: bool = False,
    ) -> None:
        """`is_long` says that a key's path would be too long: such keys are found by their digest only, and are in no
        directory. `memory_limit`, in bytes, is what makes it `is_full`; `on_disk`: it is there from the start."""
        self._separator = separator
        self._is_long = is_long
        self._memory_limit = memory_limit
        self._lock = threading.Lock()
        self._form: Tree | Table = self._table() if on_disk else Tree(separator, is_long, SHORT)
        # While the index moves to disk: the keys that changed meanwhile, and whether they exist, to be done there too.
        self._moving: dict[bytes, bool] | None = None

    def _table(self) -> Table:
        return Table(self._separator, self._is_long, SHORT)

    def __len__(self) -> int:
        """How many keys."""
        with self._lock:
            return len(self._form)

    @property
    def memory(self) -> int:
        """Bytes of memory, estimated to within a fifth."""
        with self._lock:
            return self._memory()

    def _memory(self) -> int:
        return self._form.measured if isinstance(self._form, Tree) else self._form.memory

    @property
    def on_disk(self) -> bool:
        """Whether the keys are on disk."""
        return self._form.on_disk

    # -- changing ----------------------------------------------------------------------------------------------------

    def add(self, key: bytes) -> bool:
        """Add a key; answer whether it is new. Raises NoSpaceError if the disk form is out of room."""
        return self.add_many((key,)) == 1

    def add_many(self, keys: Sequence[bytes]) -> int:
        """Add keys; answer how many were new. Raises NoSpaceError if the disk form is out of room."""
        with self._lock:
            if self._moving is not None:
                self._moving.update(dict.fromkeys(keys, True))
            return self._form.add_many(keys)

    def discard(self, key: bytes) -> bool:
        """Remove a key, and the directories that it leaves empty; answer whether it was there."""
        with self._lock:
            if self._moving is not None:
                self._moving[key] = False
            return self._form.discard(key)

    @property
    def is_full(self) -> bool:
        """Whether it has outgrown its memory, and `move_to_disk` should be called."""
        with self._lock:
            limit = self._memory_limit
            if limit is None or self._form.on_disk or self._moving is not None:
                return False
            return self._form.memory > 0.8 * limit and self._memory() > limit  # the quick look first

    def move_to_disk(self) -> None:
        """Change to the disk form, in the calling thread; others go on using the index meanwhile.

        Raises NoSpaceError if the disk has no room: the index stays in memory, and is not `is_full` any more.
        """
        with self._lock:
            if self._moving is not None or self._form.on_disk:
                return
            self._moving = {}
            tree = self._form
        table = self._table()
        try:
            poured: list[bytes] = []
            for pieces in (tree.keys_below(()), tree.long_keys()):
                for piece in self._locked(pieces):
                    poured += piece
                    if len(poured) >= _POURED:
                        table.add_many(poured)
                        poured = []
            table.add_many(poured)
            # What changed meanwhile is done in rounds, so that the lock is held for the few changes of the last one;
            # as long as that gets them fewer, for others may change as much as is done.
            before = 2 * len(self._moving)
            while _FEW < len(self._moving) <= before / 2:
                with self._lock:
                    changes, self._moving = self._moving, {}
                _repeat(changes, table)
                before = len(changes)
            with self._lock:
                _repeat(self._moving, table)
                self._form = table
        except RedisFuseError:
            self._memory_limit = None
            raise
        finally:
            with self._lock:
                self._moving = None

    def _locked(self, pieces: Iterator[T]) -> Iterator[T]:
        """The same pieces, each taken under the lock and consumed outside it."""
        while True:
            with self._lock:
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    # -- asking ------------------------------------------------------------------------------------------------------

    def __contains__(self, key: bytes) -> bool:
        with self._lock:
            return key in self._form

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of the keys that are not in it."""
        with self._lock:
            return [key for key in keys if key not in self._form]

    def child(self, directory: tuple[bytes, ...], component: bytes) -> Child | None:
        """What `component` is in `directory`; None if there is no such thing."""
        with self._lock:
            return self._form.child(directory, component)

    def is_directory(self, directory: tuple[bytes, ...]) -> bool:
        """Whether a key lies below; the root is always a directory."""
        with self._lock:
            return self._form.is_directory(directory)

    def children(self, directory: tuple[bytes, ...]) -> Iterator[Child]:
        """The children of a directory; NotFoundError, at once, if it is none.

        What is there now is listed, each child once; one that vanishes while the listing is consumed may be left
        out. No lock is held between two children, and memory grows by 8 bytes a child at most.
        """
        return self._flat(self.children_in_pieces(directory))

    def children_in_pieces(self, directory: tuple[bytes, ...]) -> Iterator[list[Child]]:
        """The same, up to 1000 at a time."""
        with self._lock:
            form = self._form
            if not form.is_directory(directory):
                raise NotFoundError(f"no such directory: {self._separator.join(directory)!r}")
            pieces = form.children(directory)
        return self._locked(pieces)

    def keys_below(self, directory: tuple[bytes, ...]) -> Iterator[bytes]:
        """The keys below a directory, on the terms of `children`. Long keys are below no directory."""
        with self._lock:
            pieces = self._form.keys_below(directory)
        return self._flat(self._locked(pieces))

    def sample(self, count: int) -> list[bytes]:
        """Some keys, up to `count`, whichever come first."""
        with self._lock:
            return self._form.sample(count)

    def differences(self, other: "Index", limit: int) -> set[bytes] | None:
        """The keys that only one of the two has. None if they are more than `limit`, or if one of the two is on disk,
        where finding them would take too long. Holds no lock; what changes meanwhile may be in the answer or not."""
        mine, its = self._form, other._form
        return mine.differences(its, limit) if isinstance(mine, Tree) and isinstance(its, Tree) else None

    def long_key(self, digest: str) -> bytes | None:
        """The long key with this SHA-256, in hex; None if there is none."""
        try:
            raw = bytes.fromhex(digest)
        except ValueError:
            return None
        with self._lock:
            return self._form.long_key(raw)

    def long_keys(self) -> Iterator[bytes]:
        """The keys whose paths would be too long."""
        with self._lock:
            pieces = self._form.long_keys()
        return self._flat(self._locked(pieces))

    @staticmethod
    def _flat(pieces: Iterator[list[T]]) -> Iterator[T]:
        for piece in pieces:
            yield from piece


def _repeat(changes: dict[bytes, bool], table: Table) -> None:
    """Do to a table what was done to the keys: each exists, or it doesn't."""
    table.add_many([key for key, exists in changes.items() if exists])
    table.discard_many([key for key, exists in changes.items() if not exists])

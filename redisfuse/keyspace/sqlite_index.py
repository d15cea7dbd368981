"""The disk form of the index: one SQLite table of keys, in a temporary file of SQLite's own, for very large keyspaces.

A key is stored with its separators written as a zero byte, so that in the table's order a key `a` is followed at once
by all that is below it (`a:b`), and only then by `a!`. So a directory is a range, and its children are found by walking
the range and skipping from each child directory to its end. A zero or one byte of the key itself becomes two bytes.

The file belongs to nobody else: SQLite makes it with mode 0600 and unlinks it at once, so it is gone when the process
is, however it ends. One transaction stays open for good, and nothing is ever synced: there is nothing to recover.

Nothing here locks: `Index` (index.py) does.
"""

import hashlib
import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from redisfuse.batching import batched
from redisfuse.errors import NoSpaceError
from redisfuse.keyspace.trie import Child

PAGE_CACHE_BYTES = 64 * 1024 * 1024  # bytes of SQLite's page cache
MAX_ITEMS_PER_BATCH = 1000  # children or keys in a piece of a listing
MAX_KEYS_PER_STATEMENT = 1000  # keys that one statement adds or removes

# Columns. keys.path: a key as `_encode_key` writes it. long.digest: the SHA-256 of a key whose path in the mount would be too
# long; long.key: that key, as it is.
_SCHEMA = (
    "CREATE TABLE keys (path BLOB PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE long (digest BLOB PRIMARY KEY, key BLOB NOT NULL) WITHOUT ROWID",
)


class SqliteIndex:
    """Keys on disk, under the same methods as `PackedTrie`. Errors: NoSpaceError if the temporary file can't grow."""

    on_disk = True

    def __init__(self, separator: bytes, is_long_key: Callable[[bytes], bool], min_long_key_bytes: int) -> None:
        """See `Index`."""
        self._separator = separator
        self._is_long_key = is_long_key
        self._min_long_key_bytes = min_long_key_bytes
        self._count = 0
        # The empty name is SQLite's for "a temporary database on disk, deleted when it is closed".
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in (
            "journal_mode = OFF",
            "synchronous = OFF",
            f"cache_size = -{PAGE_CACHE_BYTES // 1024}",
            "page_size = 8192",
        ):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("BEGIN")
        for statement in _SCHEMA:
            self._connection.execute(statement)

    def __len__(self) -> int:
        return self._count

    @property
    def memory_bytes(self) -> int:
        """Resident bytes at most: the page cache."""
        return PAGE_CACHE_BYTES

    def _encode_key(self, key: bytes) -> bytes:
        """A key as it is stored: zero bytes for the separators, which sort below all else."""
        if b"\x00" in key or b"\x01" in key:
            return b"\x00".join(
                component.replace(b"\x01", b"\x01\x02").replace(b"\x00", b"\x01\x01")
                for component in key.split(self._separator)
            )
        return key.replace(self._separator, b"\x00")

    def _decode_key(self, path: bytes) -> bytes:
        """The key that is stored so."""
        if b"\x01" in path:
            return self._separator.join(_decode_component(name) for name in path.split(b"\x00"))
        return path.replace(b"\x00", self._separator)

    def _range_start(self, directory: tuple[bytes, ...]) -> bytes:
        """What the stored keys below a directory start with."""
        return b"".join(_encode_component(component) + b"\x00" for component in directory)

    # -- changing ----------------------------------------------------------------------------------------------------

    def add_many(self, keys: Sequence[bytes]) -> int:
        """Add keys; answer how many were new."""
        short, long = self._split_long_keys(keys)
        # In order, so that neighbours go into the same page while it is in the cache.
        added = self._execute_batched("INSERT OR IGNORE INTO keys VALUES {}", sorted(map(self._encode_key, short)))
        for key in long:
            added += self._execute("INSERT OR IGNORE INTO long VALUES (?, ?)", (hashlib.sha256(key).digest(), key))
        self._count += added
        return added

    def discard(self, key: bytes) -> bool:
        """Remove a key; answer whether it was there."""
        return self.discard_many((key,)) == 1

    def discard_many(self, keys: Sequence[bytes]) -> int:
        """Remove keys; answer how many were there."""
        short, long = self._split_long_keys(keys)
        removed = self._execute_batched(
            "DELETE FROM keys WHERE path IN (VALUES {})", sorted(map(self._encode_key, short))
        )
        digests = [hashlib.sha256(key).digest() for key in long]
        removed += self._execute_batched("DELETE FROM long WHERE digest IN (VALUES {})", digests)
        self._count -= removed
        return removed

    def _split_long_keys(self, keys: Sequence[bytes]) -> tuple[Sequence[bytes], list[bytes]]:
        """The keys with a path of bearable length, and the others."""
        long = [key for key in keys if len(key) >= self._min_long_key_bytes and self._is_long_key(key)]
        return (list(set(keys).difference(long)) if long else keys), long

    def _execute_batched(self, statement: str, values: Sequence[bytes]) -> int:
        """Execute a statement, for up to PORTION values at a time; answer how many rows it changed.

        Not `executemany`: that gives up the interpreter at each row, and while others compute waits 5 ms for it.
        """
        changed = 0
        for portion in batched(values, MAX_KEYS_PER_STATEMENT):
            changed += self._execute(statement.format(",".join(["(?)"] * len(portion))), portion)
        return changed

    def _execute(self, statement: str, values: Sequence[bytes]) -> int:
        try:
            return self._connection.execute(statement, values).rowcount
        except sqlite3.OperationalError as error:
            raise _no_space_error(error) from error

    # -- asking ------------------------------------------------------------------------------------------------------

    def __contains__(self, key: bytes) -> bool:
        if len(key) >= self._min_long_key_bytes and self._is_long_key(key):
            return self.get_long_key(hashlib.sha256(key).digest()) is not None
        return self._has_path(self._encode_key(key))

    def _has_path(self, path: bytes) -> bool:
        return self._connection.execute("SELECT 1 FROM keys WHERE path = ?", (path,)).fetchone() is not None

    def get_child(self, directory: tuple[bytes, ...], component: bytes) -> Child | None:
        """What `component` is in `directory`, or None if neither a key nor a directory."""
        if not self._is_canonical((*directory, component)):
            return None
        is_key = self._has_path(self._range_start(directory) + _encode_component(component))
        is_directory = self.is_directory((*directory, component))
        return Child(component, is_key, is_directory) if is_key or is_directory else None

    def is_directory(self, directory: tuple[bytes, ...]) -> bool:
        """Whether a key lies below; the root is always a directory."""
        if not directory:
            return True
        below = self._range_start(directory)
        statement = "SELECT 1 FROM keys WHERE path >= ? AND path < ? LIMIT 1"
        found = self._connection.execute(statement, (below, _range_end(below))).fetchone()
        return found is not None and self._is_canonical(directory)

    def _is_canonical(self, components: tuple[bytes, ...]) -> bool:
        """Whether a key splits into these; with a separator of several bytes, others can spell the same."""
        return self._separator.join(components).split(self._separator) == list(components)

    def iter_child_batches(self, directory: tuple[bytes, ...]) -> Iterator[list[Child]]:
        """The children, in pieces and in byte order. The caller may let others change the table between two pieces."""
        below = self._range_start(directory)
        start, end = below, _range_end(below)
        limit = MAX_ITEMS_PER_BATCH
        last: Child | None = None  # not given out yet: the next row may show that it is a directory too
        while True:
            paths = self._fetch_paths(start, end, limit)
            piece: list[Child] = []
            at = 0
            while at < len(paths):
                name, slash, _ = paths[at][len(below) :].partition(b"\x00")
                at += 1
                component = _decode_component(name)
                also_key = last is not None and last.component == component
                if last is not None and not also_key:
                    piece.append(last)
                last = Child(component, also_key or not slash, bool(slash))
                if slash:
                    # All that is below this child says nothing new: on to the first path after it.
                    start = below + name + b"\x01"
                    at = bisect_left(paths, start, at)
                else:
                    start = paths[at - 1] + b"\x00"
            if len(paths) < limit:
                if last is not None:
                    piece.append(last)
                if piece:
                    yield piece
                return
            if piece:
                yield piece
            # Small pages while each child has much below it, which would be read in vain.
            limit = min(MAX_ITEMS_PER_BATCH, 4 * len(piece) + 8)

    def _fetch_paths(self, start: bytes, end: bytes | None, limit: int) -> list[bytes]:
        """The stored paths from `start` on (it included), up to `end` (not included)."""
        if end is None:
            rows = self._connection.execute("SELECT path FROM keys WHERE path >= ? LIMIT ?", (start, limit))
        else:
            rows = self._connection.execute(
                "SELECT path FROM keys WHERE path >= ? AND path < ? LIMIT ?", (start, end, limit)
            )
        return [path for (path,) in rows.fetchall()]

    def iter_key_batches_below(self, directory: tuple[bytes, ...]) -> Iterator[list[bytes]]:
        """The keys below, in pieces, under the terms of `iter_child_batches`."""
        start = self._range_start(directory)
        end = _range_end(start)
        while paths := self._fetch_paths(start, end, MAX_ITEMS_PER_BATCH):
            yield [self._decode_key(path) for path in paths]
            start = paths[-1] + b"\x00"

    def sample_keys(self, count: int) -> list[bytes]:
        """Some keys, up to `count`, whichever come first."""
        return [self._decode_key(path) for path in self._fetch_paths(b"", None, count)]

    # -- keys whose path would be too long ---------------------------------------------------------------------------

    def get_long_key(self, digest: bytes) -> bytes | None:
        """The long key with this SHA-256 digest, if there is one."""
        row = self._connection.execute("SELECT key FROM long WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else row[0]

    def iter_long_key_batches(self) -> Iterator[list[bytes]]:
        """The long keys, in pieces."""
        last = b""
        while rows := self._connection.execute(
            "SELECT digest, key FROM long WHERE digest > ? ORDER BY digest LIMIT ?", (last, MAX_ITEMS_PER_BATCH)
        ).fetchall():
            yield [key for _, key in rows]
            last = rows[-1][0]

    def close(self) -> None:
        """Close the database; SQLite's temporary file goes with it."""
        self._connection.close()


def _no_space_error(error: sqlite3.OperationalError) -> NoSpaceError:
    return NoSpaceError(
        f"the index's temporary file can't grow ({error}): point TMPDIR to a disk with more room, raise --index-memory,"
        " or mount a part of the keys with --prefix"
    )


def _encode_component(component: bytes) -> bytes:
    """One component as it is stored."""
    return component.replace(b"\x01", b"\x01\x02").replace(b"\x00", b"\x01\x01")


def _decode_component(encoded: bytes) -> bytes:
    """One component, from how it is stored."""
    return encoded.replace(b"\x01\x01", b"\x00").replace(b"\x01\x02", b"\x01")


def _range_end(range_start: bytes) -> bytes | None:
    """The end of the range of paths that start with `below`: None for the root, which has none."""
    return range_start[:-1] + b"\x01" if range_start else None

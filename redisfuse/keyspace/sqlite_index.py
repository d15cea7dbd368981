"""The index on disk, for very large keyspaces.

One SQLite table of keys, in a temporary file of SQLite's own. A key is stored with each separator replaced by a zero
byte, so that in the table's order a key `a` is directly followed by all keys below it (`a:b`), and only then by `a!`.
So a directory is a range, and its children are found by walking the range and skipping from each child directory to its
end. A zero or one byte of the key itself becomes two bytes.

SQLite creates the file with mode 0600 and unlinks it at once, so no other process can open it, and it vanishes with the
process. One transaction stays open permanently, and nothing is ever synced: there is nothing to recover.

This module has no lock: `Index` (index.py) serializes the calls.
"""

import hashlib
import sqlite3
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from more_itertools import chunked

from redisfuse.errors import NoSpaceError
from redisfuse.keyspace.index_backend import MAX_ITEMS_PER_BATCH, Child, KeyLayout, is_long_key

PAGE_CACHE_BYTES = 64 * 1024 * 1024  # of SQLite's page cache
MAX_KEYS_PER_STATEMENT = 1000  # keys that one statement adds or removes

# keys.path: a key as `_encode_key` encodes it. long.digest: the SHA-256 of a key whose path in the mount would be too
# long; long.key: that key, unencoded.
_SCHEMA = (
    "CREATE TABLE keys (path BLOB PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE long (digest BLOB PRIMARY KEY, key BLOB NOT NULL) WITHOUT ROWID",
)


class SqliteIndex:
    """Keys on disk, with the methods of `PackedTrie`.

    Raises NoSpaceError if the temporary file can't grow.
    """

    on_disk = True

    def __init__(self, layout: KeyLayout) -> None:
        """See `Index`."""
        self._layout = layout
        self._separator = layout.separator
        self._count = 0
        # The empty name creates a temporary database on disk, which SQLite deletes when it is closed.
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
        """The most memory in use, in bytes: the page cache."""
        return PAGE_CACHE_BYTES

    def _encode_key(self, key: bytes) -> bytes:
        """Encode a key: separators become zero bytes, which sort before all other bytes."""
        if b"\x00" in key or b"\x01" in key:
            return b"\x00".join(map(_encode_component, key.split(self._separator)))
        return key.replace(self._separator, b"\x00")

    def _decode_key(self, path: bytes) -> bytes:
        """Decode a key."""
        if b"\x01" in path:
            return self._separator.join(_decode_component(name) for name in path.split(b"\x00"))
        return path.replace(b"\x00", self._separator)

    def _range_start(self, directory: tuple[bytes, ...]) -> bytes:
        """Return the common prefix of the stored keys below a directory."""
        return b"".join(_encode_component(component) + b"\x00" for component in directory)

    # -- changes -----------------------------------------------------------------------------------------------------

    def add_many(self, keys: Sequence[bytes]) -> int:
        """Add keys; return how many were new."""
        short, long = self._split_long_keys(keys)
        # Sorted, so that neighbours are added to the same page while it is cached.
        added = self._execute_batched("INSERT OR IGNORE INTO keys VALUES {}", sorted(map(self._encode_key, short)))
        for key in long:
            added += self._execute("INSERT OR IGNORE INTO long VALUES (?, ?)", (hashlib.sha256(key).digest(), key))
        self._count += added
        return added

    def discard(self, key: bytes) -> bool:
        """Remove a key; return whether it was present."""
        return self.discard_many((key,)) == 1

    def discard_many(self, keys: Sequence[bytes]) -> int:
        """Remove keys; return how many were present."""
        short, long = self._split_long_keys(keys)
        removed = self._execute_batched(
            "DELETE FROM keys WHERE path IN (VALUES {})", sorted(map(self._encode_key, short))
        )
        digests = [hashlib.sha256(key).digest() for key in long]
        removed += self._execute_batched("DELETE FROM long WHERE digest IN (VALUES {})", digests)
        self._count -= removed
        return removed

    def _split_long_keys(self, keys: Sequence[bytes]) -> tuple[Sequence[bytes], list[bytes]]:
        """Split keys into those whose path is short enough, and the others."""
        long = [key for key in keys if is_long_key(self._layout, key)]
        return (list(set(keys).difference(long)) if long else keys), long

    def _execute_batched(self, statement: str, values: Sequence[bytes]) -> int:
        """Execute a statement for batches of values; return how many rows it changed.

        Not `executemany`: that releases the GIL at each row, and waits 5 ms for it while other threads compute.
        """
        changed = 0
        for batch in chunked(values, MAX_KEYS_PER_STATEMENT):
            changed += self._execute(statement.format(",".join(["(?)"] * len(batch))), batch)
        return changed

    def _execute(self, statement: str, values: Sequence[bytes]) -> int:
        try:
            return self._connection.execute(statement, values).rowcount
        except sqlite3.OperationalError as error:
            raise _no_space_error(error) from error

    # -- queries -----------------------------------------------------------------------------------------------------

    def __contains__(self, key: bytes) -> bool:
        if is_long_key(self._layout, key):
            return self.get_long_key(hashlib.sha256(key).digest()) is not None
        return self._has_path(self._encode_key(key))

    def _has_path(self, path: bytes) -> bool:
        return self._connection.execute("SELECT 1 FROM keys WHERE path = ?", (path,)).fetchone() is not None

    def get_child(self, directory: tuple[bytes, ...], component: bytes) -> Child | None:
        """Return what `component` is in `directory`.

        None if it is neither a key nor a directory.
        """
        if not self._is_canonical((*directory, component)):
            return None
        is_key = self._has_path(self._range_start(directory) + _encode_component(component))
        is_directory = self.is_directory((*directory, component))
        return Child(component, is_key, is_directory) if is_key or is_directory else None

    def is_directory(self, directory: tuple[bytes, ...]) -> bool:
        """Return whether a key lies below; the root is always a directory."""
        if not directory:
            return True
        start = self._range_start(directory)
        statement = "SELECT 1 FROM keys WHERE path >= ? AND path < ? LIMIT 1"
        row = self._connection.execute(statement, (start, _range_end(start))).fetchone()
        return row is not None and self._is_canonical(directory)

    def _is_canonical(self, components: tuple[bytes, ...]) -> bool:
        """Return whether a key splits into these components.

        With a separator of several bytes, other components may join to the same key.
        """
        return self._separator.join(components).split(self._separator) == list(components)

    def iter_child_batches(self, directory: tuple[bytes, ...]) -> Iterator[list[Child]]:
        """Yield the children in batches and in byte order.

        The table may change between two batches.
        """
        prefix = self._range_start(directory)
        start, end = prefix, _range_end(prefix)
        limit = MAX_ITEMS_PER_BATCH
        last: Child | None = None  # not yielded yet: the next row may show that it is a directory, too
        while True:
            paths = self._fetch_paths(start, end, limit)
            batch: list[Child] = []
            position = 0
            while position < len(paths):
                name, separator, _ = paths[position][len(prefix) :].partition(b"\x00")
                position += 1
                component = _decode_component(name)
                is_also_key = last is not None and last.component == component
                if last is not None and not is_also_key:
                    batch.append(last)
                last = Child(component, is_also_key or not separator, bool(separator))
                if separator:
                    # The other keys below this child add nothing: skip to the first path after them.
                    start = prefix + name + b"\x01"
                    position = bisect_left(paths, start, position)
                else:
                    start = paths[position - 1] + b"\x00"
            if len(paths) < limit:
                if last is not None:
                    batch.append(last)
                if batch:
                    yield batch
                return
            if batch:
                yield batch
            # Fetch few paths while each child has many keys below it, which would be fetched in vain.
            limit = min(MAX_ITEMS_PER_BATCH, 4 * len(batch) + 8)

    def _fetch_paths(self, start: bytes, end: bytes | None, limit: int) -> list[bytes]:
        """Return up to `limit` stored paths from `start` to `end` (exclusive)."""
        if end is None:
            rows = self._connection.execute("SELECT path FROM keys WHERE path >= ? LIMIT ?", (start, limit))
        else:
            rows = self._connection.execute(
                "SELECT path FROM keys WHERE path >= ? AND path < ? LIMIT ?", (start, end, limit)
            )
        return [path for (path,) in rows.fetchall()]

    def iter_key_batches_below(self, directory: tuple[bytes, ...]) -> Iterator[list[bytes]]:
        """Yield the keys below in batches, like `iter_child_batches`."""
        start = self._range_start(directory)
        end = _range_end(start)
        while paths := self._fetch_paths(start, end, MAX_ITEMS_PER_BATCH):
            yield [self._decode_key(path) for path in paths]
            start = paths[-1] + b"\x00"

    def sample_keys(self, count: int) -> list[bytes]:
        """Return some keys, up to `count`, in no particular order."""
        return [self._decode_key(path) for path in self._fetch_paths(b"", None, count)]

    # -- long keys ---------------------------------------------------------------------------------------------------

    def get_long_key(self, digest: bytes) -> bytes | None:
        """Return the long key with this SHA-256 digest; None if there is none."""
        row = self._connection.execute("SELECT key FROM long WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else row[0]

    def iter_long_key_batches(self) -> Iterator[list[bytes]]:
        """Yield the long keys in batches."""
        last = b""
        while rows := self._connection.execute(
            "SELECT digest, key FROM long WHERE digest > ? ORDER BY digest LIMIT ?", (last, MAX_ITEMS_PER_BATCH)
        ).fetchall():
            yield [key for _, key in rows]
            last = rows[-1][0]


def _no_space_error(error: sqlite3.OperationalError) -> NoSpaceError:
    return NoSpaceError(
        f"the index's temporary file can't grow ({error}): point TMPDIR to a disk with more room, raise --index-memory,"
        " or mount part of the keys with --prefix"
    )


def _encode_component(component: bytes) -> bytes:
    """Encode one component."""
    return component.replace(b"\x01", b"\x01\x02").replace(b"\x00", b"\x01\x01")


def _decode_component(encoded: bytes) -> bytes:
    """Decode one component."""
    return encoded.replace(b"\x01\x01", b"\x00").replace(b"\x01\x02", b"\x01")


def _range_end(range_start: bytes) -> bytes | None:
    """Return the exclusive end of the range of paths with this start.

    None for the root.
    """
    return range_start[:-1] + b"\x01" if range_start else None

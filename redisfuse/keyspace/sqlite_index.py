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

CACHE = 64 * 1024 * 1024  # bytes of SQLite's page cache
PIECE = 1000  # children or keys in a piece of a listing
PORTION = 1000  # keys that one statement adds or removes

# Columns. keys.path: a key as `_path` writes it. long.digest: the SHA-256 of a key whose path in the mount would be too
# long; long.key: that key, as it is.
_SCHEMA = (
    "CREATE TABLE keys (path BLOB PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE long (digest BLOB PRIMARY KEY, key BLOB NOT NULL) WITHOUT ROWID",
)


class Table:
    """Keys on disk, under the same methods as `Tree`. Errors: NoSpaceError if the temporary file can't grow."""

    on_disk = True

    def __init__(self, separator: bytes, is_long: Callable[[bytes], bool], long_from: int) -> None:
        """See `Index`."""
        self._separator = separator
        self._is_long = is_long
        self._long_from = long_from
        self._count = 0
        # The empty name is SQLite's for "a temporary database on disk, deleted when it is closed".
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE // 1024}", "page_size = 8192"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("BEGIN")
        for statement in _SCHEMA:
            self._database.execute(statement)

    def __len__(self) -> int:
        return self._count

    @property
    def memory(self) -> int:
        """Resident bytes at most: the page cache."""
        return CACHE

    def _path(self, key: bytes) -> bytes:
        """A key as it is stored: zero bytes for the separators, which sort below all else."""
        if b"\x00" in key or b"\x01" in key:
            return b"\x00".join(
                component.replace(b"\x01", b"\x01\x02").replace(b"\x00", b"\x01\x01")
                for component in key.split(self._separator)
            )
        return key.replace(self._separator, b"\x00")

    def _key(self, path: bytes) -> bytes:
        """The key that is stored so."""
        if b"\x01" in path:
            return self._separator.join(_component(name) for name in path.split(b"\x00"))
        return path.replace(b"\x00", self._separator)

    def _below(self, directory: tuple[bytes, ...]) -> bytes:
        """What the stored keys below a directory start with."""
        return b"".join(_stored(component) + b"\x00" for component in directory)

    # -- changing ----------------------------------------------------------------------------------------------------

    def add_many(self, keys: Sequence[bytes]) -> int:
        """Add keys; answer how many were new."""
        short, long = self._parted(keys)
        # In order, so that neighbours go into the same page while it is in the cache.
        added = self._in_portions("INSERT OR IGNORE INTO keys VALUES {}", sorted(map(self._path, short)))
        for key in long:
            added += self._do("INSERT OR IGNORE INTO long VALUES (?, ?)", (hashlib.sha256(key).digest(), key))
        self._count += added
        return added

    def discard(self, key: bytes) -> bool:
        """Remove a key; answer whether it was there."""
        return self.discard_many((key,)) == 1

    def discard_many(self, keys: Sequence[bytes]) -> int:
        """Remove keys; answer how many were there."""
        short, long = self._parted(keys)
        removed = self._in_portions("DELETE FROM keys WHERE path IN (VALUES {})", sorted(map(self._path, short)))
        digests = [hashlib.sha256(key).digest() for key in long]
        removed += self._in_portions("DELETE FROM long WHERE digest IN (VALUES {})", digests)
        self._count -= removed
        return removed

    def _parted(self, keys: Sequence[bytes]) -> tuple[Sequence[bytes], list[bytes]]:
        """The keys with a path of bearable length, and the others."""
        long = [key for key in keys if len(key) >= self._long_from and self._is_long(key)]
        return (list(set(keys).difference(long)) if long else keys), long

    def _in_portions(self, statement: str, values: Sequence[bytes]) -> int:
        """Execute a statement, for up to PORTION values at a time; answer how many rows it changed.

        Not `executemany`: that gives up the interpreter at each row, and while others compute waits 5 ms for it.
        """
        changed = 0
        for portion in batched(values, PORTION):
            changed += self._do(statement.format(",".join(["(?)"] * len(portion))), portion)
        return changed

    def _do(self, statement: str, values: Sequence[bytes]) -> int:
        try:
            return self._database.execute(statement, values).rowcount
        except sqlite3.OperationalError as error:
            raise _no_room(error) from error

    # -- asking ------------------------------------------------------------------------------------------------------

    def __contains__(self, key: bytes) -> bool:
        if len(key) >= self._long_from and self._is_long(key):
            return self.long_key(hashlib.sha256(key).digest()) is not None
        return self._has(self._path(key))

    def _has(self, path: bytes) -> bool:
        return self._database.execute("SELECT 1 FROM keys WHERE path = ?", (path,)).fetchone() is not None

    def child(self, directory: tuple[bytes, ...], component: bytes) -> Child | None:
        """What `component` is in `directory`, or None if neither a key nor a directory."""
        if not self._canonical((*directory, component)):
            return None
        is_key = self._has(self._below(directory) + _stored(component))
        is_directory = self.is_directory((*directory, component))
        return Child(component, is_key, is_directory) if is_key or is_directory else None

    def is_directory(self, directory: tuple[bytes, ...]) -> bool:
        """Whether a key lies below; the root is always a directory."""
        if not directory:
            return True
        below = self._below(directory)
        statement = "SELECT 1 FROM keys WHERE path >= ? AND path < ? LIMIT 1"
        found = self._database.execute(statement, (below, _after(below))).fetchone()
        return found is not None and self._canonical(directory)

    def _canonical(self, components: tuple[bytes, ...]) -> bool:
        """Whether a key splits into these; with a separator of several bytes, others can spell the same."""
        return self._separator.join(components).split(self._separator) == list(components)

    def children(self, directory: tuple[bytes, ...]) -> Iterator[list[Child]]:
        """The children, in pieces and in byte order. The caller may let others change the table between two pieces."""
        below = self._below(directory)
        start, end = below, _after(below)
        limit = PIECE
        last: Child | None = None  # not given out yet: the next row may show that it is a directory too
        while True:
            paths = self._page(start, end, limit)
            piece: list[Child] = []
            at = 0
            while at < len(paths):
                name, slash, _ = paths[at][len(below) :].partition(b"\x00")
                at += 1
                component = _component(name)
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
            limit = min(PIECE, 4 * len(piece) + 8)

    def _page(self, start: bytes, end: bytes | None, limit: int) -> list[bytes]:
        """The stored paths from `start` on (it included), up to `end` (not included)."""
        if end is None:
            rows = self._database.execute("SELECT path FROM keys WHERE path >= ? LIMIT ?", (start, limit))
        else:
            rows = self._database.execute(
                "SELECT path FROM keys WHERE path >= ? AND path < ? LIMIT ?", (start, end, limit)
            )
        return [path for (path,) in rows.fetchall()]

    def keys_below(self, directory: tuple[bytes, ...]) -> Iterator[list[bytes]]:
        """The keys below, in pieces, under the terms of `children`."""
        start = self._below(directory)
        end = _after(start)
        while paths := self._page(start, end, PIECE):
            yield [self._key(path) for path in paths]
            start = paths[-1] + b"\x00"

    def sample(self, count: int) -> list[bytes]:
        """Some keys, up to `count`, whichever come first."""
        return [self._key(path) for path in self._page(b"", None, count)]

    # -- keys whose path would be too long ---------------------------------------------------------------------------

    def long_key(self, digest: bytes) -> bytes | None:
        """The long key with this SHA-256 digest, if there is one."""
        row = self._database.execute("SELECT key FROM long WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else row[0]

    def long_keys(self) -> Iterator[list[bytes]]:
        """The long keys, in pieces."""
        last = b""
        while rows := self._database.execute(
            "SELECT digest, key FROM long WHERE digest > ? ORDER BY digest LIMIT ?", (last, PIECE)
        ).fetchall():
            yield [key for _, key in rows]
            last = rows[-1][0]

    def close(self) -> None:
        """Close the database; SQLite's temporary file goes with it."""
        self._database.close()


def _no_room(error: sqlite3.OperationalError) -> NoSpaceError:
    return NoSpaceError(
        f"the index's temporary file can't grow ({error}): point TMPDIR to a disk with more room, raise --index-memory,"
        " or mount a part of the keys with --prefix"
    )


def _stored(component: bytes) -> bytes:
    """One component as it is stored."""
    return component.replace(b"\x01", b"\x01\x02").replace(b"\x00", b"\x01\x01")


def _component(stored: bytes) -> bytes:
    """One component, from how it is stored."""
    return stored.replace(b"\x01\x01", b"\x00").replace(b"\x01\x02", b"\x01")


def _after(below: bytes) -> bytes | None:
    """The end of the range of paths that start with `below`: None for the root, which has none."""
    return below[:-1] + b"\x01" if below else None

"""The memory form of the index: nested dicts of components, with small directories packed into one bytes string.

A directory is a dict of components. What a component holds is one of three things:

- `None`: a key, and nothing below it;
- `bytes`: a small directory, packed (below);
- `dict`: a larger directory; if the directory's own name is a key too, it has an entry under `None`.

A packed directory is a row of tails (all that follows the component and its separator, further separators included),
each after one byte with its length; a leading 0xFF says that the component is a key too. Most directories of a real
keyspace (`user:1001` with its five keys) stay packed: a dict for each would cost four times the memory.

Nothing here locks: `Index` (index.py) does.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from redisfuse.batching import batched

PACKED = 192  # bytes that a packed directory may have; past it, it becomes a dict
STEPS = 20_000  # changes to packed directories that are remembered; about 5 MB
LARGE = 10_000  # entries of a dict whose memory is looked at, and not estimated
PIECE = 1000  # children or keys in a piece of a listing

_LENGTHS = tuple(bytes((length,)) for length in range(255))
_ALSO_KEY = b"\xff"
_MISSING = object()

# What the memory estimate is made of, in bytes: CPython's dict slots (33 to 60 a key, as full as it is) and headers.
_SLOT = 46
_DICT = 120
_OBJECT = 33
_ROW = 24  # a packed directory beside its bytes: 41, or nothing where equal ones are kept once

_Node: TypeAlias = dict[bytes | None, Any]  # what it holds: None, bytes or another such dict, as above


class Child(NamedTuple):
    """What one component is in its directory: a key, a directory, or both."""

    component: bytes
    is_key: bool
    is_directory: bool


def _tails(packed: bytes) -> list[bytes]:
    """The tails in a packed directory."""
    tails = []
    at = 1 if packed[:1] == _ALSO_KEY else 0
    end = len(packed)
    while at < end:
        start = at + 1
        at = start + packed[at]
        tails.append(packed[start:at])
    return tails


def _pack(tails: Iterable[bytes], *, also_key: bool) -> bytes:
    """A packed directory of these tails, each shorter than 255 bytes."""
    row = b"".join(_LENGTHS[len(tail)] + tail for tail in tails)
    return _ALSO_KEY + row if also_key else row


def _size(length: int) -> int:
    """Memory of a bytes object of that length, in bytes: CPython rounds up to 16."""
    return (_OBJECT + length + 15) & ~15


class Tree:
    """Keys in memory. Directories are tuples of components; the root is the empty tuple."""

    on_disk = False

    def __init__(self, separator: bytes, is_long: Callable[[bytes], bool], long_from: int) -> None:
        """See `Index`."""
        self._separator = separator
        self._is_long = is_long
        self._long_from = long_from
        self._root: _Node = {}
        self._long: dict[bytes, bytes] = {}  # SHA-256 digest → key
        # What a packed directory becomes with one tail more. `user:1:name`, `user:2:name`: the same steps come again
        # and again; looking them up is quicker than making them, and the equal results are kept once.
        self._steps: dict[bytes, dict[bytes, bytes]] = {}
        self._steps_kept = 0
        self._count = 0
        self.memory = 0  # bytes, estimated

    def __len__(self) -> int:
        return self._count + len(self._long)

    @property
    def measured(self) -> int:
        """`memory`, corrected by what the largest dicts really take: their tables double, so an average can be a third
        off. Looks at the root's children only, and not at all if there are very many."""
        correction = 0
        if len(self._root) < LARGE:
            for node in (self._root, *self._root.values()):
                if type(node) is dict and len(node) >= LARGE:
                    correction += sys.getsizeof(node) - _SLOT * len(node)
        return self.memory + correction

    # -- changing ----------------------------------------------------------------------------------------------------

    def add_many(self, keys: Sequence[bytes]) -> int:
        """Add keys; answer how many were new."""
        before = len(self)
        if keys and max(map(len, keys)) >= self._long_from:
            long = {key for key in keys if len(key) >= self._long_from and self._is_long(key)}
            for key in long:
                self._add_long(key)
            keys = [key for key in keys if key not in long]
        added, memory = self._insert(self._root, keys)
        self._count += added
        self.memory += memory
        return len(self) - before

    def _insert(self, root: _Node, keys: Sequence[bytes]) -> tuple[int, int]:
        """Put keys below a dict; answer how many were new, and the memory they took.

        One long loop on purpose, with nothing called from it that can be avoided: a first scan spends its time here.
        """
        separator, steps = self._separator, self._steps
        added = 0
        memory = 0
        for key in keys:
            node, rest = root, key
            while True:
                head, found, rest = rest.partition(separator)
                entry = node.get(head, b"")  # b"" is none: a packed directory is never empty
                if type(entry) is dict:
                    if found:
                        node = entry
                        continue
                    if None not in entry:
                        entry[None] = None
                        added += 1
                    break
                if not found:
                    if entry == b"":
                        node[head] = None
                        memory += _SLOT + ((_OBJECT + 15 + len(head)) & ~15)
                        added += 1
                    elif entry is not None and entry[:1] != _ALSO_KEY:
                        node[head] = _ALSO_KEY + entry
                        added += 1
                    break
                # There is more below: `rest` goes into a packed directory, as long as it fits one.
                packed = _ALSO_KEY if entry is None else entry
                step = steps.get(packed)
                longer = None if step is None else step.get(rest)
                if longer is None:
                    longer = self._extend(packed, rest)
                    if longer is None:
                        unpacked, grown = self._unpack(packed)
                        if entry == b"":
                            memory += _SLOT + _size(len(head))
                        elif entry is not None:
                            memory -= _ROW
                        memory += grown
                        node[head] = unpacked
                        node = unpacked
                        continue
                if longer != entry:  # (equal ones need not be the same: `steps` may know another)
                    if entry == b"":
                        memory += _SLOT + _ROW + ((_OBJECT + 15 + len(head)) & ~15)
                    elif entry is None:
                        memory += _ROW
                    node[head] = longer
                    memory += len(rest) + 1
                    added += 1
                break
        return added, memory

    def _extend(self, packed: bytes, tail: bytes) -> bytes | None:
        """A packed directory with one tail more (itself, if it has the tail); None if that is too much for one."""
        if len(packed) + len(tail) >= PACKED:
            return packed if tail in _tails(packed) else None
        piece = _LENGTHS[len(tail)] + tail
        # The first test is quick and can only err towards "present"; the second is exact.
        longer = packed if piece in packed and tail in _tails(packed) else packed + piece
        self._steps_kept += 1
        if self._steps_kept > STEPS:
            self._steps.clear()
            self._steps_kept = 0
        self._steps.setdefault(packed, {})[tail] = longer
        return longer

    def _unpack(self, packed: bytes) -> tuple[_Node, int]:
        """A dict with what a packed directory held, and the growth of what both hold, in bytes."""
        node: _Node = {None: None} if packed[:1] == _ALSO_KEY else {}
        tails = _tails(packed)
        growth = _DICT - sum(len(tail) + 1 for tail in tails)
        if tails:
            head, found, _ = tails[0].partition(self._separator)
            start = head + found
            if found and all(tail.startswith(start) for tail in tails):
                # All go down the same way (`user:1:session:…`): they stay packed, one directory further down.
                below = [tail[len(start) :] for tail in tails]
                node[head] = _pack(below, also_key=False)
                return node, growth + _SLOT + _size(len(head)) + _ROW + sum(len(tail) + 1 for tail in below)
        _, memory = self._insert(node, tails)
        return node, growth + memory

    def _add_long(self, key: bytes) -> None:
        digest = hashlib.sha256(key).digest()
        if digest not in self._long:
            self._long[digest] = key
            self.memory += _SLOT + _size(32) + _size(len(key))

    def discard(self, key: bytes) -> bool:
        """Remove a key, and the directories that it leaves empty; answer whether it was there."""
        if len(key) >= self._long_from and self._is_long(key):
            if self._long.pop(hashlib.sha256(key).digest(), None) is None:
                return False
            self.memory -= _SLOT + _size(32) + _size(len(key))
            return True
        path: list[tuple[_Node, bytes]] = []  # the dicts walked through, each with the component taken
        node, rest = self._root, key
        while True:
            head, found, rest = rest.partition(self._separator)
            entry = node.get(head, _MISSING)
            path.append((node, head))
            if type(entry) is not dict or not found:
                break
            node = entry
        if entry is _MISSING:
            return False
        if not found:
            removed = self._discard_here(node, head, entry)
        else:
            removed = type(entry) is bytes and self._discard_packed(node, head, entry, rest)
        if removed:
            self._count -= 1
            self._prune(path)
        return removed

    def _discard_here(self, node: _Node, head: bytes, entry: object) -> bool:
        """Remove the key that the component itself is."""
        if entry is None:
            del node[head]
            self.memory -= _SLOT + _size(len(head))
            return True
        if type(entry) is dict:
            return entry.pop(None, _MISSING) is not _MISSING
        assert type(entry) is bytes
        if entry[:1] != _ALSO_KEY:
            return False
        node[head] = entry[1:]
        return True

    def _discard_packed(self, node: _Node, head: bytes, packed: bytes, tail: bytes) -> bool:
        """Remove one tail from a packed directory."""
        tails = _tails(packed)
        if tail not in tails:
            return False
        tails.remove(tail)
        also_key = packed[:1] == _ALSO_KEY
        self.memory -= len(tail) + 1
        if tails:
            node[head] = _pack(tails, also_key=also_key)
        else:
            self.memory -= _ROW
            if also_key:
                node[head] = None
            else:
                del node[head]
                self.memory -= _SLOT + _size(len(head))
        return True

    def _prune(self, path: list[tuple[_Node, bytes]]) -> None:
        """Remove the directories on the path that have nothing below them any more, from the deepest up."""
        for parent, head in reversed(path):
            entry = parent.get(head, _MISSING)
            if type(entry) is not dict:
                continue
            if not entry:
                del parent[head]
                self.memory -= _DICT + _SLOT + _size(len(head))
            elif len(entry) == 1 and None in entry:
                parent[head] = None
                self.memory -= _DICT
            else:
                return

    # -- asking ------------------------------------------------------------------------------------------------------

    def __contains__(self, key: bytes) -> bool:
        if len(key) >= self._long_from and self._is_long(key):
            return hashlib.sha256(key).digest() in self._long
        node, rest = self._root, key
        while True:
            head, found, rest = rest.partition(self._separator)
            entry = node.get(head, _MISSING)
            if type(entry) is dict:
                if not found:
                    return None in entry
                node = entry
            elif not found:
                return entry is None or (type(entry) is bytes and entry[:1] == _ALSO_KEY)
            else:
                return type(entry) is bytes and rest in _tails(entry)

    def child(self, directory: tuple[bytes, ...], component: bytes) -> Child | None:
        """What `component` is in `directory`, or None if neither a key nor a directory."""
        node = self._root
        for depth, name in enumerate(directory):
            entry = node.get(name)
            if type(entry) is dict:
                node = entry
                continue
            if type(entry) is bytes:
                return self._child_packed(entry, [*directory[depth + 1 :], component])
            return None
        entry = node.get(component, _MISSING)
        if entry is _MISSING:
            return None
        if type(entry) is dict:
            return Child(component, None in entry, True)
        return Child(component, entry is None or entry[:1] == _ALSO_KEY, entry is not None)

    def _child_packed(self, packed: bytes, components: list[bytes]) -> Child | None:
        """The same, below a packed directory."""
        depth = len(components)
        is_key = is_directory = False
        start = self._separator.join(components)
        for tail in _tails(packed):
            # Compared by components: with a separator of several bytes, joining them again may spell another key.
            if tail.startswith(start) and (split := tail.split(self._separator))[:depth] == components:
                if len(split) == depth:
                    is_key = True
                else:
                    is_directory = True
        return Child(components[-1], is_key, is_directory) if is_key or is_directory else None

    def is_directory(self, directory: tuple[bytes, ...]) -> bool:
        """Whether a key lies below; the root is always a directory."""
        node = self._root
        for depth, name in enumerate(directory, 1):
            entry = node.get(name)
            if type(entry) is dict:
                node = entry
            elif entry is None or depth == len(directory):
                return entry is not None
            else:
                child = self._child_packed(entry, list(directory[depth:]))
                return child is not None and child.is_directory
        return True

    def _find(self, directory: tuple[bytes, ...]) -> tuple[_Node | None, list[bytes]]:
        """A directory's dict, or, if it is packed or below a packed one, the tails of the keys in it."""
        node = self._root
        for depth, name in enumerate(directory):
            entry = node.get(name)
            if type(entry) is dict:
                node = entry
                continue
            if type(entry) is not bytes:
                return None, []
            below = list(directory[depth + 1 :])
            if not below:
                return None, _tails(entry)
            start = len(self._separator.join([*below, b""]))
            splits = ((tail, tail.split(self._separator)) for tail in _tails(entry))
            return None, [tail[start:] for tail, split in splits if split[:-1][: len(below)] == below]
        return node, []

    def children(self, directory: tuple[bytes, ...]) -> Iterator[list[Child]]:
        """The children, in pieces. The caller may let others change the tree between two pieces.

        What is there when the first piece is taken is what is listed, but for children that vanish meanwhile.
        """
        node, tails = self._find(directory)
        if node is None:
            if tails:
                yield self._children_packed(tails)
            return
        names = list(node)
        make = tuple.__new__  # half the time of calling Child, which counts in a directory of a million
        for start in range(0, len(names), PIECE):
            piece: list[Child] = []
            for name in names[start : start + PIECE]:
                if name is None:
                    continue
                entry = node.get(name, _MISSING)
                if entry is None:
                    piece.append(make(Child, (name, True, False)))
                elif type(entry) is bytes:
                    piece.append(Child(name, entry[:1] == _ALSO_KEY, True))
                elif type(entry) is dict:
                    piece.append(Child(name, None in entry, True))
            yield piece

    def _children_packed(self, tails: list[bytes]) -> list[Child]:
        """The children that these tails make."""
        kinds: dict[bytes, int] = {}
        for tail in tails:
            head, found, _ = tail.partition(self._separator)
            kinds[head] = kinds.get(head, 0) | (2 if found else 1)
        return [Child(name, bool(kind & 1), bool(kind & 2)) for name, kind in kinds.items()]

    def keys_below(self, directory: tuple[bytes, ...]) -> Iterator[list[bytes]]:
        """The keys below, in pieces, under the terms of `children`."""
        start = self._separator.join([*directory, b""])
        node, tails = self._find(directory)
        if node is None:
            yield [start + tail for tail in tails]
            return
        keys = self._walk(node, start)
        yield from batched(keys, PIECE)

    def _walk(self, top: _Node, start: bytes) -> Iterator[bytes]:
        """The keys below one dict. With a stack of its own: a key can have more components than Python's has frames."""
        stack = [(top, start, iter(list(top)))]
        while stack:
            node, start, names = stack[-1]
            name = next(names, _MISSING)
            if name is _MISSING:
                stack.pop()
                continue
            if name is None:
                continue
            assert isinstance(name, bytes)
            entry = node.get(name, _MISSING)
            key = start + name
            if entry is None:
                yield key
            elif type(entry) is bytes:
                if entry[:1] == _ALSO_KEY:
                    yield key
                for tail in _tails(entry):
                    yield key + self._separator + tail
            elif type(entry) is dict:
                if None in entry:
                    yield key
                stack.append((entry, key + self._separator, iter(list(entry))))

    def sample(self, count: int) -> list[bytes]:
        """Some keys, up to `count`, whichever come first."""
        keys: list[bytes] = []
        stack: list[tuple[_Node, bytes]] = [(self._root, b"")]
        while stack and len(keys) < count:
            node, start = stack.pop()
            for name in islice(node, count):
                entry = node[name]
                if name is None:
                    continue
                below = start + name + self._separator
                if type(entry) is dict:
                    stack.append((entry, below))
                elif entry is None:
                    keys.append(start + name)
                else:
                    keys += [below + tail for tail in _tails(entry)]
        return keys[:count]

    def differences(self, other: "Tree", limit: int) -> set[bytes] | None:
        """The keys that only one of the two has, long ones included; None if they are more than `limit`.

        Others may change both meanwhile: what they change may be in the answer or not.
        """
        mine_long, its_long = set(self._long.values()), set(other._long.values())
        keys = mine_long ^ its_long
        stack = [(self._root, other._root, b"")]
        while stack and len(keys) <= limit:
            one, two, start = stack.pop()
            for name in list(one):
                mine, its = one.get(name, _MISSING), two.get(name, _MISSING)
                if type(mine) is dict and type(its) is dict:
                    stack.append((mine, its, start + (name or b"") + self._separator))
                elif mine is not its and mine != its:
                    keys |= self._keys_of(name, mine, start) ^ self._keys_of(name, its, start)
                    if len(keys) > limit:
                        break
            for name in list(two):
                if name not in one:
                    keys |= self._keys_of(name, two.get(name, _MISSING), start)
                    if len(keys) > limit:
                        break
        return keys if len(keys) <= limit else None

    def _keys_of(self, name: bytes | None, entry: object, start: bytes) -> set[bytes]:
        """The keys that one component of a directory stands for."""
        if entry is _MISSING:
            return set()
        if name is None:
            return {start[: -len(self._separator)]}
        return set(self._walk({name: entry}, start))

    # -- keys whose path would be too long ---------------------------------------------------------------------------

    def long_key(self, digest: bytes) -> bytes | None:
        """The long key with this SHA-256 digest, if there is one."""
        return self._long.get(digest)

    def long_keys(self) -> Iterator[list[bytes]]:
        """The long keys, in pieces."""
        keys = list(self._long.values())
        yield from batched(keys, PIECE)

    def close(self) -> None:
        """Nothing to release."""

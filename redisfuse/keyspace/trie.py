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

MAX_PACKED_BYTES = 192  # bytes that a packed directory may have; past it, it becomes a dict
MAX_CACHED_TRANSITIONS = 20_000  # changes to packed directories that are remembered; about 5 MB
MIN_MEASURED_ENTRIES = 10_000  # entries of a dict whose memory is looked at, and not estimated
MAX_ITEMS_PER_BATCH = 1000  # children or keys in a piece of a listing

_LENGTH_BYTES = tuple(bytes((length,)) for length in range(255))
_KEY_FLAG = b"\xff"
_MISSING = object()

# What the memory estimate is made of, in bytes: CPython's dict slots (33 to 60 a key, as full as it is) and headers.
_DICT_SLOT_BYTES = 46
_DICT_OVERHEAD_BYTES = 120
_OBJECT_OVERHEAD_BYTES = 33
_PACKED_OVERHEAD_BYTES = 24  # a packed directory beside its bytes: 41, or nothing where equal ones are kept once

_TrieNode: TypeAlias = dict[bytes | None, Any]  # what it holds: None, bytes or another such dict, as above


class Child(NamedTuple):
    """What one component is in its directory: a key, a directory, or both."""

    component: bytes
    is_key: bool
    is_directory: bool


def _unpack_tails(packed: bytes) -> list[bytes]:
    """The tails in a packed directory."""
    tails = []
    at = 1 if packed[:1] == _KEY_FLAG else 0
    end = len(packed)
    while at < end:
        start = at + 1
        at = start + packed[at]
        tails.append(packed[start:at])
    return tails


def _pack_tails(tails: Iterable[bytes], *, is_key: bool) -> bytes:
    """A packed directory of these tails, each shorter than 255 bytes."""
    row = b"".join(_LENGTH_BYTES[len(tail)] + tail for tail in tails)
    return _KEY_FLAG + row if is_key else row


def _bytes_object_size(length: int) -> int:
    """Memory of a bytes object of that length, in bytes: CPython rounds up to 16."""
    return (_OBJECT_OVERHEAD_BYTES + length + 15) & ~15


class PackedTrie:
    """Keys in memory. Directories are tuples of components; the root is the empty tuple."""

    on_disk = False

    def __init__(self, separator: bytes, is_long_key: Callable[[bytes], bool], min_long_key_bytes: int) -> None:
        """See `Index`."""
        self._separator = separator
        self._is_long_key = is_long_key
        self._min_long_key_bytes = min_long_key_bytes
        self._root: _TrieNode = {}
        self._long_keys: dict[bytes, bytes] = {}  # SHA-256 digest → key
        # What a packed directory becomes with one tail more. `user:1:name`, `user:2:name`: the same steps come again
        # and again; looking them up is quicker than making them, and the equal results are kept once.
        self._transitions: dict[bytes, dict[bytes, bytes]] = {}
        self._transition_count = 0
        self._count = 0
        self.memory_bytes = 0  # bytes, estimated

    def __len__(self) -> int:
        return self._count + len(self._long_keys)

    @property
    def measured_memory_bytes(self) -> int:
        """`memory_bytes`, corrected by what the largest dicts really take: their tables double, so an average can be a third
        off. Looks at the root's children only, and not at all if there are very many."""
        correction = 0
        if len(self._root) < MIN_MEASURED_ENTRIES:
            for node in (self._root, *self._root.values()):
                if type(node) is dict and len(node) >= MIN_MEASURED_ENTRIES:
                    correction += sys.getsizeof(node) - _DICT_SLOT_BYTES * len(node)
        return self.memory_bytes + correction

    # -- changing ----------------------------------------------------------------------------------------------------

    def add_many(self, keys: Sequence[bytes]) -> int:
        """Add keys; answer how many were new."""
        before = len(self)
        if keys and max(map(len, keys)) >= self._min_long_key_bytes:
            long = {key for key in keys if len(key) >= self._min_long_key_bytes and self._is_long_key(key)}
            for key in long:
                self._add_long(key)
            keys = [key for key in keys if key not in long]
        added, memory = self._insert_keys(self._root, keys)
        self._count += added
        self.memory_bytes += memory
        return len(self) - before

    def _insert_keys(self, root: _TrieNode, keys: Sequence[bytes]) -> tuple[int, int]:
        """Put keys below a dict; answer how many were new, and the memory they took.

        One long loop on purpose, with nothing called from it that can be avoided: a first scan spends its time here.
        """
        separator, steps = self._separator, self._transitions
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
                        memory += _DICT_SLOT_BYTES + ((_OBJECT_OVERHEAD_BYTES + 15 + len(head)) & ~15)
                        added += 1
                    elif entry is not None and entry[:1] != _KEY_FLAG:
                        node[head] = _KEY_FLAG + entry
                        added += 1
                    break
                # There is more below: `rest` goes into a packed directory, as long as it fits one.
                packed = _KEY_FLAG if entry is None else entry
                step = steps.get(packed)
                longer = None if step is None else step.get(rest)
                if longer is None:
                    longer = self._append_tail(packed, rest)
                    if longer is None:
                        unpacked, grown = self._unpack_directory(packed)
                        if entry == b"":
                            memory += _DICT_SLOT_BYTES + _bytes_object_size(len(head))
                        elif entry is not None:
                            memory -= _PACKED_OVERHEAD_BYTES
                        memory += grown
                        node[head] = unpacked
                        node = unpacked
                        continue
                if longer != entry:  # (equal ones need not be the same: `steps` may know another)
                    if entry == b"":
                        memory += (
                            _DICT_SLOT_BYTES
                            + _PACKED_OVERHEAD_BYTES
                            + ((_OBJECT_OVERHEAD_BYTES + 15 + len(head)) & ~15)
                        )
                    elif entry is None:
                        memory += _PACKED_OVERHEAD_BYTES
                    node[head] = longer
                    memory += len(rest) + 1
                    added += 1
                break
        return added, memory

    def _append_tail(self, packed: bytes, tail: bytes) -> bytes | None:
        """A packed directory with one tail more (itself, if it has the tail); None if that is too much for one."""
        if len(packed) + len(tail) >= MAX_PACKED_BYTES:
            return packed if tail in _unpack_tails(packed) else None
        piece = _LENGTH_BYTES[len(tail)] + tail
        # The first test is quick and can only err towards "present"; the second is exact.
        longer = packed if piece in packed and tail in _unpack_tails(packed) else packed + piece
        self._transition_count += 1
        if self._transition_count > MAX_CACHED_TRANSITIONS:
            self._transitions.clear()
            self._transition_count = 0
        self._transitions.setdefault(packed, {})[tail] = longer
        return longer

    def _unpack_directory(self, packed: bytes) -> tuple[_TrieNode, int]:
        """A dict with what a packed directory held, and the growth of what both hold, in bytes."""
        node: _TrieNode = {None: None} if packed[:1] == _KEY_FLAG else {}
        tails = _unpack_tails(packed)
        growth = _DICT_OVERHEAD_BYTES - sum(len(tail) + 1 for tail in tails)
        if tails:
            head, found, _ = tails[0].partition(self._separator)
            start = head + found
            if found and all(tail.startswith(start) for tail in tails):
                # All go down the same way (`user:1:session:…`): they stay packed, one directory further down.
                below = [tail[len(start) :] for tail in tails]
                node[head] = _pack_tails(below, is_key=False)
                return node, growth + _DICT_SLOT_BYTES + _bytes_object_size(len(head)) + _PACKED_OVERHEAD_BYTES + sum(
                    len(tail) + 1 for tail in below
                )
        _, memory = self._insert_keys(node, tails)
        return node, growth + memory

    def _add_long(self, key: bytes) -> None:
        digest = hashlib.sha256(key).digest()
        if digest not in self._long_keys:
            self._long_keys[digest] = key
            self.memory_bytes += _DICT_SLOT_BYTES + _bytes_object_size(32) + _bytes_object_size(len(key))

    def discard(self, key: bytes) -> bool:
        """Remove a key, and the directories that it leaves empty; answer whether it was there."""
        if len(key) >= self._min_long_key_bytes and self._is_long_key(key):
            if self._long_keys.pop(hashlib.sha256(key).digest(), None) is None:
                return False
            self.memory_bytes -= _DICT_SLOT_BYTES + _bytes_object_size(32) + _bytes_object_size(len(key))
            return True
        path: list[tuple[_TrieNode, bytes]] = []  # the dicts walked through, each with the component taken
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
            removed = self._discard_component_key(node, head, entry)
        else:
            removed = type(entry) is bytes and self._discard_tail(node, head, entry, rest)
        if removed:
            self._count -= 1
            self._prune_empty(path)
        return removed

    def _discard_component_key(self, node: _TrieNode, head: bytes, entry: object) -> bool:
        """Remove the key that the component itself is."""
        if entry is None:
            del node[head]
            self.memory_bytes -= _DICT_SLOT_BYTES + _bytes_object_size(len(head))
            return True
        if type(entry) is dict:
            return entry.pop(None, _MISSING) is not _MISSING
        assert type(entry) is bytes
        if entry[:1] != _KEY_FLAG:
            return False
        node[head] = entry[1:]
        return True

    def _discard_tail(self, node: _TrieNode, head: bytes, packed: bytes, tail: bytes) -> bool:
        """Remove one tail from a packed directory."""
        tails = _unpack_tails(packed)
        if tail not in tails:
            return False
        tails.remove(tail)
        also_key = packed[:1] == _KEY_FLAG
        self.memory_bytes -= len(tail) + 1
        if tails:
            node[head] = _pack_tails(tails, is_key=also_key)
        else:
            self.memory_bytes -= _PACKED_OVERHEAD_BYTES
            if also_key:
                node[head] = None
            else:
                del node[head]
                self.memory_bytes -= _DICT_SLOT_BYTES + _bytes_object_size(len(head))
        return True

    def _prune_empty(self, path: list[tuple[_TrieNode, bytes]]) -> None:
        """Remove the directories on the path that have nothing below them any more, from the deepest up."""
        for parent, head in reversed(path):
            entry = parent.get(head, _MISSING)
            if type(entry) is not dict:
                continue
            if not entry:
                del parent[head]
                self.memory_bytes -= _DICT_OVERHEAD_BYTES + _DICT_SLOT_BYTES + _bytes_object_size(len(head))
            elif len(entry) == 1 and None in entry:
                parent[head] = None
                self.memory_bytes -= _DICT_OVERHEAD_BYTES
            else:
                return

    # -- asking ------------------------------------------------------------------------------------------------------

    def __contains__(self, key: bytes) -> bool:
        if len(key) >= self._min_long_key_bytes and self._is_long_key(key):
            return hashlib.sha256(key).digest() in self._long_keys
        node, rest = self._root, key
        while True:
            head, found, rest = rest.partition(self._separator)
            entry = node.get(head, _MISSING)
            if type(entry) is dict:
                if not found:
                    return None in entry
                node = entry
            elif not found:
                return entry is None or (type(entry) is bytes and entry[:1] == _KEY_FLAG)
            else:
                return type(entry) is bytes and rest in _unpack_tails(entry)

    def get_child(self, directory: tuple[bytes, ...], component: bytes) -> Child | None:
        """What `component` is in `directory`, or None if neither a key nor a directory."""
        node = self._root
        for depth, name in enumerate(directory):
            entry = node.get(name)
            if type(entry) is dict:
                node = entry
                continue
            if type(entry) is bytes:
                return self._get_packed_child(entry, [*directory[depth + 1 :], component])
            return None
        entry = node.get(component, _MISSING)
        if entry is _MISSING:
            return None
        if type(entry) is dict:
            return Child(component, None in entry, True)
        return Child(component, entry is None or entry[:1] == _KEY_FLAG, entry is not None)

    def _get_packed_child(self, packed: bytes, components: list[bytes]) -> Child | None:
        """The same, below a packed directory."""
        depth = len(components)
        is_key = is_directory = False
        start = self._separator.join(components)
        for tail in _unpack_tails(packed):
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
                child = self._get_packed_child(entry, list(directory[depth:]))
                return child is not None and child.is_directory
        return True

    def _find_directory(self, directory: tuple[bytes, ...]) -> tuple[_TrieNode | None, list[bytes]]:
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
                return None, _unpack_tails(entry)
            start = len(self._separator.join([*below, b""]))
            splits = ((tail, tail.split(self._separator)) for tail in _unpack_tails(entry))
            return None, [tail[start:] for tail, split in splits if split[:-1][: len(below)] == below]
        return node, []

    def iter_child_batches(self, directory: tuple[bytes, ...]) -> Iterator[list[Child]]:
        """The children, in pieces. The caller may let others change the tree between two pieces.

        What is there when the first piece is taken is what is listed, but for children that vanish meanwhile.
        """
        node, tails = self._find_directory(directory)
        if node is None:
            if tails:
                yield self._collect_children(tails)
            return
        names = list(node)
        make = tuple.__new__  # half the time of calling Child, which counts in a directory of a million
        for start in range(0, len(names), MAX_ITEMS_PER_BATCH):
            piece: list[Child] = []
            for name in names[start : start + MAX_ITEMS_PER_BATCH]:
                if name is None:
                    continue
                entry = node.get(name, _MISSING)
                if entry is None:
                    piece.append(make(Child, (name, True, False)))
                elif type(entry) is bytes:
                    piece.append(Child(name, entry[:1] == _KEY_FLAG, True))
                elif type(entry) is dict:
                    piece.append(Child(name, None in entry, True))
            yield piece

    def _collect_children(self, tails: list[bytes]) -> list[Child]:
        """The children that these tails make."""
        kinds: dict[bytes, int] = {}
        for tail in tails:
            head, found, _ = tail.partition(self._separator)
            kinds[head] = kinds.get(head, 0) | (2 if found else 1)
        return [Child(name, bool(kind & 1), bool(kind & 2)) for name, kind in kinds.items()]

    def iter_key_batches_below(self, directory: tuple[bytes, ...]) -> Iterator[list[bytes]]:
        """The keys below, in pieces, under the terms of `iter_child_batches`."""
        start = self._separator.join([*directory, b""])
        node, tails = self._find_directory(directory)
        if node is None:
            yield [start + tail for tail in tails]
            return
        keys = self._iter_keys(node, start)
        yield from batched(keys, MAX_ITEMS_PER_BATCH)

    def _iter_keys(self, root: _TrieNode, prefix: bytes) -> Iterator[bytes]:
        """The keys below one dict. With a stack of its own: a key can have more components than Python's has frames."""
        stack = [(root, prefix, iter(list(root)))]
        while stack:
            node, prefix, names = stack[-1]
            name = next(names, _MISSING)
            if name is _MISSING:
                stack.pop()
                continue
            if name is None:
                continue
            assert isinstance(name, bytes)
            entry = node.get(name, _MISSING)
            key = prefix + name
            if entry is None:
                yield key
            elif type(entry) is bytes:
                if entry[:1] == _KEY_FLAG:
                    yield key
                for tail in _unpack_tails(entry):
                    yield key + self._separator + tail
            elif type(entry) is dict:
                if None in entry:
                    yield key
                stack.append((entry, key + self._separator, iter(list(entry))))

    def sample_keys(self, count: int) -> list[bytes]:
        """Some keys, up to `count`, whichever come first."""
        keys: list[bytes] = []
        stack: list[tuple[_TrieNode, bytes]] = [(self._root, b"")]
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
                    keys += [below + tail for tail in _unpack_tails(entry)]
        return keys[:count]

    def symmetric_difference(self, other: "PackedTrie", max_keys: int) -> set[bytes] | None:
        """The keys that only one of the two has, long ones included; None if they are more than `limit`.

        Others may change both meanwhile: what they change may be in the answer or not.
        """
        mine_long, its_long = set(self._long_keys.values()), set(other._long_keys.values())
        keys = mine_long ^ its_long
        stack = [(self._root, other._root, b"")]
        while stack and len(keys) <= max_keys:
            one, two, start = stack.pop()
            for name in list(one):
                mine, its = one.get(name, _MISSING), two.get(name, _MISSING)
                if type(mine) is dict and type(its) is dict:
                    stack.append((mine, its, start + (name or b"") + self._separator))
                elif mine is not its and mine != its:
                    keys |= self._collect_entry_keys(name, mine, start) ^ self._collect_entry_keys(name, its, start)
                    if len(keys) > max_keys:
                        break
            for name in list(two):
                if name not in one:
                    keys |= self._collect_entry_keys(name, two.get(name, _MISSING), start)
                    if len(keys) > max_keys:
                        break
        return keys if len(keys) <= max_keys else None

    def _collect_entry_keys(self, name: bytes | None, entry: object, prefix: bytes) -> set[bytes]:
        """The keys that one component of a directory stands for."""
        if entry is _MISSING:
            return set()
        if name is None:
            return {prefix[: -len(self._separator)]}
        return set(self._iter_keys({name: entry}, prefix))

    # -- keys whose path would be too long ---------------------------------------------------------------------------

    def get_long_key(self, digest: bytes) -> bytes | None:
        """The long key with this SHA-256 digest, if there is one."""
        return self._long_keys.get(digest)

    def iter_long_key_batches(self) -> Iterator[list[bytes]]:
        """The long keys, in pieces."""
        keys = list(self._long_keys.values())
        yield from batched(keys, MAX_ITEMS_PER_BATCH)

    def close(self) -> None:
        """Nothing to release."""

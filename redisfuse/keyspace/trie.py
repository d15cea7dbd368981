"""The index in memory: nested dicts of components.

Small directories are packed into one bytes string. A directory is a dict of components. The value of a component is one
of:

- `None`: a key, and nothing below it;
- `bytes`: a small directory, packed (packed_directory.py);
- `dict`: a larger directory; if the directory's own name is a key, too, it has an entry under `None`.

Most directories of a real keyspace (`user:1001` with its five keys) stay packed: a dict for each would take four times
the memory.

This module has no lock: `Index` (index.py) serializes the calls.
"""

from collections.abc import Iterator, Sequence

from more_itertools import chunked

from redisfuse.keyspace.index_backend import (
    MAX_ITEMS_PER_BATCH,
    MIN_LONG_KEY_BYTES,
    Child,
    KeyLayout,
    is_long_key,
)
from redisfuse.keyspace.long_keys import LongKeys
from redisfuse.keyspace.packed_directory import (
    KEY_FLAG,
    TransitionCache,
    collect_children,
    get_packed_child,
    list_tails_below,
    pack_tails,
    unpack_tails,
)
from redisfuse.keyspace.trie_memory import (
    DICT_OVERHEAD_BYTES,
    DICT_SLOT_BYTES,
    MIN_MEASURED_ENTRIES,
    OBJECT_OVERHEAD_BYTES,
    PACKED_OVERHEAD_BYTES,
    bytes_object_size,
    measure_dicts,
)
from redisfuse.keyspace.trie_walk import MISSING, TrieNode, iter_keys, sample_keys, symmetric_difference
from redisfuse.keyspace.wide_directories import WideDirectories

_MIN_SAMPLED_KEYS = 100  # in a batch, of which some directories may be remembered as wide
_WIDE_SAMPLES = 8  # keys of a batch whose directories may be remembered as wide


class PackedTrie:
    """Keys in memory.

    Directories are tuples of components; the root is the empty tuple.
    """

    on_disk = False

    def __init__(self, layout: KeyLayout) -> None:
        """See `Index`."""
        self._layout = layout
        self._separator = layout.separator
        self._root: TrieNode = {}
        self._long_keys = LongKeys()
        self._transitions = TransitionCache()
        self._wide = WideDirectories(layout.separator)
        self._count = 0
        self.memory_bytes = 0  # estimated

    def __len__(self) -> int:
        return self._count + len(self._long_keys)

    @property
    def measured_memory_bytes(self) -> int:
        """`memory_bytes`, corrected by the measured size of the largest dicts.

        Their tables double, so the average of the estimate can be a third off. Only the root and its children are
        measured, and nothing if there are very many.
        """
        if len(self._root) >= MIN_MEASURED_ENTRIES:
            return self.memory_bytes
        return self.memory_bytes + measure_dicts((self._root, *self._root.values()))

    # -- changes -----------------------------------------------------------------------------------------------------

    def add_many(self, keys: Sequence[bytes]) -> int:
        """Add keys; return how many were new."""
        before = len(self)
        if keys and max(map(len, keys)) >= MIN_LONG_KEY_BYTES:
            long = {key for key in keys if is_long_key(self._layout, key)}
            self.memory_bytes += sum(map(self._long_keys.add, long))
            keys = [key for key in keys if key not in long]
        if self._wide:
            keys, added, memory = self._wide.insert_keys(keys)
            self._count += added
            self.memory_bytes += memory
        added, memory = self._insert_keys(self._root, keys)
        self._count += added
        self.memory_bytes += memory
        if len(keys) >= _MIN_SAMPLED_KEYS and len(self._separator) == 1:
            for key in keys[:: len(keys) // _WIDE_SAMPLES + 1]:
                *directory, _ = key.split(self._separator)
                node, _ = self._find_directory(tuple(directory))
                if directory and node is not None:
                    self._wide.record(directory, node)
        return len(self) - before

    def _insert_keys(self, root: TrieNode, keys: Sequence[bytes]) -> tuple[int, int]:
        """Insert keys below a dict.

        Returns how many were new, and the memory that they take, in bytes. One long loop on purpose, with as few calls
        as possible: the first scan spends its time here.
        """
        separator, transitions = self._separator, self._transitions.table
        added = 0
        memory = 0
        for key in keys:
            node, rest = root, key
            while True:
                head, found, rest = rest.partition(separator)
                entry = node.get(head, b"")  # b"" means no entry: a packed directory is never empty
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
                        memory += DICT_SLOT_BYTES + ((OBJECT_OVERHEAD_BYTES + 15 + len(head)) & ~15)
                        added += 1
                    elif entry is not None and entry[:1] != KEY_FLAG:
                        node[head] = KEY_FLAG + entry
                        added += 1
                    break
                # `rest` is below the component: it goes into a packed directory if it fits.
                packed = KEY_FLAG if entry is None else entry
                results = transitions.get(packed)
                longer = None if results is None else results.get(rest)
                if longer is None:
                    longer = self._transitions.append_tail(packed, rest)
                    if longer is None:
                        unpacked, grown = self._unpack_directory(packed)
                        if entry == b"":
                            memory += DICT_SLOT_BYTES + bytes_object_size(len(head))
                        elif entry is not None:
                            memory -= PACKED_OVERHEAD_BYTES
                        memory += grown
                        node[head] = unpacked
                        node = unpacked
                        continue
                if longer != entry:  # not `is not`: the cache may return an equal object
                    if entry == b"":
                        memory += (
                            DICT_SLOT_BYTES + PACKED_OVERHEAD_BYTES + ((OBJECT_OVERHEAD_BYTES + 15 + len(head)) & ~15)
                        )
                    elif entry is None:
                        memory += PACKED_OVERHEAD_BYTES
                    node[head] = longer
                    memory += len(rest) + 1
                    added += 1
                break
        return added, memory

    def _unpack_directory(self, packed: bytes) -> tuple[TrieNode, int]:
        """Return a dict with the contents of a packed directory.

        Also returns the growth of memory, in bytes.
        """
        node: TrieNode = {None: None} if packed[:1] == KEY_FLAG else {}
        tails = unpack_tails(packed)
        growth = DICT_OVERHEAD_BYTES - sum(len(tail) + 1 for tail in tails)
        if tails:
            head, found, _ = tails[0].partition(self._separator)
            start = head + found
            if found and all(tail.startswith(start) for tail in tails):
                # All have the same first component (`user:1:session:…`): they stay packed, one directory deeper.
                below = [tail[len(start) :] for tail in tails]
                node[head] = pack_tails(below, is_key=False)
                return node, growth + DICT_SLOT_BYTES + bytes_object_size(len(head)) + PACKED_OVERHEAD_BYTES + sum(
                    len(tail) + 1 for tail in below
                )
        _, memory = self._insert_keys(node, tails)
        return node, growth + memory

    def discard(self, key: bytes) -> bool:
        """Remove a key and the directories that become empty.

        Returns whether the key was present.
        """
        if is_long_key(self._layout, key):
            freed = self._long_keys.discard(key)
            self.memory_bytes -= freed
            return freed > 0
        path: list[tuple[TrieNode, bytes]] = []  # the dicts on the way, each with its component
        node, rest = self._root, key
        while True:
            head, found, rest = rest.partition(self._separator)
            entry = node.get(head, MISSING)
            path.append((node, head))
            if type(entry) is not dict or not found:
                break
            node = entry
        if entry is MISSING:
            return False
        if not found:
            removed = self._discard_component_key(node, head, entry)
        else:
            removed = type(entry) is bytes and self._discard_tail(node, head, entry, rest)
        if removed:
            self._count -= 1
            self._prune_empty(path)
        return removed

    def _discard_component_key(self, node: TrieNode, head: bytes, entry: object) -> bool:
        """Remove the key that ends at this component."""
        if entry is None:
            del node[head]
            self.memory_bytes -= DICT_SLOT_BYTES + bytes_object_size(len(head))
            return True
        if type(entry) is dict:
            return entry.pop(None, MISSING) is not MISSING
        assert type(entry) is bytes
        if entry[:1] != KEY_FLAG:
            return False
        node[head] = entry[1:]
        return True

    def _discard_tail(self, node: TrieNode, head: bytes, packed: bytes, tail: bytes) -> bool:
        """Remove one tail from a packed directory."""
        tails = unpack_tails(packed)
        if tail not in tails:
            return False
        tails.remove(tail)
        is_key = packed[:1] == KEY_FLAG
        self.memory_bytes -= len(tail) + 1
        if tails:
            node[head] = pack_tails(tails, is_key=is_key)
        else:
            self.memory_bytes -= PACKED_OVERHEAD_BYTES
            if is_key:
                node[head] = None
            else:
                del node[head]
                self.memory_bytes -= DICT_SLOT_BYTES + bytes_object_size(len(head))
        return True

    def _prune_empty(self, path: list[tuple[TrieNode, bytes]]) -> None:
        """Remove the directories on the path that have become empty, from the deepest up."""
        for parent, head in reversed(path):
            entry = parent.get(head, MISSING)
            if type(entry) is not dict:
                continue
            if not entry or (len(entry) == 1 and None in entry):
                self._wide.clear()
            if not entry:
                del parent[head]
                self.memory_bytes -= DICT_OVERHEAD_BYTES + DICT_SLOT_BYTES + bytes_object_size(len(head))
            elif len(entry) == 1 and None in entry:
                parent[head] = None
                self.memory_bytes -= DICT_OVERHEAD_BYTES
            else:
                return

    # -- queries -----------------------------------------------------------------------------------------------------

    def __contains__(self, key: bytes) -> bool:
        if is_long_key(self._layout, key):
            return key in self._long_keys
        node, rest = self._root, key
        while True:
            head, found, rest = rest.partition(self._separator)
            entry = node.get(head, MISSING)
            if type(entry) is dict:
                if not found:
                    return None in entry
                node = entry
            elif not found:
                return entry is None or (type(entry) is bytes and entry[:1] == KEY_FLAG)
            else:
                return type(entry) is bytes and rest in unpack_tails(entry)

    def get_child(self, directory: tuple[bytes, ...], component: bytes) -> Child | None:
        """Return what `component` is in `directory`.

        None if it is neither a key nor a directory.
        """
        node = self._root
        for depth, name in enumerate(directory):
            entry = node.get(name)
            if type(entry) is dict:
                node = entry
                continue
            if type(entry) is bytes:
                return get_packed_child(entry, [*directory[depth + 1 :], component], self._separator)
            return None
        entry = node.get(component, MISSING)
        if entry is MISSING:
            return None
        if type(entry) is dict:
            return Child(component, None in entry, True)
        return Child(component, entry is None or entry[:1] == KEY_FLAG, entry is not None)

    def is_directory(self, directory: tuple[bytes, ...]) -> bool:
        """Return whether a key lies below; the root is always a directory."""
        node = self._root
        for depth, name in enumerate(directory, 1):
            entry = node.get(name)
            if type(entry) is dict:
                node = entry
            elif entry is None or depth == len(directory):
                return entry is not None
            elif self._separator.join((*directory[depth:], b"")) not in entry:  # fast; can only err towards "present"
                return False
            else:
                child = get_packed_child(entry, list(directory[depth:]), self._separator)
                return child is not None and child.is_directory
        return True

    def _find_directory(self, directory: tuple[bytes, ...]) -> tuple[TrieNode | None, list[bytes]]:
        """Return a directory's dict, or the tails of its keys.

        The tails, if it is packed or below a packed directory.
        """
        node = self._root
        for depth, name in enumerate(directory):
            entry = node.get(name)
            if type(entry) is dict:
                node = entry
                continue
            if type(entry) is not bytes:
                return None, []
            return None, list_tails_below(entry, list(directory[depth + 1 :]), self._separator)
        return node, []

    def iter_child_batches(self, directory: tuple[bytes, ...]) -> Iterator[list[Child]]:
        """Yield the children in batches. The trie may change between two batches.

        Lists the children that exist when the first batch is taken, except those that are removed meanwhile.
        """
        node, tails = self._find_directory(directory)
        if node is None:
            if tails:
                yield collect_children(tails, self._separator)
            return
        names = list(node)
        new_tuple = tuple.__new__  # takes half the time of Child(), which matters in a directory of a million
        for start in range(0, len(names), MAX_ITEMS_PER_BATCH):
            batch: list[Child] = []
            for name in names[start : start + MAX_ITEMS_PER_BATCH]:
                if name is None:
                    continue
                entry = node.get(name, MISSING)
                if entry is None:
                    batch.append(new_tuple(Child, (name, True, False)))
                elif type(entry) is bytes:
                    batch.append(Child(name, entry[:1] == KEY_FLAG, True))
                elif type(entry) is dict:
                    batch.append(Child(name, None in entry, True))
            yield batch

    def iter_key_batches_below(self, directory: tuple[bytes, ...]) -> Iterator[list[bytes]]:
        """Yield the keys below in batches, like `iter_child_batches`."""
        start = self._separator.join([*directory, b""])
        node, tails = self._find_directory(directory)
        if node is None:
            yield [start + tail for tail in tails]
            return
        keys = iter_keys(node, start, self._separator)
        yield from chunked(keys, MAX_ITEMS_PER_BATCH)

    def sample_keys(self, count: int) -> list[bytes]:
        """Return some keys, up to `count`, in no particular order."""
        return sample_keys(self._root, self._separator, count)

    def symmetric_difference(self, other: "PackedTrie", max_keys: int) -> set[bytes] | None:
        """Return the keys that are in exactly one of the two tries.

        Long keys are included. None if there are more than `max_keys`. Other threads may change both meanwhile: their
        changes may be in the result or not.
        """
        long_keys = set(self._long_keys.list_all()) ^ set(other._long_keys.list_all())
        keys = symmetric_difference(self._root, other._root, self._separator, max_keys - len(long_keys))
        return None if keys is None else keys | long_keys

    # -- long keys ---------------------------------------------------------------------------------------------------

    def get_long_key(self, digest: bytes) -> bytes | None:
        """Return the long key with this SHA-256 digest; None if there is none."""
        return self._long_keys.get(digest)

    def iter_long_key_batches(self) -> Iterator[list[bytes]]:
        """Yield the long keys in batches."""
        yield from chunked(self._long_keys.list_all(), MAX_ITEMS_PER_BATCH)

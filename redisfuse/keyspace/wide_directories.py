"""Large directories of a trie.

They are remembered so that keys are inserted without a walk from the root.
"""

from collections.abc import Sequence
from itertools import repeat

from redisfuse.keyspace.trie_memory import DICT_SLOT_BYTES, OBJECT_OVERHEAD_BYTES
from redisfuse.keyspace.trie_walk import TrieNode

_MIN_WIDE_ENTRIES = 256  # of a directory that is remembered
_MAX_WIDE_DIRECTORIES = 1000  # that are remembered
_MIN_GROUP_KEYS = 100  # of a batch, that are inserted into one directory together


class WideDirectories:
    """Some large directories, by the names of their parents and their own.

    No lock, as the trie. The trie calls `clear` when it removes a directory.
    """

    def __init__(self, separator: bytes) -> None:
        self._separator = separator
        self._nodes: dict[bytes, TrieNode] = {}

    def __bool__(self) -> bool:
        return bool(self._nodes)

    def record(self, directory: Sequence[bytes], node: TrieNode) -> None:
        """Remember a directory if it is large."""
        if len(node) >= _MIN_WIDE_ENTRIES:
            if len(self._nodes) >= _MAX_WIDE_DIRECTORIES:
                self._nodes.clear()
            self._nodes[self._separator.join(directory)] = node

    def clear(self) -> None:
        """Forget all directories."""
        self._nodes.clear()

    def insert_keys(self, keys: Sequence[bytes]) -> tuple[list[bytes], int, int]:
        """Insert the keys of these directories that are new in them.

        Returns the other keys, which may be present; how many were inserted; and the memory that they take, in bytes.
        """
        keys, others, added, memory = self._insert_groups(keys)
        separator, find_node = self._separator, self._nodes.get
        for key in keys:
            directory, found, name = key.rpartition(separator)
            node = find_node(directory) if found else None
            if node is None or name in node:
                others.append(key)
            else:
                node[name] = None
                added += 1
                memory += (OBJECT_OVERHEAD_BYTES + 15 + len(name)) & ~15
        return others, added, memory + DICT_SLOT_BYTES * added

    def _insert_groups(self, keys: Sequence[bytes]) -> tuple[Sequence[bytes], list[bytes], int, int]:
        """Insert keys that share a directory, without a line of Python for each.

        Returns the keys that are left, then as `insert_keys`, without the memory of slots. If a key was present, as one
        that SCAN returns twice, the memory is estimated from the average.
        """
        others: list[bytes] = []
        added = memory = 0
        while len(keys) >= _MIN_GROUP_KEYS:
            directory, found, _ = keys[0].rpartition(self._separator)
            node = self._nodes.get(directory) if found else None
            if node is None:
                break
            prefix = directory + self._separator
            names = list(map(bytes.removeprefix, keys, repeat(prefix)))
            joined = b"".join(names)
            if len(joined) != sum(map(len, keys)) - len(prefix) * len(keys):  # some are in other directories
                names = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
                joined = b"".join(names)
            if len(names) < _MIN_GROUP_KEYS or self._separator in joined:
                break
            count_before = len(node)
            entries = list(map(node.setdefault, names))  # None: a key now
            if any(entries):
                others += [prefix + name for name, entry in zip(names, entries, strict=True) if entry]
            new_count = len(node) - count_before
            added += new_count
            memory += sum([(OBJECT_OVERHEAD_BYTES + 15 + len(name)) & ~15 for name in names]) * new_count // len(names)
            keys = [] if len(names) == len(keys) else [key for key in keys if not key.startswith(prefix)]
        return keys, others, added, memory

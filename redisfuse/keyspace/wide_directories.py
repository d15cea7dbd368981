"""Large directories of a trie.

They are remembered so that keys are inserted without a walk from the root.
"""

from collections.abc import Sequence

from redisfuse.keyspace.trie_memory import DICT_SLOT_BYTES, OBJECT_OVERHEAD_BYTES
from redisfuse.keyspace.trie_walk import TrieNode

_MIN_WIDE_ENTRIES = 256  # of a directory that is remembered
_MAX_WIDE_DIRECTORIES = 1000  # that are remembered


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
        separator, find_node = self._separator, self._nodes.get
        others: list[bytes] = []
        memory = 0
        for key in keys:
            directory, found, name = key.rpartition(separator)
            node = find_node(directory) if found else None
            if node is None or name in node:
                others.append(key)
            else:
                node[name] = None
                memory += (OBJECT_OVERHEAD_BYTES + 15 + len(name)) & ~15
        added = len(keys) - len(others)
        return others, added, memory + DICT_SLOT_BYTES * added

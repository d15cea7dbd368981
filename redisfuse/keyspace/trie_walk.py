"""Walks over the nodes of a trie: iterates over, samples and compares its keys.

Pure functions; trie.py describes the nodes. No function is recursive: a key may have more components than Python
allows frames.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, TypeAlias

from redisfuse.keyspace.packed_directory import KEY_FLAG, unpack_tails

TrieNode: TypeAlias = dict[bytes | None, Any]  # values: None, bytes or another such dict

MISSING: Final = object()


def iter_keys(root: TrieNode, prefix: bytes, separator: bytes) -> Iterator[bytes]:
    """Yield the keys below a node, each after `prefix`."""
    stack = [(root, prefix, iter(list(root)))]
    while stack:
        node, start, names = stack[-1]
        name = next(names, MISSING)
        if name is MISSING:
            stack.pop()
            continue
        if name is None:
            continue
        assert isinstance(name, bytes)
        entry = node.get(name, MISSING)
        key = start + name
        if entry is None:
            yield key
        elif type(entry) is bytes:
            if entry[:1] == KEY_FLAG:
                yield key
            for tail in unpack_tails(entry):
                yield key + separator + tail
        elif type(entry) is dict:
            if None in entry:
                yield key
            stack.append((entry, key + separator, iter(list(entry))))


def sample_keys(root: TrieNode, separator: bytes, count: int) -> list[bytes]:
    """Return some keys, up to `count`, in no particular order."""
    keys: list[bytes] = []
    stack: list[tuple[TrieNode, bytes]] = [(root, b"")]
    while stack and len(keys) < count:
        node, start = stack.pop()
        for name in islice(node, count):
            entry = node[name]
            if name is None:
                continue
            below = start + name + separator
            if type(entry) is dict:
                stack.append((entry, below))
            elif entry is None:
                keys.append(start + name)
            else:
                keys += [below + tail for tail in unpack_tails(entry)]
    return keys[:count]


def symmetric_difference(root: TrieNode, other_root: TrieNode, separator: bytes, max_keys: int) -> set[bytes] | None:
    """Return the keys that are below exactly one of two nodes.

    None if there are more than `max_keys`.
    """
    keys: set[bytes] = set()
    stack = [(root, other_root, b"")]
    while stack and len(keys) <= max_keys:
        node, other_node, start = stack.pop()
        for name in list(node):
            entry, other_entry = node.get(name, MISSING), other_node.get(name, MISSING)
            if type(entry) is dict and type(other_entry) is dict:
                stack.append((entry, other_entry, start + (name or b"") + separator))
            elif entry is not other_entry and entry != other_entry:
                entry_keys = _collect_entry_keys(name, entry, start, separator)
                keys |= entry_keys ^ _collect_entry_keys(name, other_entry, start, separator)
                if len(keys) > max_keys:
                    break
        for name in list(other_node):
            if name not in node:
                keys |= _collect_entry_keys(name, other_node.get(name, MISSING), start, separator)
                if len(keys) > max_keys:
                    break
    return keys if len(keys) <= max_keys else None


def _collect_entry_keys(name: bytes | None, entry: object, prefix: bytes, separator: bytes) -> set[bytes]:
    """Return the keys at and below one component of a directory."""
    if entry is MISSING:
        return set()
    if name is None:
        return {prefix[: -len(separator)]}
    return set(iter_keys({name: entry}, prefix, separator))

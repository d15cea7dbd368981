"""Keys whose paths would be too long: they are found by their digests."""

import hashlib

from redisfuse.keyspace.trie_memory import DICT_SLOT_BYTES, bytes_object_size


class LongKeys:
    """Long keys by their SHA-256 digests, 32 bytes. No lock, as the trie."""

    def __init__(self) -> None:
        self._keys: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return hashlib.sha256(key).digest() in self._keys

    def add(self, key: bytes) -> int:
        """Add a key; return the memory that it takes, in bytes: 0 if it was present."""
        digest = hashlib.sha256(key).digest()
        if digest in self._keys:
            return 0
        self._keys[digest] = key
        return _memory_of(key)

    def discard(self, key: bytes) -> int:
        """Remove a key; return the memory that it took, in bytes: 0 if it was absent."""
        return 0 if self._keys.pop(hashlib.sha256(key).digest(), None) is None else _memory_of(key)

    def get(self, digest: bytes) -> bytes | None:
        """Return the key with this digest; None if there is none."""
        return self._keys.get(digest)

    def list_all(self) -> list[bytes]:
        """Return all keys."""
        return list(self._keys.values())


def _memory_of(key: bytes) -> int:
    return DICT_SLOT_BYTES + bytes_object_size(32) + bytes_object_size(len(key))

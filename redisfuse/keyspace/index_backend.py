"""Shared by both forms of the index: the layout of keys, and children."""

from __future__ import annotations

from typing import NamedTuple, Protocol

MIN_LONG_KEY_BYTES = 256  # a shorter key never has too long a path, so the layout is not queried
MAX_ITEMS_PER_BATCH = 1000  # children or keys in one batch of a listing


class KeyLayout(Protocol):
    """How keys become paths; `paths.grammar.PathCodec` is one."""

    @property
    def separator(self) -> bytes:
        """The bytes that split a key into components."""

    def key_needs_digest(self, key: bytes) -> bool:
        """Return whether the key's path would be too long.

        Such a key is found by its digest, and is in no directory.
        """


class Child(NamedTuple):
    """A component of a directory: a key, a directory, or both."""

    component: bytes
    is_key: bool
    is_directory: bool


def is_long_key(layout: KeyLayout, key: bytes) -> bool:
    """Return whether the key's path would be too long."""
    return len(key) >= MIN_LONG_KEY_BYTES and layout.key_needs_digest(key)

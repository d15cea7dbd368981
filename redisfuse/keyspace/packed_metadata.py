"""The metadata of many keys in little memory.

A key takes about 30 bytes besides its name; a cache entry takes ten times as much. So the metadata of a listing is kept
twice: as entries, which are evicted when memory is short, and in such a table, from which they are restored without a
command.

Bookkeeping only, under the cache's lock. Once a table is closed, its keys don't change and may be read without it.
"""

from __future__ import annotations

import math
from array import array

from more_itertools import longest_common_prefix

from redisfuse.keyspace.metadata_entry import KeyMetadata
from redisfuse.rendering.renderer import LENGTH_COMMANDS

_TYPES = (b"", *LENGTH_COMMANDS)  # by code; 0: the metadata is unknown
_CODES = {type: code for code, type in enumerate(_TYPES)}
_MAX_LENGTH = 0xFFFFFFFF
_MIN_SLOTS = 16


class PackedMetadata:
    """Keys with their types, lengths and expiries, in the order of their addition."""

    def __init__(self) -> None:
        self.prefix: bytes | None = None  # with which all keys begin; None: there is no key
        self._names = bytearray()
        self._ends = array("Q")  # of each key in `_names`
        self._types = bytearray()
        self._lengths = array("I")
        self._expiries: array[float] | None = (
            None  # time.monotonic(); infinite: none. Created for the first that expires
        )
        self._slots = array("I", bytes(4 * _MIN_SLOTS))  # a hash table of positions + 1; 0: free

    def __len__(self) -> int:
        return len(self._types)

    @property
    def memory_bytes(self) -> int:
        """The memory in use, without what Python allocates in advance."""
        expiry_bytes = 0 if self._expiries is None else 8
        return len(self._names) + 4 * len(self._slots) + len(self) * (8 + 1 + 4 + expiry_bytes)

    def get_key(self, position: int) -> bytes:
        """Return the key at a position."""
        return bytes(self._names[self._ends[position - 1] if position else 0 : self._ends[position]])

    def find(self, key: bytes) -> int | None:
        """Return the position of a key, or None."""
        position = self._slots[self._find_slot(key)]
        return position - 1 if position else None

    def _find_slot(self, key: bytes) -> int:
        """Return the slot that has the position of a key, or where it belongs."""
        slots, ends, names, length = self._slots, self._ends, self._names, len(key)
        mask = len(slots) - 1
        slot = hash(key) & mask
        while position := slots[slot]:
            start = ends[position - 2] if position > 1 else 0
            end = ends[position - 1]
            if end - start == length and names[start:end] == key:
                break
            slot = (slot + 1) & mask
        return slot

    def get_metadata(self, position: int) -> KeyMetadata | None:
        """Return the metadata at a position; None if it is unknown."""
        code = self._types[position]
        if not code:
            return None
        expires_at = math.nan if self._expiries is None else self._expiries[position]
        return KeyMetadata(_TYPES[code], self._lengths[position], expires_at if math.isfinite(expires_at) else None)

    def is_expiry_known(self, position: int) -> bool:
        """Return whether the expiry at a position was fetched: None means never."""
        return self._expiries is not None and not math.isnan(self._expiries[position])

    def put(self, key: bytes, metadata: KeyMetadata | None, *, is_expiry_known: bool = False) -> None:
        """Add a key, or replace its metadata. None: unknown."""
        code = 0 if metadata is None or not 0 <= metadata.length <= _MAX_LENGTH else _CODES.get(metadata.type, 0)
        length = metadata.length if metadata is not None and code else 0
        expires_at = None if metadata is None else metadata.expires_at
        slot = self._find_slot(key)
        position = self._slots[slot] - 1
        if position < 0:
            position = len(self)
            self._include_in_prefix(key)
            self._names += key
            self._ends.append(len(self._names))
            self._types.append(code)
            self._lengths.append(length)
            if self._expiries is not None:
                self._expiries.append(math.nan)
            self._slots[slot] = position + 1
            if 2 * len(self) > len(self._slots):
                self._grow()
        else:
            self._types[position], self._lengths[position] = code, length
        if self._expiries is None and (is_expiry_known or expires_at is not None):
            self._expiries = array("d", [math.nan]) * len(self)
        if self._expiries is not None:
            unlimited = math.inf if is_expiry_known else math.nan
            self._expiries[position] = unlimited if expires_at is None else expires_at

    def _include_in_prefix(self, key: bytes) -> None:
        if self.prefix is None:
            self.prefix = key
        elif not key.startswith(self.prefix):
            self.prefix = bytes(longest_common_prefix((self.prefix, key)))

    def _grow(self) -> None:
        slots = self._slots = array("I", bytes(4 * 2 * len(self._slots)))
        mask = len(slots) - 1
        names, start = bytes(self._names), 0
        for position, end in enumerate(self._ends, start=1):
            slot = hash(names[start:end]) & mask
            while slots[slot]:
                slot = (slot + 1) & mask
            slots[slot] = position
            start = end

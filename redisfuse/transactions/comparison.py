"""Compares the keys of a server with keys of another server or of an archive.

Values are compared by their elements, not by their DUMPs, which differ between versions. Of the names of keys that were
compared, 64-bit hashes are kept: 8 bytes a key.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from redisfuse.journal.models import State
from redisfuse.transactions.archive_record import ArchivedKey
from redisfuse.transactions.load import fit_to_server
from redisfuse.transactions.matching import holds_state, is_same_expiry
from redisfuse.transactions.state_reader import CurrentState
from redisfuse.transactions.unwatched_reader import UnwatchedReader

DifferenceKind = Literal["gone", "added", "changed", "expiry"]

_HASH_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that differs.

    It is only on the left (gone), only on the right (added), or on both with another value or expiry.
    """

    kind: DifferenceKind
    key: bytes  # on its side; on the left, if it is on both
    left: State | None = None
    right: State | None = None


def compare_keys(
    left: Sequence[ArchivedKey], left_prefix: bytes, reader: UnwatchedReader, right_prefix: bytes
) -> Iterator[Difference]:
    """Read the counterparts of keys, and yield the keys that differ.

    There are up to MAX_KEYS_PER_READ keys. A prefix is replaced by the other.
    """
    names = {one.key: right_prefix + one.key[len(left_prefix) :] for one in left}
    states: Mapping[bytes, CurrentState] = reader.read(list(names.values()))
    for one in left:
        current = states.get(names[one.key])
        if current is None:
            yield Difference("gone", one.key, one.state)
            continue
        state = fit_to_server(one.state, reader.server_info)
        if not holds_state(current, state):
            yield Difference("changed", one.key, one.state, current.state)
        elif not is_same_expiry(current, state):
            yield Difference("expiry", one.key, one.state, current.state)


class ComparedNames:
    """The names of the keys that were compared, as hashes of 8 bytes."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    def add(self, name: bytes) -> None:
        """Add a name. No name is looked up before all are added."""
        self._hashes.append(hash(name) & _HASH_MASK)

    def complete(self) -> None:
        """Sort the names for look-ups."""
        self._hashes = array("Q", sorted(self._hashes))

    def __contains__(self, name: bytes) -> bool:
        """Return whether a name was added."""
        value = hash(name) & _HASH_MASK
        position = bisect_left(self._hashes, value)
        return position < len(self._hashes) and self._hashes[position] == value

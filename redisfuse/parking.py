"""Keys that were renamed or unlinked in a way that looks like the first half of an editor's save (DESIGN.md 7).

A parked key is still in Redis, but not in the tree. Either something new is saved at its path (then that is one update
of the key), or its time passes and the removal becomes a change of its own. If the process dies, the key is there.

Lock order: the lock here is held only to look into the table.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from redisfuse.edits import Basis
from redisfuse.names import Target


@dataclass(frozen=True, slots=True)
class Parked:
    """One parked key or field."""

    target: Target
    path: bytes
    basis: Basis  # what it held when it was parked: if that changes, neither update nor removal may go through
    until: float  # monotonic seconds
    copy: bytes | None  # path in scratch where its content is now; None: the program unlinked it while it was open


class Parking:
    """The table of parked targets. Thread-safe."""

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake  # set whenever something begins to wait for its time
        self._lock = threading.Lock()
        self._parked: dict[Target, Parked] = {}

    def park(self, target: Target, path: bytes, basis: Basis, seconds: float, copy: bytes | None) -> None:
        """Park a target for at most `seconds`."""
        with self._lock:
            self._parked[target] = Parked(target, path, basis, time.monotonic() + seconds, copy)
        self._wake.set()

    def __contains__(self, target: Target) -> bool:
        return target in self._parked

    def get(self, target: Target) -> Parked | None:
        """What is parked at a target."""
        return self._parked.get(target)

    def take(self, target: Target) -> Parked | None:
        """Take a target out, because something new comes to its place or it is to be removed now."""
        with self._lock:
            return self._parked.pop(target, None)

    def put_back(self, parked: Parked) -> None:
        """Park again what was taken, due at once."""
        with self._lock:
            self._parked[parked.target] = Parked(
                parked.target, parked.path, parked.basis, time.monotonic(), parked.copy
            )
        self._wake.set()

    def take_due(self, now: float | None) -> list[Parked]:
        """Take out those whose time has passed (`now` monotonic; None: all)."""
        with self._lock:
            due = [each for each in self._parked.values() if now is None or each.until <= now]
            for each in due:
                del self._parked[each.target]
            return due

    def __bool__(self) -> bool:
        return bool(self._parked)

    def in_directory(self, prefix: bytes) -> bool:
        """Whether a parked key lies below a directory, so that it is not gone yet."""
        with self._lock:
            return any(target.key.startswith(prefix) for target in self._parked)

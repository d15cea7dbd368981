"""The keys and fields that a program has just removed.

`mv` from another filesystem, `install` and `cp --remove-destination` replace a file by unlink(2) and a new file of the
same name. Where one program does both within a second, the new file is the same key or field, and its expiry carries
over (docs/editing.md).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import NamedTuple

from redisfuse.journal.models import State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.expiry import Expiry
from redisfuse.vfs.processes import Processes

RECREATE_SECONDS = 1.0


class RecentRemoval(NamedTuple):
    """A key or field that was removed."""

    target: KeyRef
    expiry: Expiry | None
    caller: int  # the thread that removed it
    removed_at: float  # Processes.now()


class RecentRemovals:
    """The removals of the last second.

    Thread-safe; the lock is a leaf, held only to access the table.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._lock = threading.Lock()
        self._by_target: dict[KeyRef, RecentRemoval] = {}  # oldest first

    def add(self, target: KeyRef, removed: State | None, caller: int) -> None:
        """Note what a thread has removed from a target; None: nothing was there."""
        now = self._processes.now()
        removal = RecentRemoval(target, None if removed is None else Expiry.from_state(removed), caller, now)
        with self._lock:
            self._by_target.pop(target, None)
            self._by_target[target] = removal
            while now - (oldest := next(iter(self._by_target.values()))).removed_at > RECREATE_SECONDS:
                del self._by_target[oldest.target]

    def take(self, targets: Iterable[KeyRef], caller: int) -> RecentRemoval | None:
        """Return what a process has just removed from one of these targets.

        It is returned once. `caller`: a thread of the process.
        """
        for target in targets:
            with self._lock:
                removal = self._by_target.get(target)
            if removal is None or self._processes.now() - removal.removed_at > RECREATE_SECONDS:
                continue
            if self._processes.is_same_process(removal.caller, removal.removed_at, caller):
                with self._lock:
                    self._by_target.pop(target, None)
                return removal
        return None
